"""The IDs of messages, which order those of the same time as they arrived."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from secrets import randbits
from time import time_ns
from uuid import UUID

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_RANDOM_BITS = 22


class MessageIds:
    """Makes UUIDs of version 7 (RFC 9562): the ms of `created_at`, then the us of arrival, then random bits.

    Sorted by (created_at, message_id), messages are in the order of their times, and those of the same time in the
    order of their arrival. Each ID of a process has a later arrival than the one before, also within one us or if the
    clock is set back. Messages that different processes got are as exact as their clocks.
    """

    def __init__(self, clock_ns: Callable[[], int] = time_ns) -> None:
        """Begin; `clock_ns` returns the ns since 1970."""
        self._clock_ns = clock_ns
        self._arrival = 0

    def new(self, created_at: datetime) -> str:
        """Return the ID of a message that arrives now; `created_at` is from 1970 on."""
        self._arrival = max(self._arrival + 1, self._clock_ns() // 1000)
        arrival = self._arrival  # 52 bits, until 2112
        version_and_high = 0x7000 | arrival >> 40 & 0xFFF
        low = (arrival & 0xFF_FFFF_FFFF) << _RANDOM_BITS | randbits(_RANDOM_BITS)
        milliseconds = (created_at - _EPOCH) // _MILLISECOND
        return str(UUID(int=milliseconds << 80 | version_and_high << 64 | 2 << 62 | low))


message_ids = MessageIds()  # of this process
