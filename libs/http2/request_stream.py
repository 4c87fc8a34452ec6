"""The messages of a streaming request that its handler has not read."""

import asyncio
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from libs.http2.connection import Connection

MESSAGE_BYTES = 128  # memory that a message takes besides its bytes
UNREAD_BYTES = 256 * 1024  # above it the client's window is not extended


class RequestStream:
    """A queue of messages, each with whether it is compressed. While it is long the client can't send more."""

    __slots__ = ("_arrival", "_connection", "_messages", "_stream_id", "_unacknowledged", "_unread", "is_ended")

    def __init__(self, connection: "Connection", stream_id: int) -> None:
        self.is_ended = False
        self._connection = connection
        self._stream_id = stream_id
        self._messages: deque[tuple[bool, bytes]] = deque()
        self._arrival: asyncio.Future[None] | None = None
        self._unread = 0
        self._unacknowledged = 0

    def add(self, message: tuple[bool, bytes]) -> None:
        """Add a message."""
        self._unread += MESSAGE_BYTES + len(message[1])
        self._messages.append(message)

    def received(self, size: int, end: bool) -> None:
        """Count data whose messages are added, and continue a reader that waits."""
        self.is_ended = end
        self._unacknowledged += size
        self._acknowledge()
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)

    async def next(self) -> tuple[bool, bytes] | None:
        """Return the next message, None at the end of the request."""
        while not self._messages:
            if self.is_ended:
                return None
            self._arrival = asyncio.get_running_loop().create_future()
            await self._arrival
        return self._messages.popleft()

    def has_read(self, message: bytes) -> None:
        """Count a message as read: the client may send more."""
        self._unread -= MESSAGE_BYTES + len(message)
        if self._unacknowledged:
            self._acknowledge()
            self._connection.flush_soon()

    def close(self) -> None:
        """Acknowledge all of a closed stream: its data count against the connection's window."""
        self._unread = 0
        self._acknowledge()

    def _acknowledge(self) -> None:
        if self._unacknowledged and self._unread <= UNREAD_BYTES:
            size, self._unacknowledged = self._unacknowledged, 0
            self._connection.acknowledge(self._stream_id, size)
