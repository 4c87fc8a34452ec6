"""A full disk is reported and logged as such; calls that need no space are still answered."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import psycopg
import pytest
from google.rpc.error_details_pb2 import RetryInfo
from structlog.testing import capture_logs

from ops.servers import Postgres
from parlor.booking.v1 import booking_pb2 as pb
from tests.load import DAY, FIRST
from tests.stack import Stack, booking_request, failure, message_request, running, salon
from tests.test_errors import GET_SALON, assert_error


@pytest.mark.parametrize("table", ["bookings", "booking_requests", "messages", "salons"])
async def test_a_full_disk_is_reported_and_logged(stack: Stack, table: str) -> None:
    known = await salon(stack)
    with psycopg.connect(stack.database_url) as conn:
        conn.execute(
            "CREATE FUNCTION fill() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE 'no space left on device' USING ERRCODE = '53100'; END $$"
        )
        conn.execute(
            f"CREATE TRIGGER full_disk BEFORE INSERT OR UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION fill()".encode()
        )
    calls: dict[str, Callable[[], Any]] = {
        "bookings": lambda: stack.booking.CreateBooking(booking_request()),
        "booking_requests": lambda: stack.booking.CreateBooking(booking_request(request_id=str(uuid4()))),
        "messages": lambda: stack.messaging.RecordMessage(message_request()),
        "salons": lambda: stack.booking.UpsertSalon(pb.UpsertSalonRequest(salon=known)),
    }
    with capture_logs() as logged:
        error = await failure(calls[table]())
    assert_error(error, grpc.StatusCode.UNAVAILABLE, "DATABASE_FULL", RetryInfo)
    [line] = [line for line in logged if line.get("reason") == "DATABASE_FULL"]
    assert line["log_level"] == "error"
    assert await stack.booking.GetSalon(GET_SALON) == known


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m,mode=0700", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, check=False).returncode:  # noqa: S603 - ours
        pytest.skip("this user may not mount a small disk")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)  # noqa: S603, S607


async def test_writes_succeed_again_once_a_full_disk_has_space(
    own_postgres: Postgres, redis_url: str, small: Path
) -> None:
    ballast = small / "ballast"
    (small / "table").mkdir()
    async with running(own_postgres.dsn, redis_url) as stack:
        known = await salon(stack)
        with psycopg.connect(own_postgres.dsn, autocommit=True) as conn:
            conn.execute(f"CREATE TABLESPACE small LOCATION '{small / 'table'}'".encode())
            conn.execute("ALTER TABLE bookings SET TABLESPACE small")
        ballast.write_bytes(bytes(1_900_000))
        booked = 0
        while booked < 500:
            try:
                await stack.booking.CreateBooking(booking_request(FIRST + booked * DAY, notes="x" * 1000))
            except grpc.aio.AioRpcError:
                break
            booked += 1
        error = await failure(stack.booking.CreateBooking(booking_request(FIRST + booked * DAY, notes="x" * 1000)))
        assert_error(error, grpc.StatusCode.UNAVAILABLE, "DATABASE_FULL", RetryInfo)
        assert await stack.booking.GetSalon(GET_SALON) == known
        await stack.messaging.RecordMessage(message_request())
        ballast.unlink()
        await stack.booking.CreateBooking(booking_request(FIRST + booked * DAY, notes="x" * 1000))
