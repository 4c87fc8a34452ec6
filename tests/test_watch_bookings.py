"""WatchBookings: what was missed, then what comes, on a stream."""

import asyncio
import os
import time
from typing import Any

import grpc
import psycopg
import pytest

from libs.server import changes, feed
from parlor.booking.v1 import booking_pb2 as pb
from services.booking.changes import booking_changes
from tests.feed import Watch, listed, watching
from tests.http2_abuse.neighbor import waited_ns
from tests.load import until
from tests.stack import SALON, Stack, booking_request, executed, quiet, read_failure, rows, running, salon
from tests.test_booking_changes import INSERT, now_on

MANY = """
    INSERT INTO booking_changes (salon_id, type, booking_code)
    SELECT '{}', 'CREATED', n FROM generate_series(1, {}) AS n RETURNING 1"""


async def end(watch: Watch) -> Any:
    """Read a stream to its end; return what its error told."""
    while True:
        try:
            await watch.reply()
        except grpc.aio.AioRpcError as error:
            return read_failure(error)


async def test_a_change_comes_at_once(stack: Stack) -> None:
    await salon(stack)
    took = []
    async with watching(stack.booking, SALON) as watch:
        for number in range(20):
            booking = await stack.booking.CreateBooking(booking_request(1_800_000_000 + 3600 * number))
            began, waited = time.perf_counter(), waited_ns(os.getpid())  # waited: for a CPU, in ns
            [change] = await watch.changes(1)
            took.append(time.perf_counter() - began - (waited_ns(os.getpid()) - waited) / 1e9)
            assert (change.booking_code, change.revision) == (booking.booking_code, 1)
    assert sorted(took)[-2] < 0.3, took


async def test_a_watcher_first_gets_what_it_missed(stack: Stack) -> None:
    await salon(stack)
    async with watching(stack.booking, SALON) as watch:
        await stack.booking.CreateBooking(booking_request())
        await watch.changes(1)
    missed = [await stack.booking.CreateBooking(booking_request(1_800_000_000 + 7200 * n)) for n in (1, 2, 3)]
    async with watching(stack.booking, SALON, watch.token) as again:
        new = await stack.booking.CreateBooking(booking_request())
        codes = [change.booking_code for change in await again.changes(4)]
    assert codes == [booking.booking_code for booking in [*missed, new]]


async def test_list_and_watch_take_each_other_s_tokens(stack: Stack) -> None:
    await salon(stack)
    token = await now_on(stack)
    bookings = [await stack.booking.CreateBooking(booking_request(1_800_000_000 + 7200 * n)) for n in range(3)]
    async with watching(stack.booking, token=token) as watch:
        [change] = await watch.changes(1)
    rest = await listed(stack.booking, page_token=watch.token)
    assert [each.booking_code for each in [change, *rest]] == [booking.booking_code for booking in bookings]


async def test_watchers_of_a_salon_see_no_other_salon(stack: Stack) -> None:
    async with (
        watching(stack.booking, "one") as one,
        watching(stack.booking, "two") as two,
        watching(stack.booking) as both,
    ):
        for salon_id in ("one", "two", "one"):
            await salon(stack, salon_id)
        assert [change.salon_id for change in await both.changes(3)] == ["one", "two", "one"]
        assert [change.salon_id for change in await one.changes(2)] == ["one", "one"]
        assert [change.salon_id for change in await two.changes(1)] == ["two"]


async def test_a_change_that_commits_late_comes_to_a_watcher(stack: Stack) -> None:
    async with watching(stack.booking) as watch:
        with psycopg.connect(stack.database_url) as slow:
            slow.execute(INSERT, [SALON, "SLOW"])
            rows(stack.database_url, MANY.format(SALON, 1))
            await asyncio.sleep(3 * feed.POLL_SECONDS)
            slow.commit()
        assert [change.booking_code for change in await watch.changes(2)] == ["SLOW", "1"]


