"""Records the statements of the services: it starts a temporary system and calls each RPC.

The system's PostgreSQL logs every statement. Before each call a marker with the RPC's name is logged, so the statements
up to the next marker are those of that RPC. The services run unchanged.
"""

import json
import re
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc
import psycopg

from ops.calls import call_every_rpc
from ops.migrate import migrate, service_url
from ops.process import StartError, free_port, free_ports
from ops.servers import Postgres, Valkey
from ops.up import SERVICES, Plan, environments, start_services

BACKGROUND = "background jobs"  # stands for an RPC: it sends the statements before the first call
BACKGROUND_SECONDS = 1.0  # for the jobs that run when a service starts
LOGGED = {
    "log_statement": "all",
    "log_destination": "jsonlog",
    "logging_collector": "on",
    "log_filename": "statements",
    "log_rotation_age": "0",
    "log_rotation_size": "0",
    "fsync": "off",
}
LOG_SECONDS = 10.0  # for the last line of the log to be written
# Without them the services never delete or empty old rows.
RETENTION = {f"RETENTION_{kind}": "1" for kind in ("RAW_ITEMS", "FAILURES", "AI_MESSAGES")}

_MARKER, _END = "SELECT 'recorded RPC: {}'", "end"
_MARKED = re.compile(re.escape(_MARKER).replace(r"\{\}", "(.*)"))
_SENT = re.compile(r"(?:statement|execute [^:]*): (.*)", re.DOTALL)
_READS_OR_WRITES = re.compile(r"\s*(?:SELECT|INSERT|UPDATE|DELETE|WITH)\b")


@dataclass(frozen=True)
class Statement:
    """A statement with `$1`, `$2`... for its parameters.

    `rpcs` are those that send it, such as `StatsService.GetSalonStats`, or BACKGROUND.
    """

    sql: str
    rpcs: tuple[str, ...]


def record() -> list[Statement]:
    """Return the different statements that name a table, in the order of their first use.

    Takes about 10 s. Statements inside database functions are not recorded. Raises: StartError; grpc.RpcError.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="parlor-recording-", ignore_cleanup_errors=True)))
        folder.chmod(0o711)  # PostgreSQL may have to run as nobody
        postgres = stack.enter_context(Postgres(folder / "postgres", settings=LOGGED))
        valkey = stack.enter_context(Valkey(data=folder / "valkey"))
        migrate(postgres.dsn, {})
        with psycopg.connect(postgres.dsn, autocommit=True) as conn:
            tables = [name for (name,) in conn.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")]

            def mark(name: str) -> None:
                conn.execute(_MARKER.format(name).encode())

            ports = {name: free_port() for name in SERVICES}
            plan = Plan(folder, None, True, None, ports, free_ports(len(SERVICES))[0])
            settings = environments(plan, postgres.dsn, valkey.url)
            for name, own in settings.items():
                own |= RETENTION | {f"{name.upper()}_DATABASE_URL": service_url(postgres.dsn, f"parlor_{name}")}
            mark(BACKGROUND)
            start_services(settings, plan, folder, stack)
            channels = {name: stack.enter_context(_channel(port, mark)) for name, port in ports.items()}
            time.sleep(BACKGROUND_SECONDS)
            call_every_rpc(channels, settings["messaging"]["WHATSAPP_APP_SECRET"])
            mark(_END)
        return _statements(_logged(postgres.data / "log/statements.json"), tables)


def _channel(port: int, mark: Callable[[str], None]) -> grpc.Channel:
    channel = grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.enable_http_proxy", 0)])
    return grpc.intercept_channel(channel, _Marking(mark))


class _Marking(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):
    """Logs the marker of each call, and makes the service bypass its cache."""

    def __init__(self, mark: Callable[[str], None]) -> None:
        self._mark = mark

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return self._call(continuation, client_call_details, request)

    def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return self._call(continuation, client_call_details, request)

    def _call(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        _, service, method = client_call_details.method.split("/")
        self._mark(f"{service.rpartition('.')[2]}.{method}")
        return continuation(client_call_details._replace(metadata=[("cache-control", "no-cache")]), request)


def _logged(log: Path) -> list[str]:
    """Return the statements of a JSON log up to the last marker. Raises: StartError if that is missing."""
    end = _MARKER.format(_END)
    deadline = time.monotonic() + LOG_SECONDS
    while time.monotonic() < deadline:
        text = log.read_text()
        if end in text:
            messages = [json.loads(line)["message"] for line in text.splitlines()]
            return [found[1] for found in map(_SENT.fullmatch, messages) if found]
        time.sleep(0.05)
    raise StartError(f"PostgreSQL has not written all statements to {log}")


def _statements(sent: Iterable[str], tables: Iterable[str]) -> list[Statement]:
    named = re.compile(rf"\b(?:{'|'.join(tables)})\b")
    rpcs: dict[str, list[str]] = {}
    rpc = ""
    for sql in sent:
        if marked := _MARKED.fullmatch(sql):
            rpc = marked[1]
        elif rpc and _READS_OR_WRITES.match(sql) and named.search(sql):
            senders = rpcs.setdefault(sql, [])
            if rpc not in senders and BACKGROUND not in senders:  # a background job may run during an RPC
                senders.append(rpc)
    return [Statement(sql, tuple(senders)) for sql, senders in rpcs.items()]
