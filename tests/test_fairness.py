"""Callers of one salon wait for each other; callers of other salons do not."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from libs.db import FairLimit, PoolExhausted
from parlor.booking.v1 import booking_pb2
from parlor.messaging.v1 import messaging_pb2
from tests.load import tells_when_to_retry, until, waiting_for_a_lock
from tests.locks import holding
from tests.stack import SALON, Stack, booking_request, failure, message_request, salon
from tests.test_database import opened
from tests.test_resources import resource

SALON_ROW = f"SELECT FROM salons WHERE salon_id = '{SALON}' FOR UPDATE"
WITHIN_SECONDS = 1.0  # upper bound for calls of other salons, on a busy machine


async def test_each_key_gets_its_share_of_connections(database_url: str) -> None:
    async with opened(database_url, connection_limit=10) as database:
        limit, lent, most = FairLimit(database, 2, 3), {"a": 0, "b": 0, "c": 0}, {"a": 0, "b": 0, "c": 0}
        all_lent = []

        async def borrow(key: str) -> None:
            async with limit.connection(key):
                lent[key] += 1
                most[key] = max(most[key], lent[key])
                all_lent.append(sum(lent.values()))
                await asyncio.sleep(0.002)
                lent[key] -= 1

        await asyncio.gather(*(borrow(key) for key in "a" * 40 + "b" * 20 + "c" * 10))
        assert max(most.values()) == 2
        assert max(all_lent) == 3
        assert len(all_lent) == 70


async def test_keys_take_turns(database_url: str) -> None:
    async with opened(database_url, connection_limit=10) as database:
        limit, order = FairLimit(database, 1, 1), []

        async def borrow(key: str) -> None:
            async with limit.connection(key):
                order.append(key)
                await asyncio.sleep(0)

        await asyncio.gather(*(borrow(key) for key in ["a"] * 5 + ["b"] * 2 + ["c"]))
        assert "".join(order) == "aabcabaa"


async def test_a_canceled_caller_takes_no_turn(database_url: str) -> None:
    async with opened(database_url, connection_limit=10) as database:
        limit = FairLimit(database, 1, 1)

        async def borrow() -> None:
            async with limit.connection("a"):
                await asyncio.sleep(0.01)

        for delay in (0, 0.005, 0.01, 0.015):
            tasks = [asyncio.create_task(borrow()) for _ in range(9)]
            await asyncio.sleep(delay)
            for task in tasks[::2]:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        async with asyncio.timeout(5):
            await borrow()
            await asyncio.gather(*(borrow() for _ in range(3)))


async def test_callers_of_a_key_beyond_the_limit_fail(database_url: str) -> None:
    async with opened(database_url, connection_limit=10, pool_timeout=1) as database:
        limit = FairLimit(database, 1, 2)
        async with limit.connection("a"):
            waiting = [asyncio.create_task(limit.acquire("a")) for _ in range(50)]
            await asyncio.sleep(0)
            with pytest.raises(PoolExhausted):
                await limit.acquire("a")
            async with limit.connection("b"):
                pass
            ends = await asyncio.gather(*waiting, return_exceptions=True)  # after the acquisition timeout
        assert {type(end) for end in ends} == {PoolExhausted}
        assert database.exhaustions == 51
        async with asyncio.timeout(5), limit.connection("a"):
            pass


async def timed(call: Any) -> float:
    began = time.monotonic()
    await call
    return time.monotonic() - began


async def outcomes_of(calls: list[Any]) -> set[tuple[grpc.StatusCode, str]]:
    """Return the outcomes of calls; every failure must carry a retry delay."""

    async def end(call: Any) -> tuple[grpc.StatusCode, str]:
        try:
            await call
        except grpc.aio.AioRpcError:
            found = await failure(call)
            assert tells_when_to_retry(found) or found.code is grpc.StatusCode.FAILED_PRECONDITION
            return found.code, found.reason
        return grpc.StatusCode.OK, ""

    return set(await asyncio.gather(*map(end, calls)))


CONFLICT = {(grpc.StatusCode.ABORTED, "CONFLICT")}


@pytest.mark.parametrize("kind", ["bookings", "a booking", "a resource", "messages"])
async def test_a_locked_row_of_a_salon_blocks_only_its_callers(stack: Stack, kind: str) -> None:
    """60 callers wait 2 s each for a lock of another session; they may use a quarter of the pool."""
    await salon(stack)
    await salon(stack, "salon-2")
    await resource(stack, "anna")
    made = await stack.booking.CreateBooking(booking_request())
    await stack.messaging.RecordMessage(message_request("wamid.0"))
    cancel = booking_pb2.UpdateBookingStatusRequest(
        salon_id=SALON, booking_code=made.booking_code, status=booking_pb2.BOOKING_STATUS_CANCELLED
    )
    cases: dict[str, tuple[str, Callable[[int], Any]]] = {
        "bookings": (SALON_ROW, lambda n: stack.booking.CreateBooking(booking_request(1_900_000_000 + n * 3600))),
        "a booking": ("SELECT FROM bookings FOR UPDATE", lambda n: stack.booking.UpdateBookingStatus(cancel)),
        "a resource": (
            "SELECT FROM resources FOR UPDATE",
            lambda n: stack.booking.UpsertResource(
                booking_pb2.UpsertResourceRequest(salon_id=SALON, resource_id="anna", name="Anna")
            ),
        ),
        "messages": (
            "SELECT FROM conversations FOR UPDATE",
            lambda n: stack.messaging.RecordMessage(message_request(f"wamid.{n + 1}")),
        ),
    }
    statement, call = cases[kind]
    others: list[Callable[[int], Any]] = [
        lambda n: stack.booking.CreateBooking(booking_request(1_900_000_000 + n * 3600, salon_id="salon-2")),
        lambda n: stack.booking.GetSalon(
            booking_pb2.GetSalonRequest(salon_id=SALON), metadata=(("cache-control", "no-cache"),)
        ),
        lambda n: stack.messaging.RecordMessage(message_request(f"wamid.{n}", salon_id="salon-2")),
        lambda n: stack.messaging.ListMessages(
            messaging_pb2.ListMessagesRequest(salon_id=SALON), metadata=(("cache-control", "no-cache"),)
        ),
    ]
    async with holding(stack.database_url, statement):
        callers = [call(number) for number in range(60)]
        first = asyncio.ensure_future(outcomes_of(callers[:5]))
        rest = asyncio.ensure_future(outcomes_of(callers[5:]))
        await until(lambda: waiting_for_a_lock(stack.database_url, 5))
        longest = max([await timed(other(number)) for number in range(5) for other in others])
        assert await waiting_for_a_lock(stack.database_url, 5)
        assert longest < WITHIN_SECONDS
        assert await first == CONFLICT
    assert await rest <= CONFLICT | {
        (grpc.StatusCode.OK, ""),
        (grpc.StatusCode.FAILED_PRECONDITION, "INVALID_TRANSITION"),
    }