async def test_nothing_is_left_out_between_catching_up_and_live_changes(stack: Stack) -> None:
    """Watchers begin while changes are written all the time."""
    token, over = await now_on(stack, salon_id="s"), asyncio.Event()

    async def write() -> None:
        async with await psycopg.AsyncConnection.connect(stack.database_url, autocommit=True) as conn:
            number = 0
            while not over.is_set():
                number += 1
                await conn.execute(INSERT, ["s", str(number)])

    async def read() -> list[str]:
        async with watching(stack.booking, "s", token) as watch:
            return [change.booking_code for change in await watch.changes(1500)]

    writer = asyncio.create_task(write())
    readers = []
    for _ in range(10):
        readers.append(asyncio.create_task(read()))
        await asyncio.sleep(0.05)
    seen = await asyncio.gather(*readers)
    over.set()
    await writer
    assert all(codes == [str(number) for number in range(1, 1501)] for codes in seen)


async def test_a_silent_stream_has_a_token_every_while(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "KEEPALIVE_SECONDS", 1)
    table = booking_changes(stack.servers["booking"].database).table
    await salon(stack)
    async with watching(stack.booking, SALON) as watch:
        tokens = [watch.token]
        for _ in range(3):
            assert not (await watch.reply()).HasField("booking_change")
            tokens.append(watch.token)
        cursors = [table.cursor(SALON, token) for token in tokens]
        assert len({cursor.position for cursor in cursors}) == 1
        times = [cursor.time for cursor in cursors]
        assert times == sorted(set(times))  # each is valid for 7 days from when it was sent
        booking = await stack.booking.CreateBooking(booking_request())
        assert (await watch.changes(1))[0].booking_code == booking.booking_code
    async with watching(stack.booking, SALON, tokens[-1]) as again:
        assert (await again.changes(1))[0].booking_code == booking.booking_code


async def test_silence_while_the_feed_can_not_be_read_is_no_sign_of_life(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "KEEPALIVE_SECONDS", 0.5)
    monkeypatch.setattr(feed, "STALE_SECONDS", 0.5)
    async with watching(stack.booking) as watch:
        with psycopg.connect(stack.database_url) as conn:
            conn.execute("ALTER TABLE booking_changes RENAME TO away")
            conn.commit()
            told = await end(watch)
            conn.execute("ALTER TABLE away RENAME TO booking_changes")
    assert (told.code.name, told.reason) == ("UNAVAILABLE", "DATABASE_UNAVAILABLE")
    async with watching(stack.booking, token=watch.token) as again:
        await salon(stack)
        assert len(await again.changes(1)) == 1


@pytest.mark.parametrize(
    ("fields", "reason", "names"),
    [
        ({"salon_id": "no salon!"}, "INVALID_FIELD", ["salon_id"]),
        ({"page_token": "nonsense"}, "INVALID_FIELD", ["page_token"]),
    ],
)
async def test_a_bad_request_is_refused(stack: Stack, fields: Any, reason: str, names: list[str]) -> None:
    told = await end(Watch(stack.booking.WatchBookings(pb.WatchBookingsRequest(**fields))))
    assert (told.code.name, told.reason, told.fields) == ("INVALID_ARGUMENT", reason, names)


async def test_bytes_that_are_no_request_are_refused(stack: Stack) -> None:
    async with stack.channel("booking") as channel:
        call: Any = channel.unary_stream("/parlor.booking.v1.BookingService/WatchBookings")
        watch = Watch(call(b"\xff\xff"))
        told = await end(watch)
    assert told.reason == "MALFORMED_REQUEST"


async def test_an_expired_token_is_refused(stack: Stack) -> None:
    table = booking_changes(stack.servers["booking"].database).table
    cursor = table.cursor("", await now_on(stack))
    old = table.token("", cursor._replace(time=cursor.time - changes.TOKEN_AGE - changes.HOUR))
    told = await end(Watch(stack.booking.WatchBookings(pb.WatchBookingsRequest(page_token=old))))
    assert (told.code.name, told.reason) == ("FAILED_PRECONDITION", "CURSOR_EXPIRED")


async def test_a_drain_ends_streams_at_once_and_their_tokens_go_on(database_url: str, redis_url: str) -> None:
    async with running(database_url, redis_url) as stack:
        await salon(stack)
        async with watching(stack.booking) as watch, watching(stack.booking, SALON) as other:
            began = time.perf_counter()
            draining: asyncio.Future[None] = asyncio.ensure_future(stack.servers["booking"].drain())
            for each in (watch, other):
                told = await end(each)
                assert (told.code.name, told.reason) == ("UNAVAILABLE", "DRAINING")
                assert int(told.trailing["grpc-retry-pushback-ms"]) > 0
            await draining
            assert time.perf_counter() - began < 5  # DRAIN_TIMEOUT is 30
    async with running(database_url, redis_url) as stack:
        await salon(stack)
        async with watching(stack.booking, token=watch.token) as again:
            assert len(await again.changes(1)) == 1


