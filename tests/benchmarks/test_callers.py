"""What the identity and the rights of a caller cost: a warm read of booking, 32 in flight, in turn with one for all."""

from __future__ import annotations

import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest
import trustme
import uvloop

from libs.server.auth import Access, AuthSettings, Visit
from ops.migrate import migrate
from ops.process import Server, free_ports, is_free, spawn
from ops.sample_data import load_sample_data
from ops.servers import Postgres, Valkey
from ops.up import SERVICES, Plan, environments
from parlor.booking.v1.booking_pb2 import DESCRIPTOR, GetBookingByCodeRequest
from tests.benchmarks.cases import path_of
from tests.benchmarks.client import calls_of
from tests.benchmarks.conftest import Report
from tests.benchmarks.load import Cost, connected
from tests.benchmarks.rounds import Round, cpu, in_turn, medians
from tests.benchmarks.system import WITHOUT_REFILLS, target
from tests.callers import Issuer, client_certificate, jwt_settings
from tests.test_callers_mtls import tls_settings

TURNS, CALLS, IN_FLIGHT = 31, 640, 32
MOST_US = 3.0  # of a check: identity by token, method, salon, two quotas
MOST_AUDIT_US = 20.0
TITLE = "The check of a caller, with a token and two quotas: CPU"
# A server that ignores the token has to receive it, too: no client compresses it (RFC 7541, 7.1.3).
TITLE_RPC = "GetBookingByCode of callers with and without identities, warm, 32 in flight on one connection: server CPU"
MOST_TLS_RATIO = 1.3
BOT = "spiffe://test/bot"


class Booking(Server):
    """The booking service in an environment; ready when it listens."""

    def __init__(self, name: str, folder: Path, database_url: str, redis_url: str, more: Mapping[str, Any]) -> None:
        """Don't start it yet."""
        port, metrics_port = free_ports(2)
        super().__init__(name, port, folder / f"{name}.log")
        plan = Plan(folder, None, False, None, dict.fromkeys(SERVICES, port), metrics_port)
        own = {name.upper(): str(value) for name, value in more.items()}
        self._environment = environments(plan, database_url, redis_url)["booking"] | WITHOUT_REFILLS | own

    def spawn(self) -> subprocess.Popen[bytes]:
        """Start it with this Python."""
        command = [sys.executable, "-m", "services.booking"]
        return spawn(command, self.log, self.stop_signal, environment=self._environment)

    def is_ready(self) -> bool:
        """Return whether it listens."""
        return not is_free(self.port)


def policy(salon_ids: list[str]) -> str:
    """Return a policy that gives a caller with a token, and one with a certificate, the salons; with quotas."""
    quota = "{ calls_per_second = 10000000, calls_under_way = 1000 }"
    rights = f'methods = ["booking:read"]\nsalons = {sorted(set(salon_ids))}\n'
    callers = "".join(f'[callers."{name}"]\n{rights}' for name in ("dashboard", BOT))
    return f"[quotas]\ncaller = {quota}\nsalon = {quota}\n{callers}"


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, float]]:
    """The server CPU per call, in us, of each way to call."""
    folder, authority, issuer = tmp_path_factory.mktemp("callers"), trustme.CA(), Issuer()
    with ExitStack() as stack:
        postgres = stack.enter_context(Postgres(folder / "postgres"))
        migrate(postgres.dsn)
        load_sample_data(postgres.dsn, 1)
        redis_url = stack.enter_context(Valkey()).local_url
        with psycopg.connect(postgres.dsn) as conn:
            names = conn.execute("SELECT salon_id, booking_code FROM bookings ORDER BY booking_id LIMIT 500").fetchall()
        folders = {name: folder / name for name in ("jwt", "mtls")}
        for each in folders.values():
            each.mkdir()
        text = policy([salon_id for salon_id, _ in names])
        tokens = jwt_settings(folders["jwt"], issuer, text)
        certificates = tls_settings(folders["mtls"], authority)
        (folders["mtls"] / "policy.toml").write_text(text)
        settings = {"open": {}, "jwt": tokens, "mtls": certificates}
        servers = {
            name: stack.enter_context(Booking(name, folder, postgres.local_dsn, redis_url, more))
            for name, more in settings.items()
        }
        requests = [GetBookingByCodeRequest(salon_id=a, booking_code=b).SerializeToString() for a, b in names]
        yield medians(uvloop.run(measure(servers, requests, authority, issuer)), cpu)


