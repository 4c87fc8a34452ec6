"""A mixed workload (Zipf-distributed reads with 5 % writes), and many callers at once."""

from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from itertools import accumulate
from random import Random
from typing import Any, NamedTuple, TypeAlias
from uuid import uuid4

import grpc

from parlor.booking.v1 import booking_pb2, booking_pb2_grpc
from parlor.messaging.v1 import messaging_pb2, messaging_pb2_grpc
from parlor.ops.v1 import ops_pb2, ops_pb2_grpc
from tools.report.cases import FIRST, SALONS, Case, Request
from tools.report.readers import After, Before, timed
from tools.report.results import Check

Channels: TypeAlias = dict[str, grpc.aio.Channel]
WRITES = 0.05
DISTINCT = 16  # requests of each case: what a salon's staff look at again and again
PHONE = "+4915112345678"
CROWD = 128  # callers: the predecessor's "120+"


def zipf(universe: int, count: int, random: Random, exponent: float = 1.0) -> list[int]:
    """Return `count` ranks below `universe`: rank r, from 0, comes up in proportion to 1 / (r + 1) ** exponent."""
    weights = list(accumulate((rank + 1) ** -exponent for rank in range(universe)))
    return random.choices(range(universe), cum_weights=weights, k=count)


class Read(NamedTuple):
    """A read of the workload."""

    case: Case
    request: Request


class Write(NamedTuple):
    """A write of the workload: a booking if its number is odd, else a message."""

    salon_id: str
    number: int

    async def send(self, channels: Channels) -> None:
        """Send the write to a service's process, so that the pools of this process count only reads."""
        fields: dict[str, Any] = {"salon_id": self.salon_id}
        if self.number % 2:
            start = FIRST + timedelta(hours=self.number)
            fields |= {"customer_phone": PHONE, "start_time": start, "end_time": start + timedelta(hours=1)}
            fields["ignore_rules"] = True  # the data is of the past
            stub: Any = booking_pb2_grpc.BookingServiceStub(channels["booking"])
            await stub.CreateBooking(booking_pb2.CreateBookingRequest(**fields))
        else:
            fields |= {"phone_number": PHONE, "direction": messaging_pb2.MESSAGE_DIRECTION_INBOUND, "content": "Hallo"}
            stub = messaging_pb2_grpc.MessagingServiceStub(channels["messaging"])
            await stub.RecordMessage(messaging_pb2.RecordMessageRequest(**fields, whatsapp_id=f"wamid.{uuid4()}"))


def steps(cases: Sequence[Case], count: int, random: Random) -> list[Read | Write]:
    """Return reads of all cases in one Zipf distribution over their requests, and writes to Zipf-chosen salons."""
    requests = [Read(case, request) for case in cases for request in case.requests[:DISTINCT]]
    random.shuffle(requests)
    reads, salons = zipf(len(requests), count, random), zipf(len(SALONS), count, random)
    return [
        Write(SALONS[salon], number) if random.random() < WRITES else requests[read]
        for number, (read, salon) in enumerate(zip(reads, salons, strict=True))
    ]


async def check_load(done: Sequence[Read | Write], before: Before, after: After, channels: Channels) -> list[Check]:
    """Do the steps. Their first third warms the cache and is not counted. "Before" only does the reads."""
    sources: Counter[str] = Counter()

    async def do(step: Read | Write) -> None:
        if isinstance(step, Write):
            await step.send(channels)
        else:
            sources[(await after.read(*step)).source] += 1

    warming = len(done) // 3
    await after.forget()
    await timed(do, done[:warming])
    await after.settle()
    sources.clear()
    began = after.statements
    await timed(do, done[warming:])
    await after.settle()
    new = after.statements - began

    reads = [step for step in done[warming:] if isinstance(step, Read)]
    began = before.statements
    await timed(lambda read: before.read(*read), reads)
    old = before.statements - began

    saved, hits = 100 * (1 - new / old), 100 * (sources["hit"] + sources["near"]) / len(reads)
    figures = f"{saved:.1f} % ({new:,} of {old:,} statements sent)", f"{hits:.1f} % (of {len(reads):,} reads)"
    return [
        Check("Database load saved", figures[0], "at least 75 %", "82 %", saved >= 75),
        Check("Cache hit rate", figures[1], "above 85 %", "87 %", hits > 85),
    ]


async def check_crowd(reads: Sequence[Read], after: After, channels: Channels, ops: Channels) -> list[Check]:
    """Have CROWD callers read at once: from an empty cache on, and by RPCs that bypass the cache."""
    errors = 0

    async def call(read: Read, *metadata: tuple[str, str]) -> None:
        nonlocal errors
        rpc: Any = channels[read.case.service].unary_unary(read.case.path)
        try:
            await rpc(read.request.message.SerializeToString(), metadata=metadata)
        except grpc.aio.AioRpcError:
            errors += 1

    await after.forget()
    began = await _pool_failures(ops)
    await timed(call, reads, callers=CROWD)
    await timed(lambda read: call(read, ("cache-control", "no-cache")), reads, callers=CROWD)
    failures = await _pool_failures(ops) - began
    calls = 2 * len(reads)
    answered = f"{calls - errors:,} of {calls:,} calls by {CROWD} callers, half of them uncached"
    return [
        Check("Callers at once", answered, "all answered", "120+", errors == 0),
        Check("Exhaustions and connection errors", str(failures), "none", "0/day", failures == 0),
    ]


async def _pool_failures(ops: Channels) -> int:
    """Return how often the services' pools were exhausted or lost a connection."""
    stubs: list[Any] = [ops_pb2_grpc.OpsServiceStub(channel) for channel in ops.values()]
    replies = [await stub.GetDatabaseMetrics(ops_pb2.GetDatabaseMetricsRequest()) for stub in stubs]
    return sum(reply.pool.exhaustions + reply.pool.connection_errors for reply in replies)
