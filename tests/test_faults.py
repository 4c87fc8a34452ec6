"""Replies of the services during and after outages of Valkey, Postgres, a connection or another service."""

import asyncio
import hmac
import time
from itertools import pairwise
from typing import Any

import grpc
import psycopg
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ops.servers import Postgres, Valkey, postgres_url
from ops.up import SERVICES
from parlor.booking.v1 import booking_pb2
from parlor.messaging.v1 import messaging_pb2
from parlor.ops.v1 import ops_pb2
from parlor.stats.v1 import stats_pb2
from tests.load import (
    DAY,
    FIRST,
    Load,
    Writer,
    all_connected,
    running_load,
    tells_when_to_retry,
    until,
    waiting_for_a_lock,
)
from tests.stack import PHONE, SALON, SECRET, Stack, failure, message_request, running, salon, warm, webhook_body

AT_ONCE_SECONDS = 3  # the pool alone would wait 20 s


async def test_a_restart_of_valkey_under_load_fails_no_call_and_hides_no_write(
    database_url: str, own_valkey: Valkey
) -> None:
    async with running(database_url, own_valkey.url) as stack:
        writers = await prepared(stack, 6)
        async with running_load(writers) as load:
            await load.until_answered(500)
            assert load.hits()
            await asyncio.to_thread(own_valkey.kill)
            await load.until_answered(500)
            own_valkey.launch()
            await until(lambda: all_connected(stack))
            returned = len(load.calls)
            await load.until_answered(500)
        assert load.failed == []
        assert load.hits(returned)
        assert sum(call.source == "bypass" for call in load.calls)


async def test_calls_fail_at_once_while_postgres_is_down_and_succeed_within_two_seconds_of_its_return(
    own_postgres: Postgres, redis_url: str
) -> None:
    async with running(own_postgres.dsn, redis_url) as stack:
        writers = await prepared(stack, 6)
        await salon(stack, "quiet")
        quiet = booking_pb2.GetSalonRequest(salon_id="quiet")
        await warm(stack.booking.GetSalon, quiet)
        async with running_load(writers) as load:
            await load.until_answered(300)
            await asyncio.to_thread(own_postgres.kill)  # a blocked event loop would lose Valkey, too
            await load.until_failed(200)
            await until(lambda: is_all(stack, health_pb2.HealthCheckResponse.NOT_SERVING))
            assert set((await health(stack, "")).values()) == {health_pb2.HealthCheckResponse.SERVING}
            for _ in range(50):
                assert (await stack.booking.GetSalon(quiet, timeout=AT_ONCE_SECONDS)).salon_id == "quiet"
            own_postgres.launch()
            await until(lambda: accepts_connections(own_postgres))
            returned = time.monotonic()
            await until(lambda: is_all(stack, health_pb2.HealthCheckResponse.SERVING), 2)
            await stack.booking.ListSalons(booking_pb2.ListSalonsRequest(), timeout=2)
            assert time.monotonic() - returned < 2
            failed = len(load.failed)
            await load.until_answered(300)
        assert len(load.failed) == failed
        assert_failed_at_once(load)


def assert_failed_at_once(load: Load) -> None:
    """Check every call that failed while Postgres was down."""
    failed = [(call, call.failure) for call in load.calls if call.failure]
    unknown = [found for _, found in failed if found.reason == "COMMIT_UNKNOWN"]  # some have no request_id
    assert {found.code for found in unknown} <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED}
    known = [found for _, found in failed if found.reason != "COMMIT_UNKNOWN"]
    assert {found.code for found in known} == {grpc.StatusCode.UNAVAILABLE}
    assert {found.reason for found in known} <= {"DATABASE_UNAVAILABLE", "BOOKING_UNAVAILABLE"}
    assert all(map(tells_when_to_retry, known))
    assert max(call.seconds for call, _ in failed) < AT_ONCE_SECONDS


async def test_a_service_started_without_postgres_serves_as_soon_as_it_is_up(
    own_postgres: Postgres, redis_url: str
) -> None:
    await asyncio.to_thread(own_postgres.kill)  # a blocked event loop would lose Valkey, too
    async with running(own_postgres.dsn, redis_url) as stack:
        assert await is_all(stack, health_pb2.HealthCheckResponse.NOT_SERVING)
        found = await failure(stack.booking.ListSalons(booking_pb2.ListSalonsRequest(), timeout=AT_ONCE_SECONDS))
        assert found.reason == "DATABASE_UNAVAILABLE"
        own_postgres.launch()
        await until(lambda: accepts_connections(own_postgres))
        await until(lambda: is_all(stack, health_pb2.HealthCheckResponse.SERVING), 2)
        await stack.booking.ListSalons(booking_pb2.ListSalonsRequest(), timeout=2)


