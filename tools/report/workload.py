"""Zipf reads with 5 % writes: what the cache answers, and what is left for Postgres."""

import time
from collections.abc import Sequence
from datetime import timedelta
from itertools import accumulate
from random import Random
from typing import NamedTuple
from uuid import uuid4

from google.protobuf.timestamp_pb2 import Timestamp

from libs.cache import MAX_AGE
from parlor.booking.v1 import booking_pb2 as booking
from parlor.messaging.v1 import messaging_pb2 as messaging
from tools.report.cases import FIRST, SALONS, Ask, Case
from tools.report.figures import Workload
from tools.report.rows import CACHED, CALLERS, timed
from tools.report.ways import After, Before

WRITES = 0.05
DISTINCT = 16  # asks of each case: what a salon's people look at again and again
PHONE = "+4915112345678"


def zipf(universe: int, count: int, random: Random, exponent: float = 1.0) -> list[int]:
    """Return `count` ranks below `universe`: rank r, from 0, comes up in proportion to 1 / (r + 1) ** exponent."""
    weights = list(accumulate((rank + 1) ** -exponent for rank in range(universe)))
    return random.choices(range(universe), cum_weights=weights, k=count)


class Read(NamedTuple):
    """A read of the workload."""

    case: Case
    ask: Ask


class Write(NamedTuple):
    """A write of the workload: a booking if its number is odd, else a message."""

    salon_id: str
    number: int

    async def do(self, after: After) -> None:
        """Write."""
        if self.number % 2:
            start, end = Timestamp(), Timestamp()
            start.FromDatetime(FIRST + timedelta(hours=self.number))
            end.FromDatetime(FIRST + timedelta(hours=self.number + 1))
            request = booking.CreateBookingRequest(
                salon_id=self.salon_id, customer_phone=PHONE, start_time=start, end_time=end
            )
            await after.services["booking"].servicer.CreateBooking(request, None)
        else:
            message = messaging.RecordMessageRequest(
                salon_id=self.salon_id,
                phone_number=PHONE,
                direction=messaging.MESSAGE_DIRECTION_INBOUND,
                whatsapp_id=f"wamid.{uuid4()}",
                content="Hallo",
            )
            await after.services["messaging"].servicer.RecordMessage(message, None)


def steps(cases: Sequence[Case], count: int, random: Random) -> list[Read | Write]:
    """Return what callers do: reads of all cases in one Zipf order over their asks, writes to Zipf-chosen salons."""
    asks = [Read(case, ask) for case in cases for ask in case.asks[:DISTINCT]]
    random.shuffle(asks)
    reads, salons = zipf(len(asks), count, random), zipf(len(SALONS), count, random)
    return [
        Write(SALONS[salon], number) if random.random() < WRITES else asks[read]
        for number, (read, salon) in enumerate(zip(reads, salons, strict=True))
    ]


async def measure_workload(
    done: Sequence[Read | Write], before: Before, after: After, writer: After, *, cached: bool
) -> Workload:
    """Do the steps; their first third warms the cache and is not counted. `writer` writes, so that `after` only reads.

    "Before" is measured by the reads alone.
    """
    MAX_AGE.set(None if cached else 0)
    callers = CALLERS[-1]
    answers: list[tuple[str, float]] = []

    async def step(what: Read | Write) -> None:
        if isinstance(what, Write):
            await what.do(writer)
        else:
            started = time.perf_counter()
            reply = await after.read(*what)
            answers.append((reply.source, time.perf_counter() - started))

    warming = len(done) // 3
    await after.forget()
    await timed(step, done[:warming], callers)
    await after.settle()
    answers.clear()
    began = after.counts()
    await timed(step, done[warming:], callers)
    await after.settle()
    new = after.counts() - began

    reads = [what for what in done[warming:] if isinstance(what, Read)]
    began = before.counts()
    taken = await timed(lambda read: before.read(*read), reads, callers)
    old = before.counts() - began

    hits = sum(source in CACHED for source, _ in answers)
    return Workload(
        asks=len({(what.case.key, what.ask.request.SerializeToString()) for what in reads}),
        reads=len(reads),
        writes=len(done) - warming - len(reads),
        callers=callers,
        hits=hits,
        hit_rate=_percent(hits, len(reads)),
        refused_fills=new.refused_fills,
        statements_before=old.statements,
        statements_after=new.statements,
        statements_saved=_percent(old.statements - new.statements, old.statements),
        average_before=_mean_ms(taken),
        average_after=_mean_ms([seconds for _, seconds in answers]),
        connections_before=before.connections,
        connections_after=after.connections,
    )


def _percent(part: float, whole: float) -> float:
    return round(100 * part / whole, 2)


def _mean_ms(seconds: Sequence[float]) -> float:
    return round(1000 * sum(seconds) / len(seconds), 4)
