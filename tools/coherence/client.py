"""What writers and readers share: how they call the services, and how requests name things."""

import os
import random
import signal
from abc import ABC, abstractmethod
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import uvloop

from parlor.booking.v1 import booking_pb2, booking_pb2_grpc
from parlor.messaging.v1 import messaging_pb2, messaging_pb2_grpc
from parlor.stats.v1 import stats_pb2, stats_pb2_grpc
from tools.coherence.state import State

SECRET = "parlor-dev"  # noqa: S105 - of the system that is tested
TIMEOUT_SECONDS = 8
RETRY_SECONDS = 0.05
MOST_FINDINGS = 20  # of a process; all are counted
# What a call may be answered while something is away; any other error fails the run.
AWAY = ("ABORTED", "CANCELLED", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "UNAVAILABLE")
DAY = 86_400
FIRST = 2_524_608_000  # 2050-01-01, when the first booking begins, in s since 1970
SERVICES: dict[str, tuple[Any, Any]] = {
    "booking": (booking_pb2, booking_pb2_grpc.BookingServiceStub),
    "messaging": (messaging_pb2, messaging_pb2_grpc.MessagingServiceStub),
    "stats": (stats_pb2, stats_pb2_grpc.StatsServiceStub),
}
OPTIONS = [
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
]


@dataclass(frozen=True)
class Spec:
    """What a client process needs to know. `addresses` are pairs of a service's name and the address of a process.

    `began` is when the run began, in s since 1970. A reply may be behind by `behind_ms`, one of the near cache by
    `near_ms` more. With `is_shown_final` none may be behind what a reader was shown, acknowledged or not.
    """

    file: Path
    addresses: list[tuple[str, str]]
    seed: int
    began: int
    behind_ms: int
    near_ms: int
    is_shown_final: bool
    parent: int


class Client(ABC):
    """One process of writers or readers. `findings` is what it found wrong."""

    def __init__(self, spec: Spec, process: int) -> None:
        """Connect to nothing yet."""
        self.spec = spec
        self.state = State(spec.file, process)
        self.process = process
        self.random = random.Random(f"{spec.seed} {process}")  # noqa: S311
        self.findings: list[dict[str, Any]] = []
        self.stubs: dict[str, list[Any]] = {service: [] for service in SERVICES}

    @abstractmethod
    async def run(self) -> None:
        """Run until the end."""

    @property
    def running(self) -> bool:
        """Whether to go on."""
        return not self.state.ending and os.getppid() == self.spec.parent

    def found(self, rpc: str, **finding: Any) -> None:
        """Note a finding, unless there are many."""
        if len(self.findings) < MOST_FINDINGS:
            self.findings.append({"rpc": rpc, **finding})

    def failed(self, rpc: str, error: grpc.aio.AioRpcError) -> None:
        """Note an error that no fault explains."""
        if error.code().name not in AWAY:
            self.state.count("unexpected")
            self.found(rpc, code=error.code().name, details=error.details())


def run_client(kind: type[Client], spec: Spec, process: int) -> list[dict[str, Any]]:
    """Run a client until the end, as the process that this is; return its findings."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the parent, which ends this

    async def run() -> list[dict[str, Any]]:
        client = kind(spec, process)
        async with AsyncExitStack() as stack:
            for service, address in spec.addresses:
                channel = grpc.aio.insecure_channel(address, options=OPTIONS)
                client.stubs[service].append(SERVICES[service][1](await stack.enter_async_context(channel)))
            await client.run()
        return client.findings

    return uvloop.run(run())


def request(service: str, rpc: str, **fields: Any) -> Any:
    """Return the request of an RPC."""
    return getattr(SERVICES[service][0], f"{rpc}Request")(**fields)


def phone(customer: int) -> str:
    """Return the phone number of a customer."""
    return f"+4915112345{customer:03d}"


def chair(customer: int) -> str:
    """Return the resource that a customer books."""
    return f"chair-{customer}"


def day(number: int, minutes: int = 0) -> dict[str, int]:
    """Return the time of the day of a number, as a request takes it. There is a day between two of them.

    So the cached list of one does not depend on writes to the next (decision 0066).
    """
    return {"seconds": FIRST + 2 * number * DAY + 60 * minutes}