async def test_a_watcher_that_reads_slowly_is_dropped(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one reads each thousand before the next is written, so it is never too far behind."""
    monkeypatch.setattr(feed, "SLOW_SECONDS", 0.2)
    options = [("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0)]
    address = f"127.0.0.1:{stack.servers['booking'].port}"
    async with (
        grpc.aio.insecure_channel(address, options=options) as channel,
        watching(stack.booking, "s") as good,
    ):
        call: Any = channel.unary_stream(
            "/parlor.booking.v1.BookingService/WatchBookings",
            pb.WatchBookingsRequest.SerializeToString,
            pb.WatchBookingsResponse.FromString,
        )
        slow = Watch(call(pb.WatchBookingsRequest(salon_id="s")))
        await slow.reply()
        for _ in range(30):
            rows(stack.database_url, MANY.format("s", 1000))
            assert len(await good.changes(1000)) == 1000
        told = await end(slow)
        assert (told.code.name, told.reason) == ("RESOURCE_EXHAUSTED", "SLOW_READER")
        rest = await listed(stack.booking, salon_id="s", page_token=slow.token, page_size=200)
        assert len(rest) > 1000
        assert rest[-1].booking_code == "1000"


async def test_streams_have_a_limit_of_their_own(database_url: str, redis_url: str) -> None:
    settings = {"max_watchers": 2, "max_concurrent_rpcs": 1, "request_timeout": 1000}
    async with running(database_url, redis_url, server=settings) as stack:
        async with watching(stack.booking), watching(stack.booking) as watch:
            told = await end(Watch(stack.booking.WatchBookings(pb.WatchBookingsRequest())))
            assert (told.code.name, told.reason) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
            await asyncio.sleep(1.5)
            await salon(stack)
            assert len(await watch.changes(1)) == 1

        async def has_room() -> bool:
            try:
                async with watching(stack.booking):
                    return True
            except grpc.aio.AioRpcError:
                return False

        await until(has_room)


async def test_nothing_is_polled_without_a_watcher(database_url: str, redis_url: str) -> None:
    async with quiet(database_url, redis_url) as stack:
        async with watching(stack.booking):
            before = await executed(stack, "booking")
            await asyncio.sleep(5 * feed.POLL_SECONDS)
            assert await executed(stack, "booking") - before >= 2

        async def is_quiet() -> bool:
            before = await executed(stack, "booking")
            await asyncio.sleep(5 * feed.POLL_SECONDS)
            return await executed(stack, "booking") == before

        await until(is_quiet)


async def test_a_silent_stream_outlives_the_limits_of_its_connection(database_url: str, redis_url: str) -> None:
    times = ("max_connection_idle", "keepalive_time", "keepalive_timeout", "send_timeout", "receive_timeout")
    async with running(
        database_url, redis_url, server={**dict.fromkeys(times, 1000), "request_timeout": 2000}
    ) as stack:
        async with watching(stack.booking) as watch:
            await asyncio.sleep(4)
            await salon(stack)
            assert len(await watch.changes(1)) == 1


async def test_a_stream_ends_with_its_connection_s_age_and_its_token_goes_on(database_url: str, redis_url: str) -> None:
    settings = {"max_connection_age": 1000, "max_connection_age_grace": 200}
    async with running(database_url, redis_url, server=settings) as stack:
        token, seen, ended = "", list[str](), 0
        async with asyncio.timeout(30):
            while ended < 2:
                async with watching(stack.booking, token=token) as watch:
                    try:
                        while True:
                            rows(stack.database_url, MANY.format("s", 1))
                            seen += [change.booking_code for change in await watch.changes(1)]
                            await asyncio.sleep(0.05)
                    except grpc.aio.AioRpcError as error:
                        assert error.code() == grpc.StatusCode.UNAVAILABLE
                        token, ended = watch.token, ended + 1
        seen += [change.booking_code for change in await listed(stack.booking, page_token=token)]
        assert len(seen) == len(await listed(stack.booking))
