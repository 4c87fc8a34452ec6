"""A failed RPC is one line of the log, with IDs by which it can be found."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import psycopg
import pytest

from libs.server.failure_log import LINES_A_SECOND, trace_id
from ops.process import free_ports
from ops.up import SERVICES, Plan, Service, environments
from parlor.booking.v1 import booking_pb2 as pb
from parlor.booking.v1 import booking_pb2_grpc
from tests.load import until
from tests.locks import holding, waiting
from tests.stack import PHONE, booking_request

TRACE = "00000001234567890123456789abcdef"  # its digits look like a phone number
PARENT = ("traceparent", f"00-{TRACE}-00f067aa0ba902b7-01")
BOOKING = "parlor.booking.v1.BookingService"


class Booking:
    """A booking service in a process, and its log."""

    def __init__(self, service: Service, channel: grpc.aio.Channel, database_url: str) -> None:
        """Begin without salons."""
        self._log = service.log
        self.channel = channel
        self.stub: booking_pb2_grpc.BookingServiceAsyncStub = booking_pb2_grpc.BookingServiceStub(channel)
        self.database_url = database_url

    def lines(self) -> list[dict[str, Any]]:
        """Return the lines of failed RPCs; each line of the log must be JSON."""
        lines = map(json.loads, self._log.read_text().splitlines())
        return [line for line in lines if line["event"] == "rpc"]

    async def line(self) -> dict[str, Any]:
        """Return the only line of a failed RPC."""
        await until(lambda: bool(self.lines()))
        [line] = self.lines()
        return line


@pytest.fixture
async def booking(database_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[Booking]:
    [port] = free_ports(1)
    plan = Plan(tmp_path, None, False, None, dict.fromkeys(SERVICES, port), free_ports(1)[0])
    settings = environments(plan, database_url, redis_url)["booking"]
    with Service("booking", port, tmp_path / "booking.log", settings) as service:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Booking(service, channel, database_url)


FAILING: dict[str, tuple[str, Any, str, str]] = {
    "not found": ("GetSalon", pb.GetSalonRequest(salon_id="nobody"), "NOT_FOUND", "SALON_NOT_FOUND"),
    "invalid": ("GetSalon", pb.GetSalonRequest(), "INVALID_ARGUMENT", "INVALID_FIELD"),
    "a write of no salon": ("CreateBooking", booking_request(), "NOT_FOUND", "SALON_NOT_FOUND"),
    "an invalid write": ("CreateBooking", booking_request(salon_id=""), "INVALID_ARGUMENT", "INVALID_FIELD"),
    "no message": ("GetSalon", b"\xff\xff", "INVALID_ARGUMENT", "MALFORMED_REQUEST"),
}


@pytest.mark.parametrize("kind", FAILING)
async def test_a_failed_rpc_is_one_line_with_its_ids(booking: Booking, kind: str) -> None:
    method, request, code, reason = FAILING[kind]
    request_id = ""
    if "request_id" in getattr(type(request), "DESCRIPTOR", pb.GetSalonRequest.DESCRIPTOR).fields_by_name:
        request_id = request.request_id = str(uuid4())
    data = request if isinstance(request, bytes) else request.SerializeToString()
    call: Any = booking.channel.unary_unary(f"/{BOOKING}/{method}")
    with pytest.raises(grpc.aio.AioRpcError):
        await call(data, metadata=[PARENT])
    line = await booking.line()
    assert line["level"] == "info"
    assert (line["method"], line["code"], line["reason"]) == (f"{BOOKING}/{method}", code, reason)
    assert (line["trace_id"], line.get("request_id", "")) == (TRACE, request_id)
    assert 0 <= line["ms"] < 60_000


async def test_malformed_ids_and_texts_of_a_request_are_not_logged(booking: Booking) -> None:
    request = booking_request(request_id=PHONE, customer_name="Quincanary")
    for parent in (PHONE, f"00-{PHONE}-00f067aa0ba902b7-01"):
        with pytest.raises(grpc.aio.AioRpcError):
            await booking.stub.CreateBooking(request, metadata=[("traceparent", parent)])
    await until(lambda: len(booking.lines()) == 2)
    for line in booking.lines():
        assert "trace_id" not in line and "request_id" not in line
        assert PHONE[3:] not in str(line) and "Quincanary" not in str(line)


async def test_a_canceled_call_is_one_line_of_the_log(booking: Booking) -> None:
    request = booking_request(request_id=str(uuid4()))
    async with holding(booking.database_url, "LOCK TABLE salons") as other:
        call = booking.stub.CreateBooking(request, metadata=[PARENT])
        await waiting(other)
        call.cancel()
        line = await booking.line()
    assert (line["code"], line["trace_id"], line["request_id"]) == ("CANCELLED", TRACE, request.request_id)


async def test_a_failure_of_the_service_is_an_error_with_its_traceback(booking: Booking) -> None:
    with psycopg.connect(booking.database_url, autocommit=True) as conn:
        conn.execute("ALTER TABLE salons RENAME TO salons_gone")
    with pytest.raises(grpc.aio.AioRpcError):
        await booking.stub.GetSalon(pb.GetSalonRequest(salon_id="nobody"), metadata=[PARENT])
    line = await booking.line()
    assert (line["level"], line["reason"], line["trace_id"]) == ("error", "INTERNAL", TRACE)
    assert "UndefinedTable" in line["exception"]


async def test_lines_are_limited_by_method_and_reason_and_skipped_ones_are_counted(booking: Booking) -> None:
    count = 300

    async def fail(request: pb.GetSalonRequest) -> None:
        with pytest.raises(grpc.aio.AioRpcError):
            await booking.stub.GetSalon(request)

    loop = asyncio.get_running_loop()
    started = loop.time()
    await asyncio.gather(*(fail(pb.GetSalonRequest(salon_id="nobody")) for _ in range(count)))
    seconds = int(loop.time() - started) + 2  # including partial seconds
    await fail(pb.GetSalonRequest())  # another reason has lines left
    reasons = Counter(line["reason"] for line in booking.lines())
    assert reasons["INVALID_FIELD"] == 1
    assert LINES_A_SECOND <= reasons["SALON_NOT_FOUND"] <= seconds * LINES_A_SECOND
    await asyncio.sleep(1)
    await fail(pb.GetSalonRequest(salon_id="nobody"))
    lines = [line for line in booking.lines() if line["reason"] == "SALON_NOT_FOUND"]
    skipped = sum(line.get("skipped", 0) for line in lines)
    assert skipped > 0
    assert len(lines) + skipped == count + 1


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (f"00-{TRACE}-00f067aa0ba902b7-01", TRACE),
        (f"cc-{TRACE}-00f067aa0ba902b7-01-what-comes-later", TRACE),
        (f"ff-{TRACE}-00f067aa0ba902b7-01", None),
        (f"00-{'0' * 32}-00f067aa0ba902b7-01", None),
        (f"00-{TRACE.upper()}-00f067aa0ba902b7-01", None),
        (f"00-{TRACE}", None),
        (f"00-{TRACE}-00f067aa0ba902b7-01\n", None),
        (b"00", None),
        ("", None),
    ],
)
def test_a_trace_id_is_taken_from_a_valid_traceparent(value: Any, found: str | None) -> None:
    assert trace_id([("x-other", "x"), ("traceparent", value)]) == found
