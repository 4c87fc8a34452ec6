"""Read leases: with `REDIS_WITHOUT=wait`, how long and for which tags a process may serve hits.

Every process reads the outbox often, and may serve hits for L after each reading, counted from before it was sent. A
write that had to use the outbox is answered once its tags are registered, or after L. By then every lease has ended
whose reading missed the rows, and a lease whose reading found them allows no hit of these tags.
"""

import time
from collections.abc import Collection
from functools import partial

# The clocks of two machines, each slewed by a time daemon, differ by no more than this share.
DRIFT = 0.001

# Return a time in s. This clock also runs while the process is stopped or the machine sleeps.
now = partial(time.clock_gettime, getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class ReadLease:
    """The lease of one process; none before the outbox was read."""

    def __init__(self, seconds: float) -> None:
        """Each reading of the outbox gives a lease of so many seconds."""
        self.seconds = seconds
        self._ends = 0.0
        self._excluded: Collection[str] = ()

    def renew(self, sent: float, excluded: Collection[str]) -> None:
        """Take a lease from when the outbox was asked, except for the tags (by version key) that it named."""
        self._ends = sent + self.seconds
        self._excluded = excluded

    def registered(self) -> None:
        """Include the excluded tags: they are registered, so that their old entries no longer count."""
        self._excluded = ()

    def covers(self, version_key: str) -> bool:
        """Return whether a read of a tag that begins now may be a hit."""
        return now() < self._ends and version_key not in self._excluded
