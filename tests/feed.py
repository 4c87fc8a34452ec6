"""Readers of the feed of booking changes, for tests."""

from __future__ import annotations  # the AsyncStubs exist in the .pyi only

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc

from parlor.booking.v1 import booking_pb2 as pb
from parlor.booking.v1 import booking_pb2_grpc

LONGEST_SECONDS = 20


class Watch:
    """A stream of WatchBookings. `token` is the last page_token."""

    def __init__(self, call: Any) -> None:
        """Begin with no token."""
        self.token = ""
        self.call = call

    async def reply(self) -> pb.WatchBookingsResponse:
        """Return the next reply. Raises: AioRpcError at the stream's end; TimeoutError."""
        async with asyncio.timeout(LONGEST_SECONDS):
            found = await self.call.read()
            if found is grpc.aio.EOF:
                raise grpc.aio.AioRpcError(
                    await self.call.code(),
                    await self.call.initial_metadata(),
                    await self.call.trailing_metadata(),
                    await self.call.details(),
                )
        reply: pb.WatchBookingsResponse = found
        assert reply.page_token
        self.token = reply.page_token
        return reply

    async def changes(self, count: int) -> list[pb.BookingChange]:
        """Return the next changes."""
        found: list[pb.BookingChange] = []
        while len(found) < count:
            reply = await self.reply()
            found += [reply.booking_change] if reply.HasField("booking_change") else []
        return found


@asynccontextmanager
async def watching(
    stub: booking_pb2_grpc.BookingServiceAsyncStub, salon_id: str = "", token: str = ""
) -> AsyncIterator[Watch]:
    """Watch the changes of a salon, or of all; without a token the stream is at its beginning when the block begins."""
    call: Any = stub.WatchBookings(pb.WatchBookingsRequest(salon_id=salon_id, page_token=token))
    watch = Watch(call)
    try:
        if not token:
            assert not (await watch.reply()).HasField("booking_change")
        yield watch
    finally:
        call.cancel()


async def listed(stub: booking_pb2_grpc.BookingServiceAsyncStub, **fields: Any) -> list[pb.BookingChange]:
    """Return all changes by pages, from the oldest on unless there is a page_token."""
    found: list[pb.BookingChange] = []
    request = pb.ListBookingChangesRequest(**{"from_start": "page_token" not in fields, **fields})
    while True:
        reply = await stub.ListBookingChanges(request)
        assert reply.next_page_token
        if not reply.booking_changes:
            return found
        found += reply.booking_changes
        request.from_start, request.page_token = False, reply.next_page_token
