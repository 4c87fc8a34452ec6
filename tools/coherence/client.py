"""What writers and readers have in common: whom they call, and what the calls name."""

import json
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import grpc
import uvloop
from google.protobuf.timestamp_pb2 import Timestamp

from parlor.booking.v1 import booking_pb2_grpc
from parlor.messaging.v1 import messaging_pb2_grpc
from parlor.stats.v1 import stats_pb2_grpc

TIMEOUT_SECONDS = 8
# What a call may be told while something is away; anything else is a fault of the system.
AWAY = (
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNAVAILABLE,
)
DAY = 86_400
FIRST = 1_893_456_000  # 2030-01-01, when the first booking begins, in s since 1970
OPTIONS = [
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
]


@dataclass(frozen=True)
class Spec:
    """What the processes are told.

    `began` is when the run began, in s since 1970. A reply may be behind by `behind_ms`, one of the near cache by
    `near_ms` more; with 0 it may not be at all. In `mode` "refuse" it may not be behind what any reader was shown.
    """

    ledger: str
    booking: Sequence[str]
    messaging: str
    stats: str
    seed: int
    began: int
    mode: str
    behind_ms: int
    near_ms: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return what `str` made a text of."""
        return cls(**json.loads(text))

    def __str__(self) -> str:
        """Return it as JSON."""
        return json.dumps(asdict(self))

    @property
    def file(self) -> Path:
        """The ledger's file."""
        return Path(self.ledger)


class Stubs(NamedTuple):
    """The services; a stub of booking for each of its processes."""

    booking: Sequence[Any]
    messaging: Any
    stats: Any


@asynccontextmanager
async def stubs(spec: Spec) -> AsyncIterator[Stubs]:
    """Connect to the services."""
    async with AsyncExitStack() as stack:

        async def channel(address: str) -> grpc.aio.Channel:
            return await stack.enter_async_context(grpc.aio.insecure_channel(address, options=OPTIONS))

        yield Stubs(
            [booking_pb2_grpc.BookingServiceStub(await channel(address)) for address in spec.booking],
            messaging_pb2_grpc.MessagingServiceStub(await channel(spec.messaging)),
            stats_pb2_grpc.StatsServiceStub(await channel(spec.stats)),
        )


class Client(Protocol):
    """A writer or a reader."""

    def __init__(self, spec: Spec, process: int, services: Stubs) -> None:
        """Do nothing yet."""

    async def run(self) -> None:
        """Run until all shall end."""


def start(kind: type[Client]) -> None:
    """Be the process that the arguments say."""
    process, spec = int(sys.argv[1]), Spec.parse(sys.argv[2])

    async def run() -> None:
        async with stubs(spec) as services:
            await kind(spec, process, services).run()

    uvloop.run(run())


def salon_id(salon: int) -> str:
    """Return the id of a salon."""
    return f"salon-{salon}"


def phone_number_id(salon: int) -> str:
    """Return the phone_number_id of a salon."""
    return f"10{salon}"


def phone(customer: int) -> str:
    """Return the phone number of a customer."""
    return f"+4915112345{customer:03d}"


def day(number: int, minutes: int = 0) -> Timestamp:
    """Return a moment of the bookings' time: so many days and minutes after the first booking begins."""
    return Timestamp(seconds=FIRST + number * DAY + 60 * minutes)
