"""A starting service preloads the likely next reads of busy salons."""

import asyncio

from parlor.booking.v1 import booking_pb2
from parlor.stats.v1 import stats_pb2
from services.busy_salons import BusySalon, busiest_salons
from tests.cache.shop import until
from tests.stack import SALON, Stack, booking_request, cached, rows, running, salon


async def busy(stack: Stack) -> BusySalon:
    """Create a salon with new bookings, one with more but old ones, and one without; return the first."""
    for salon_id in (SALON, "salon-2", "salon-3"):
        await salon(stack, salon_id)
    for number in range(3):
        await stack.booking.CreateBooking(booking_request(1_800_000_000 + 7200 * number, salon_id="salon-2"))
    rows(stack.database_url, "UPDATE bookings SET created_at = now() - interval '7 hours' RETURNING 1")
    await stack.booking.CreateBooking(booking_request())
    async with stack.servers["booking"].database.connection() as conn:
        [found] = await busiest_salons(conn)
    return found


async def test_a_starting_service_loads_the_reads_of_busy_salons(database_url: str, redis_url: str) -> None:
    async with running(database_url, redis_url) as stack:
        found = await busy(stack)
    assert (found.salon_id, found.phone_number_id) == (SALON, f"10{SALON}")
    async with running(database_url, redis_url, cache={"warm": 10}) as stack:
        booking, stats = (stack.servers[name].cache.counters for name in ("booking", "stats"))
        await until(lambda: (booking.warmed, stats.warmed) == (3, 1))
        await asyncio.gather(*(stack.servers[name].cache.settle() for name in ("booking", "stats")))
        by_phone = booking_pb2.GetSalonByPhoneNumberIdRequest(phone_number_id=found.phone_number_id)
        for call in (
            stack.booking.GetSalon(booking_pb2.GetSalonRequest(salon_id=SALON)),
            stack.booking.GetSalonByPhoneNumberId(by_phone),
            stack.booking.ListBookings(booking_pb2.ListBookingsRequest(salon_id=SALON, **found.today)),
            stack.stats.GetSalonStats(stats_pb2.GetSalonStatsRequest(salon_id=SALON, **found.this_month)),
        ):
            assert (await cached(call))[1] == "hit"
        assert (booking.misses, booking.warmed_hits, stats.misses, stats.warmed_hits) == (0, 3, 0, 1)


async def test_warming_pauses_while_rpcs_run(stack: Stack) -> None:
    server, over = stack.servers["booking"], asyncio.Event()
    assert not server.cache.warmer.busy()

    async def call() -> None:
        while not over.is_set():
            await salon(stack)

    calling = asyncio.create_task(call())
    await until(server.cache.warmer.busy)
    over.set()
    await calling
    await until(lambda: not server.cache.warmer.busy())