async def test_128_concurrent_statements_share_a_pool_of_20(stack: Stack) -> None:
    """Each of these calls needs a separate statement: they are not batched."""
    await salon(stack)
    days = [Timestamp(seconds=FIRST + number * DAY) for number in range(128 + 365)]
    lengths: dict[str, Any] = {"duration": Duration(seconds=2700)}
    rpcs: dict[str, tuple[Any, list[Any]]] = {
        "booking": (
            stack.booking.SearchAvailability,
            [
                booking_pb2.SearchAvailabilityRequest(salon_id=SALON, start_time=start, end_time=end, **lengths)
                for start, end in pairwise(days[:129])
            ],
        ),
        "messaging": (
            stack.messaging.SearchMessages,
            [messaging_pb2.SearchMessagesRequest(salon_id=SALON, query=f"word{number}") for number in range(128)],
        ),
        "stats": (
            stack.stats.GetSalonStats,
            [
                stats_pb2.GetSalonStatsRequest(salon_id=SALON, start_time=start, end_time=end)
                for start, end in zip(days, days[365:], strict=False)
            ],
        ),
    }
    for name, (rpc, requests) in rpcs.items():
        before = await database_metrics(stack, name)
        await asyncio.gather(*map(rpc, requests))
        after = await database_metrics(stack, name)
        assert after.queries.queries_executed >= before.queries.queries_executed + 128
        assert (after.pool.exhaustions, after.pool.connection_errors, after.pool.limit) == (0, 0, 20)
        assert 1 <= after.pool.total <= 20


async def test_an_exhausted_pool_is_reported_and_recovers(database_url: str, redis_url: str) -> None:
    settings = {"connection_limit": 1, "pool_timeout": 1}
    async with running(database_url, redis_url, database=settings) as stack:
        await salon(stack)
        async with await psycopg.AsyncConnection.connect(database_url) as holder:
            await holder.execute("LOCK TABLE messages")
            blocked = asyncio.ensure_future(stack.messaging.RecordMessage(message_request()))
            await until(lambda: waiting_for_a_lock(database_url, 1))
            request = messaging_pb2.ListConversationsRequest(salon_id="salon-1")
            found = await failure(stack.messaging.ListConversations(request, timeout=AT_ONCE_SECONDS))
            assert (found.code, found.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "POOL_EXHAUSTED")
            assert tells_when_to_retry(found)
            assert (await database_metrics(stack, "messaging")).pool.exhaustions >= 1
            await holder.rollback()
        await asyncio.gather(blocked, return_exceptions=True)  # may have exceeded the lock timeout
        await stack.messaging.ListConversations(request, timeout=AT_ONCE_SECONDS)


async def test_messages_of_known_salons_do_not_need_the_booking_service(stack: Stack) -> None:
    await salon(stack, "known")
    await salon(stack, "new")
    await stack.messaging.RecordMessage(message_request("wamid.1", salon_id="known"))
    await stack.servers["booking"].drain()
    found = await failure(stack.messaging.RecordMessage(message_request("wamid.1", salon_id="new"), timeout=10))
    assert (found.code, found.reason) == (grpc.StatusCode.UNAVAILABLE, "BOOKING_UNAVAILABLE")
    assert tells_when_to_retry(found)
    text = {"id": "wamid.3", "from": PHONE[1:], "timestamp": "1800000000", "type": "text", "text": {"body": "hi"}}
    payload = webhook_body("10new", messages=[text])
    found = await failure(stack.messaging.IngestWebhook(signed(payload), timeout=10))
    assert (found.code, found.reason) == (grpc.StatusCode.UNAVAILABLE, "BOOKING_UNAVAILABLE")
    assert tells_when_to_retry(found)
    await stack.messaging.RecordMessage(
        message_request("wamid.2", salon_id="known", phone_number="+4915112345679"), timeout=AT_ONCE_SECONDS
    )


def signed(payload: bytes) -> messaging_pb2.IngestWebhookRequest:
    """Return the request of a webhook body, as WhatsApp would sign it."""
    signature = hmac.new(SECRET.encode(), payload, "sha256").hexdigest()
    return messaging_pb2.IngestWebhookRequest(payload=payload, signature=f"sha256={signature}")


async def prepared(stack: Stack, count: int) -> list[Writer]:
    """Return writers, each with a different salon."""
    writers = [Writer(stack, f"salon-{number}") for number in range(count)]
    await asyncio.gather(*(writer.prepare() for writer in writers))
    return writers


async def database_metrics(stack: Stack, name: str) -> ops_pb2.DatabaseMetrics:
    """Return the database metrics of a service."""
    return await stack.ops[name].GetDatabaseMetrics(ops_pb2.GetDatabaseMetricsRequest())


async def health(stack: Stack, *names: str) -> dict[str, int]:
    """Return the health of each service, under its name or under the given names."""
    found = {}
    for name, full_name in SERVICES.items():
        async with stack.channel(name) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            for asked in names or [full_name]:
                found[name] = (await stub.Check(health_pb2.HealthCheckRequest(service=asked), timeout=2)).status
    return found


async def is_all(stack: Stack, status: int) -> bool:
    """Return whether every service has this health under its name."""
    return set((await health(stack)).values()) == {status}


async def accepts_connections(server: Postgres) -> bool:
    """Return whether a session can be opened."""
    try:
        conn = await psycopg.AsyncConnection.connect(postgres_url(server.port, "postgres"), connect_timeout=2)
    except psycopg.OperationalError:
        return False
    await conn.close()
    return True