async def measure(
    servers: Mapping[str, Booking], requests: list[bytes], authority: trustme.CA, issuer: Issuer
) -> dict[str, list[Cost]]:
    """Return the costs of the rounds of each server."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    client_certificate(authority, BOT).configure_cert(context)
    context.set_alpn_protocols(["h2"])
    token = (("authorization", f"Bearer {issuer.token('dashboard')}"),)
    path = path_of("booking", "GetBookingByCode")
    plain, with_token = calls_of(path, requests), calls_of(path, requests, token)
    ways = {
        "open": (servers["open"], plain, None),
        "open with token": (servers["open"], with_token, None),
        "jwt": (servers["jwt"], with_token, None),
        "mtls": (servers["mtls"], plain, context),
    }
    rounds: dict[str, Round] = {}
    async with AsyncExitStack() as stack:
        for name, (server, calls, tls) in ways.items():
            load = await stack.enter_async_context(connected(target(server), tls=tls))
            await load.client.run(calls * 2, IN_FLIGHT)

            async def run(turn: int, count: int, in_flight: int, load: Any = load, calls: Any = calls) -> Cost:
                cost: Cost = await load.round((calls * 2)[:count], in_flight)
                assert cost.result.sources["hit"] > 0.99 * count
                return cost

            rounds[name] = run
        return await in_turn(rounds, TURNS, CALLS, IN_FLIGHT)


class Context:
    """The context of a call, as the check sees it."""

    def __init__(self, *metadata: tuple[str, str]) -> None:
        """Take the metadata of the call."""
        self._metadata = metadata

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        """Return the metadata."""
        return self._metadata

    def peer(self) -> str:
        """Return an address."""
        return "ipv4:127.0.0.1:1"


@pytest.mark.parametrize("is_read", [True, False])
async def test_the_check_of_a_caller_costs_at_most_3_us(tmp_path: Path, report: Report, is_read: bool) -> None:
    issuer, name = Issuer(), "GetBookingByCode" if is_read else "CreateBooking"
    text = policy(["salon-1"]).replace("booking:read", "booking:*")
    access = Access(AuthSettings(**jwt_settings(tmp_path, issuer, text)))
    guard = access.guard(DESCRIPTOR.services_by_name["BookingService"].methods_by_name[name])
    await access.open()
    context = Context(("user-agent", "grpc"), ("authorization", f"Bearer {issuer.token('dashboard')}"))
    await access.identify(context)

    def check() -> None:
        visit = Visit(guard, context)
        assert visit.is_known(context)
        visit.use(("salon-1",))
        visit.end("OK", "", None)

    us = min(cpu_us(check) for _ in range(10))
    await access.close()
    limit = MOST_US if is_read else MOST_US + MOST_AUDIT_US
    report.add(TITLE, "read" if is_read else "write, with a line of the audit log", us=f"{us:.1f}")
    assert us <= limit


def cpu_us(check: Callable[[], None], times: int = 20_000) -> float:
    """Return the CPU time of a function, in us."""
    began = time.thread_time()
    for _ in range(times):
        check()
    return (time.thread_time() - began) / times * 1e6


def test_tls_with_a_certificate_costs_at_most_a_third_more(measured: dict[str, float], report: Report) -> None:
    for name, us in measured.items():
        report.add(TITLE_RPC, name, us=f"{us:.1f}", ratio=f"{us / measured['open']:.2f}")
    assert measured["mtls"] <= MOST_TLS_RATIO * measured["open"]
