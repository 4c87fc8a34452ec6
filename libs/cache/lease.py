"""Until when, and of which tags, a process may serve hits while writers without Redis wait for it (setting `wait`).

A process looks for pending rows often and may serve hits for L after the look, counted from before it was sent. A
write that had to leave its tags pending is answered when they have been registered, or after L: by then every lease
has ended whose look did not see the rows, and a lease whose look did see them covers no hit of these tags.
"""

import time
from collections.abc import Collection

# The clocks of two machines, each slewed by a time daemon, differ by no more than this share.
DRIFT = 0.001
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def now() -> float:
    """Return a time in s that goes on while the process is stopped or the machine sleeps."""
    return time.clock_gettime(_CLOCK)


class Lease:
    """The lease of one process; none before the first look."""

    def __init__(self, seconds: float) -> None:
        """Each look gives a lease of so many seconds."""
        self.seconds = seconds
        self._ends = 0.0
        self._pending: Collection[str] = ()

    def renew(self, sent: float, pending: Collection[str]) -> None:
        """Take a lease from when a look was sent, but for the tags that it found pending."""
        self._ends = sent + self.seconds
        self._pending = pending

    def registered(self) -> None:
        """Include the tags that were pending: their old entries don't count any more."""
        self._pending = ()

    def covers(self, tag: str) -> bool:
        """Say whether a read of a tag that begins now may be a hit."""
        return now() < self._ends and tag not in self._pending
