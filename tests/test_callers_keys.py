"""Keys that change, and claims of other types, as the services' callers see them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from libs.server.auth import tokens as tokens_module
from parlor.booking.v1 import booking_pb2 as pb
from parlor.booking.v1 import booking_pb2_grpc
from tests.callers import Callers, Issuer, bearer, with_tokens
from tests.stack import (
    SALON,
    Stack,
    booking_request,
    failure,
    read_failure,
    salon,
)
from tests.test_tokens import claims_of_other_types

GET = pb.GetSalonRequest(salon_id=SALON)
GET_SALON = "parlor.booking.v1.BookingService.GetSalon"


@pytest.fixture
async def stack(database_url: str, redis_url: str, tmp_path: Path, issuer: Issuer) -> AsyncIterator[Stack]:
    """The services with POLICY."""
    async with with_tokens(database_url, redis_url, tmp_path, issuer) as stack:
        yield stack


async def test_a_token_of_a_removed_key_is_refused_once_another_token_made_the_keys_be_read(
    stack: Stack, issuer: Issuer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens_module, "PAUSE_SECONDS", 0)
    await salon(stack)
    async with Callers(stack, issuer, "booking") as callers, stack.channel("booking") as channel:
        watching: Any = booking_pb2_grpc.BookingServiceStub(channel).WatchBookings(pb.WatchBookingsRequest())
        await watching.read()
        method = "parlor.booking.v1.BookingService.GetSalon"
        assert await callers.outcome("owner", method, GET) is None
        renewed = Issuer()
        renewed.kids = {algorithm: f"{algorithm}-2" for algorithm in renewed.keys}
        (tmp_path / "jwks.json").write_text(json.dumps(renewed.jwks()))
        assert await callers.outcome("owner", method, GET) is None  # nothing has read the keys again
        async with Callers(stack, renewed, "booking") as others:
            assert await others.outcome("owner", method, GET) is None
        error = await callers.outcome("owner", method, GET)
        assert error is not None and error.reason == "UNAUTHENTICATED"
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            async with asyncio.timeout(10):
                while True:
                    await watching.read()
        assert read_failure(ended.value).reason == "UNAUTHENTICATED"


async def test_a_stream_goes_on_when_a_key_is_added(
    stack: Stack, issuer: Issuer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens_module, "PAUSE_SECONDS", 0)
    await salon(stack)
    async with stack.channel("booking") as channel:
        watching: Any = booking_pb2_grpc.BookingServiceStub(channel).WatchBookings(pb.WatchBookingsRequest())
        await watching.read()
        renewed = Issuer()
        renewed.kids = {algorithm: f"{algorithm}-2" for algorithm in renewed.keys}
        both = issuer.jwks()["keys"] + renewed.jwks()["keys"]
        (tmp_path / "jwks.json").write_text(json.dumps({"keys": both}))
        async with Callers(stack, renewed, "booking") as others:
            assert await others.outcome("owner", "parlor.booking.v1.BookingService.GetSalon", GET) is None
        await stack.booking.CreateBooking(booking_request())
        async with asyncio.timeout(10):
            while not (await watching.read()).HasField("booking_change"):
                pass


async def test_signed_claims_of_other_types_are_refused_by_the_service(stack: Stack, issuer: Issuer) -> None:
    for claims in claims_of_other_types():
        async with bearer(issuer.token("admin", **claims))(f"127.0.0.1:{stack.servers['booking'].port}") as channel:
            booking: Any = booking_pb2_grpc.BookingServiceStub(channel)
            assert (await failure(booking.GetSalon(GET))).reason == "UNAUTHENTICATED", claims
            watching = booking.WatchBookings(pb.WatchBookingsRequest(salon_id=SALON))
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                await watching.read()
            assert read_failure(ended.value).reason == "UNAUTHENTICATED", claims
