"""Readers of the feeds of changes, for tests: of bookings or of messages, as the stub says."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc

from parlor.booking.v1 import booking_pb2
from parlor.messaging.v1 import messaging_pb2

LONGEST_SECONDS = 20


def feed_rpcs(stub: Any) -> tuple[Any, Any, Any, Any]:
    """Return the list and the stream of a stub, each as the RPC and the type of its requests."""
    if hasattr(stub, "WatchMessages"):
        requests: Any = messaging_pb2.ListMessageChangesRequest, messaging_pb2.WatchMessagesRequest
        return stub.ListMessageChanges, requests[0], stub.WatchMessages, requests[1]
    requests = booking_pb2.ListBookingChangesRequest, booking_pb2.WatchBookingsRequest
    return stub.ListBookingChanges, requests[0], stub.WatchBookings, requests[1]


def change_of(reply: Any) -> Any:
    """Return the change of a stream's reply, None for a sign of life."""
    name = reply.DESCRIPTOR.fields_by_number[1].name
    return getattr(reply, name) if reply.HasField(name) else None


class Watch:
    """A stream of changes. `token` is the last page_token."""

    def __init__(self, call: Any) -> None:
        """Begin with no token."""
        self.token = ""
        self.call = call

    async def reply(self) -> Any:
        """Return the next reply. Raises: AioRpcError at the stream's end; TimeoutError."""
        async with asyncio.timeout(LONGEST_SECONDS):
            reply = await self.call.read()
            if reply is grpc.aio.EOF:
                raise grpc.aio.AioRpcError(
                    await self.call.code(),
                    await self.call.initial_metadata(),
                    await self.call.trailing_metadata(),
                    await self.call.details(),
                )
        assert reply.page_token
        self.token = reply.page_token
        return reply

    async def changes(self, count: int) -> list[Any]:
        """Return the next changes."""
        found: list[Any] = []
        while len(found) < count:
            change = change_of(await self.reply())
            found += [change] if change is not None else []
        return found


@asynccontextmanager
async def watching(stub: Any, salon_id: str = "", token: str = "") -> AsyncIterator[Watch]:
    """Watch the changes of a salon, or of all; without a token the stream is at its beginning when the block begins."""
    *_, rpc, request = feed_rpcs(stub)
    call = rpc(request(salon_id=salon_id, page_token=token))
    watch = Watch(call)
    try:
        if not token:
            assert change_of(await watch.reply()) is None
        yield watch
    finally:
        call.cancel()


async def listed(stub: Any, **fields: Any) -> list[Any]:
    """Return all changes by pages, from the oldest on unless there is a page_token."""
    rpc, kind, *_ = feed_rpcs(stub)
    found: list[Any] = []
    request = kind(**{"from_start": "page_token" not in fields, **fields})
    while True:
        reply = await rpc(request)
        assert reply.next_page_token
        changes = getattr(reply, reply.DESCRIPTOR.fields_by_number[1].name)
        if not changes:
            return found
        found += changes
        request.from_start, request.page_token = False, reply.next_page_token
