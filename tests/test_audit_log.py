"""The audit log: what it contains, and what can't fill it or break a call."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from libs.server.auth import audit as audit_module
from parlor.booking.v1 import booking_pb2 as pb
from tests.callers import Callers, Issuer, bearer, jwt_settings, with_tokens
from tests.locks import SALONS, holding, waiting
from tests.stack import SALON, Stack, booking_request, running, salon

GET = pb.GetSalonRequest(salon_id=SALON)


@pytest.fixture
async def stack(database_url: str, redis_url: str, tmp_path: Path, issuer: Issuer) -> AsyncIterator[Stack]:
    """The services with POLICY."""
    async with with_tokens(database_url, redis_url, tmp_path, issuer) as stack:
        yield stack


async def test_a_full_disk_under_the_audit_log_fails_no_call(
    database_url: str, redis_url: str, tmp_path: Path, issuer: Issuer
) -> None:
    (tmp_path / "audit.log").symlink_to("/dev/full")
    with capture_logs() as logged:
        async with with_tokens(database_url, redis_url, tmp_path, issuer) as stack:
            await salon(stack, resources=["anna"])
            await stack.booking.CreateBooking(booking_request())
            async with Callers(stack, issuer, "booking") as callers:
                error = await callers.outcome("nothing", "parlor.booking.v1.BookingService.GetSalon", GET)
                assert error is not None and error.reason == "METHOD_NOT_ALLOWED"
            watching: Any = stack.booking.WatchBookings(pb.WatchBookingsRequest())
            await watching.read()
            watching.cancel()
            await stack.servers["booking"].reload()
            (tmp_path / "audit.log").unlink()
            await stack.servers["booking"].reload()
            await salon(stack, "salon-2", [])
    [line] = [line for line in logged if line["event"] == "audit"]
    assert (line["log_level"], line["lost"]) == ("error", 1)
    assert line["error"] == "AUDIT_LOG can't be written: No space left on device"
    [written] = [json.loads(text) for text in (tmp_path / "audit.log").read_text().splitlines()]
    assert (written["salon_id"], written["lost"]) == ("salon-2", 3)


async def test_calls_refused_before_their_caller_is_known_cannot_fill_the_audit_log(
    database_url: str, redis_url: str, tmp_path: Path, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_module, "MOST_LIMITED", 5)
    settings = jwt_settings(tmp_path, issuer) | {"max_concurrent_rpcs": 1}
    connect = bearer(issuer.token("admin"))
    limits = {"lock_timeout": 60_000, "query_timeout": 60_000}  # one call waits for a lock meanwhile
    async with running(database_url, redis_url, server=settings, database=limits, connect=connect) as stack:
        await salon(stack)
        began = time.monotonic()
        async with holding(database_url, SALONS) as other, Callers(stack, issuer, "booking") as callers:
            held = asyncio.ensure_future(stack.booking.CreateBooking(booking_request()))
            await waiting(other)
            for _ in range(10):
                method = "parlor.booking.v1.BookingService.UpsertSalon"
                calls = (callers.outcome("", method, pb.UpsertSalonRequest()) for _ in range(50))
                assert {error and error.reason for error in await asyncio.gather(*calls)} == {"OVERLOADED"}
            await other.rollback()
            await held
    lines = [json.loads(line) for line in (tmp_path / "audit.log").read_text().splitlines()]
    strangers = [line for line in lines if "caller" not in line]
    assert {line["reason"] for line in strangers} == {"OVERLOADED"}
    assert len(strangers) <= 5 * (time.monotonic() - began + 2)
    assert len(lines) == len(strangers) + 2  # those of a known caller are all there


async def test_the_audit_log_has_each_mutation_and_each_refusal(stack: Stack, issuer: Issuer, tmp_path: Path) -> None:
    request_id = "6e6e3a60-43ba-4ab9-8d2a-7b1a3d6f2c11"
    await salon(stack)
    await stack.booking.GetSalon(GET)
    await stack.booking.UpsertResource(
        pb.UpsertResourceRequest(salon_id=SALON, resource_id="anna", name="Anna", request_id=request_id)
    )
    async with Callers(stack, issuer, "booking") as callers:
        method = "parlor.booking.v1.BookingService.GetSalon"
        for caller in ("", "nothing", "elsewhere", "+4915112345678"):
            assert await callers.outcome(caller, method, GET)
    lines = [json.loads(line) for line in (tmp_path / "audit.log").read_text().splitlines()]
    assert {line.pop("event") for line in lines} == {"audit"}
    assert all(line.pop("time").endswith("+00:00") for line in lines)
    assert all(line.pop("peer").startswith("ipv4:127.0.0.1:") for line in lines)
    service = "parlor.booking.v1.BookingService"
    refused = {"method": f"{service}/GetSalon", "code": "PERMISSION_DENIED"}
    assert lines == [
        {"caller": "admin", "method": f"{service}/UpsertSalon", "salon_id": SALON, "code": "OK"},
        {
            **{"caller": "admin", "method": f"{service}/UpsertResource", "salon_id": SALON},
            **{"request_id": request_id, "code": "OK"},
        },
        {"method": f"{service}/GetSalon", "code": "UNAUTHENTICATED", "reason": "UNAUTHENTICATED"},
        {"caller": "nothing", **refused, "reason": "METHOD_NOT_ALLOWED"},
        {"caller": "elsewhere", **refused, "salon_id": SALON, "reason": "SALON_NOT_ALLOWED"},
        {"caller": "+49********678", **refused, "reason": "METHOD_NOT_ALLOWED"},
    ]
