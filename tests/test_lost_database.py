"""A lost connection to the database, also during a commit; see test_faults for a killed database."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any
from uuid import uuid4

import grpc
import pytest
from google.rpc.error_details_pb2 import RetryInfo

from ops.servers import Postgres
from parlor.booking.v1 import booking_pb2 as pb
from tests.load import DAY, FIRST
from tests.stack import SALON, Stack, booking_request, failure, message_request, rows, running, salon, warm
from tests.test_errors import GET_SALON, assert_error
from tools.proxy import Proxy, proxy


@pytest.fixture
async def between(postgres: Postgres) -> AsyncIterator[Proxy]:
    """A proxy to Postgres."""
    async with proxy(postgres.port) as between:
        yield between


@pytest.fixture
async def stack(postgres: Postgres, between: Proxy, database_url: str, redis_url: str) -> AsyncIterator[Stack]:
    """The three services, behind the proxy."""
    async with running(database_url.replace(str(postgres.port), str(between.port)), redis_url) as stack:
        stack.database_url = database_url
        yield stack


@pytest.mark.parametrize("moment", ["cut_at", "cut_after"])
async def test_after_a_lost_commit_a_retry_with_the_same_request_id_is_safe(
    stack: Stack, between: Proxy, moment: str
) -> None:
    await salon(stack)
    request = booking_request(resource_id="anna", request_id=str(uuid4()))
    setattr(between, moment, b"COMMIT\0")
    error = await failure(stack.booking.CreateBooking(request))
    assert_error(error, grpc.StatusCode.UNAVAILABLE, "COMMIT_UNKNOWN", RetryInfo)
    booking = await stack.booking.CreateBooking(request)
    query = "SELECT booking_id::text FROM bookings"
    assert rows(stack.database_url, query) == [(booking.booking_id,)]
    listed = await stack.booking.ListBookings(pb.ListBookingsRequest(salon_id=SALON))
    assert list(listed.bookings) == [booking]


@pytest.mark.parametrize("moment", ["cut_at", "cut_after"])
@pytest.mark.parametrize("rpc", ["CreateBooking", "UpsertSalon", "RecordMessage"])
async def test_a_lost_commit_without_a_request_id_is_aborted(
    stack: Stack, between: Proxy, moment: str, rpc: str
) -> None:
    changed = await salon(stack)
    changed.name = "Other"
    calls: dict[str, Callable[[], Any]] = {
        "CreateBooking": lambda: stack.booking.CreateBooking(booking_request(resource_id="anna")),
        "UpsertSalon": lambda: stack.booking.UpsertSalon(pb.UpsertSalonRequest(salon=changed)),
        "RecordMessage": lambda: stack.messaging.RecordMessage(message_request()),
    }
    setattr(between, moment, b"COMMIT\0")
    assert_error(await failure(calls[rpc]()), grpc.StatusCode.ABORTED, "COMMIT_UNKNOWN")  # without a retry delay


async def test_a_connection_lost_before_the_commit_is_an_error_and_writes_nothing(stack: Stack, between: Proxy) -> None:
    await salon(stack)
    between.cut_at = b"INSERT INTO bookings"
    error = await failure(stack.booking.CreateBooking(booking_request()))
    assert_error(error, grpc.StatusCode.UNAVAILABLE, "DATABASE_UNAVAILABLE", RetryInfo)
    await stack.booking.CreateBooking(booking_request())
    assert rows(stack.database_url, "SELECT count(*) FROM bookings") == [(1,)]


TERMINATE = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename LIKE 'parlor_%'"


@pytest.mark.parametrize("times", [1, 5])
@pytest.mark.parametrize("what", ["sessions", "server"])
async def test_terminated_sessions_are_replaced(own_postgres: Postgres, redis_url: str, what: str, times: int) -> None:
    async with running(own_postgres.dsn, redis_url) as stack:
        known = await salon(stack)
        await warm(stack.booking.GetSalon, GET_SALON)
        for number in range(times):
            if what == "sessions":
                rows(own_postgres.dsn, TERMINATE)
            else:
                own_postgres.stop()
                own_postgres.start()
            async with asyncio.timeout(5):
                while True:
                    request = booking_request(FIRST + number * DAY, request_id=str(uuid4()))
                    try:
                        await stack.booking.CreateBooking(request)
                        break
                    except grpc.aio.AioRpcError as lost:
                        assert lost.code() == grpc.StatusCode.UNAVAILABLE
            assert await warm(stack.booking.GetSalon, GET_SALON) == known
        assert rows(own_postgres.dsn, "SELECT count(*) FROM bookings") == [(times,)]


async def test_without_a_database_cached_reads_are_answered_and_other_calls_fail_at_once(
    stack: Stack, between: Proxy
) -> None:
    known = await salon(stack)
    await warm(stack.booking.GetSalon, GET_SALON)
    between.refuse = True
    between.reset()
    async with asyncio.timeout(2):
        for _ in range(10):
            error = await failure(stack.booking.CreateBooking(booking_request()))
            assert_error(error, grpc.StatusCode.UNAVAILABLE, "DATABASE_UNAVAILABLE", RetryInfo)
            assert await warm(stack.booking.GetSalon, GET_SALON) == known
    between.refuse = False
    async with asyncio.timeout(10):
        while True:
            try:
                await stack.booking.CreateBooking(booking_request())
                break
            except grpc.aio.AioRpcError as lost:
                assert lost.code() == grpc.StatusCode.UNAVAILABLE
