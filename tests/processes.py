"""The three services as processes, as `parlor up` starts them."""

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from ops.process import free_ports
from ops.up import SERVICES, Plan, Service, environments, start_services
from parlor.booking.v1 import booking_pb2_grpc
from parlor.messaging.v1 import messaging_pb2_grpc
from parlor.ops.v1 import ops_pb2_grpc
from parlor.stats.v1 import stats_pb2_grpc
from tests.stack import Connect, Stack


@dataclass(frozen=True)
class Processes:
    """Running services, their database, and the ports of their metrics and OpsServices."""

    services: dict[str, Service]
    database_url: str
    metrics_ports: dict[str, int]
    ops_ports: dict[str, int]


@contextmanager
def processes(
    database_url: str, redis_url: str, folder: Path, settings: Mapping[str, str] | None = None
) -> Iterator[Processes]:
    """Run the three services, with `settings` added to their environments; they are SERVING when the block begins."""
    free = free_ports(3 * len(SERVICES))
    ports, metrics_ports, ops_ports = [dict(zip(SERVICES, free[start:], strict=False)) for start in (0, 3, 6)]
    plan = Plan(folder, None, False, None, ports, metrics_ports["booking"], ops_port=ops_ports["booking"])
    with ExitStack() as stack:
        usual = environments(plan, database_url, redis_url)
        own = {name: environment | dict(settings or {}) for name, environment in usual.items()}
        services = start_services(own, plan, folder, stack)
        yield Processes({service.name: service for service in services}, database_url, metrics_ports, ops_ports)


@asynccontextmanager
async def stubs(running: Processes, connect: Connect = grpc.aio.insecure_channel) -> AsyncIterator[Stack]:
    """Connect to the services; the returned stack has no servers."""
    async with AsyncExitStack() as exits:
        channels = {
            name: await exits.enter_async_context(connect(f"127.0.0.1:{service.port}"))
            for name, service in running.services.items()
        }
        ops = {
            name: await exits.enter_async_context(connect(f"127.0.0.1:{port}"))
            for name, port in running.ops_ports.items()
        }
        yield Stack(
            booking_pb2_grpc.BookingServiceStub(channels["booking"]),
            messaging_pb2_grpc.MessagingServiceStub(channels["messaging"]),
            stats_pb2_grpc.StatsServiceStub(channels["stats"]),
            {name: ops_pb2_grpc.OpsServiceStub(channel) for name, channel in ops.items()},
            {},
            running.database_url,
        )


def run_command(command: Sequence[str], environment: Mapping[str, str]) -> str:
    """Run a program of this Python's environment; return its output. Its exit code must be 0."""
    inherited = {name: value for name, value in os.environ.items() if not name.endswith(("_URL", "_FILE"))}
    done = subprocess.run(  # noqa: S603 - ours
        [str(Path(sys.executable).with_name(command[0])), *command[1:]],
        env=inherited | dict(environment),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
