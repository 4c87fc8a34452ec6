"""The cost of a hit compared with cashews: same server, keys and values; CPU of this process, A B A B, medians."""

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from statistics import median
from typing import Any

import cashews
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from psycopg_pool import AsyncConnectionPool

from libs.cache import Cache, CacheSettings, Key
from parlor.booking.v1.booking_pb2 import Booking
from services.namespaces import NAMESPACES
from tests.cache.shop import Loaded

KEYS = 64
ROUNDS = 15
CALLS = 2048
VALUE = Booking(
    booking_id="0" * 36,
    booking_code="ABC234",
    salon_id="salon-123",
    customer_phone="+4915112345678",
    customer_name="Zoë Hartmann",
    start_time=Timestamp(seconds=1_800_000_000),
    end_time=Timestamp(seconds=1_800_003_600),
    revision=1,
    etag="1",
).SerializeToString()
Get = Callable[[int], Awaitable[bytes | None]]


@pytest.fixture
async def ours(database_url: str, redis_url: str) -> AsyncIterator[Get]:
    """Our read-through hit of a booking, which makes its key at each call."""
    async with AsyncConnectionPool(database_url, kwargs={"autocommit": True}, min_size=1, open=False) as pool:
        cache = Cache(CacheSettings(url=redis_url), pool.connection, bytes, NAMESPACES)
        await cache.open()
        bookings = cache.namespace("booking").tag("salon-123", "salon:")

        async def load(conn: Any) -> Loaded:
            cursor = await conn.execute("SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint")
            return Loaded((await cursor.fetchone())[0], VALUE)  # type: ignore[arg-type]

        def key(number: int) -> Key:
            return bookings.sub_tag("code", f"B{number}").key()

        async def get(number: int) -> bytes | None:
            return (await cache.get(key(number), load)).body

        await asyncio.gather(*map(get, range(KEYS)))
        await cache.settle()
        assert {(await cache.get(key(number), load)).source for number in range(KEYS)} == {"hit"}
        yield get
        await cache.close()


@pytest.fixture
async def theirs(redis_url: str) -> AsyncIterator[Get]:
    """The plain get of cashews, configured as documented."""
    cache = cashews.Cache()
    cache.setup(redis_url)
    await cache.init()

    async def get(number: int) -> bytes | None:
        found: bytes | None = await cache.get(f"booking:salon:{{salon-123}}:code:B{number}")
        return found

    for number in range(KEYS):
        await cache.set(f"booking:salon:{{salon-123}}:code:B{number}", VALUE, expire=300)
    yield get
    await cache.close()


async def cpu_us(get: Get, callers: int) -> float:
    """Return the CPU of a call, in us."""
    numbers = iter(range(CALLS))

    async def caller() -> None:
        for number in numbers:
            await get(number % KEYS)

    gc.collect()
    began = time.process_time_ns()
    await asyncio.gather(*(caller() for _ in range(callers)))
    return (time.process_time_ns() - began) / CALLS / 1000


@pytest.mark.filterwarnings("ignore:Call to deprecated close")  # raised in cashews
@pytest.mark.parametrize("callers", [1, 32])
async def test_a_hit_costs_no_more_than_one_of_cashews(
    ours: Get, theirs: Get, callers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert {await get(number) for get in (ours, theirs) for number in range(KEYS)} == {VALUE}
    rounds = [(await cpu_us(ours, callers), await cpu_us(theirs, callers)) for _ in range(ROUNDS)]
    mine, other = (median(figures) for figures in zip(*rounds, strict=True))
    with capsys.disabled():
        print(f"\n{callers} callers: ours {mine:.1f} us, cashews {other:.1f} us, ratio {mine / other:.2f}")
    assert mine / other <= 1.0
