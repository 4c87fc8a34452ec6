"""A standby that lacks acknowledged commits is promoted: no entry with the lost commits outlives the next poll."""

import asyncio
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest

from parlor.booking.v1 import booking_pb2
from tests.load import FIRST, until
from tests.stack import SALON, booking_request, running, salon
from tools.postgres_pair import Pair, pair

POLL_SECONDS = 1.0
BUSY_SECONDS = 0.5
LOST = 5
WITHOUT_REPLICATION = "local all all trust\nhost all all 127.0.0.1/32 trust\n"


@pytest.fixture
def both(tmp_path: Path) -> Iterator[Pair]:
    """A primary with an asynchronous standby."""
    with pair(tmp_path) as both:
        yield both


def stop_replication(both: Pair) -> None:
    """Make the standby fall behind."""
    (both.primary.data / "pg_hba.conf").write_text(WITHOUT_REPLICATION)
    with psycopg.connect(both.primary.dsn, autocommit=True) as conn:
        conn.execute("SELECT pg_reload_conf()")
        conn.execute("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_replication")


async def outcome(stub: Any, code: str, *metadata: tuple[str, str]) -> str:
    """Return the source of a booking's reply, or the status of its error."""
    call = stub.GetBookingByCode(
        booking_pb2.GetBookingByCodeRequest(salon_id=SALON, booking_code=code), timeout=1, metadata=metadata
    )
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return str(dict(await call.trailing_metadata())["x-cache"])


@pytest.mark.parametrize("mode", ["bounded", "wait"])
async def test_lost_commits_are_not_served_after_the_next_poll(both: Pair, redis_url: str, mode: str) -> None:
    async with running(both.url(), redis_url, cache={"without": mode}) as stack:
        await salon(stack)
        kept = (await stack.booking.CreateBooking(booking_request(FIRST))).booking_code
        both.caught_up()
        stop_replication(both)
        requests = [booking_request(FIRST + 3600 * n) for n in range(1, LOST + 1)]
        lost = [(await stack.booking.CreateBooking(request)).booking_code for request in requests]

        async def is_hit(code: str) -> bool:
            return await outcome(stack.booking, code) == "hit"

        for code in (kept, *lost):
            await until(partial(is_hit, code))
        both.primary.kill()
        await asyncio.to_thread(both.standby.promote)

        async def answers() -> bool:
            return await outcome(stack.booking, kept, ("cache-control", "no-cache")) == "bypass"

        await until(answers)
        back = time.monotonic()
        last_hit, found = back, {"hit"}
        while time.monotonic() < back + 3 * POLL_SECONDS:
            found = {await outcome(stack.booking, code) for code in lost}
            if found & {"hit", "near"}:
                last_hit = time.monotonic()
        assert last_hit - back < POLL_SECONDS + BUSY_SECONDS
        assert found == {"NOT_FOUND"}
        await until(partial(is_hit, kept))
        again = (await stack.booking.CreateBooking(requests[0])).booking_code  # its time is free again
        assert await outcome(stack.booking, again) in ("hit", "miss")
