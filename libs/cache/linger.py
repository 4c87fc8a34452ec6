"""How long a look waits for others, to share one round trip with them.

grpc hands an RPC to the event loop in a wake-up of its own, so concurrent reads seldom fall into one tick, and each
would pay for a command, two wake-ups and a statement. Like a commit that waits for its siblings in Postgres, a look
waits until enough have come, but only while they did so in time. Whether they would can be told by trying only, so
that is tried now and then, the less often the more it failed (decision 0024).
"""

ENOUGH = 8  # looks that wait no longer
TRIES = 4  # in a row that find too few, before looks wait no more
SHORTEST_PAUSE, LONGEST_PAUSE = 0.016, 1.0  # between tries, in s


class Linger:
    """Decides for the looks of one process; times are in s, by one clock."""

    def __init__(self, seconds: float) -> None:
        """Let a look wait for `seconds` at most; 0: never."""
        self._seconds = seconds
        self._tries = 0
        self._pause = SHORTEST_PAUSE
        self._next_try = 0.0

    def wait(self, now: float, under_way: int) -> float:
        """Return how long a look waits that is the first to come while `under_way` others have no answer yet."""
        if not self._tries and under_way and now >= self._next_try:
            self._tries = TRIES
        return self._seconds if self._tries else 0

    def enough(self) -> None:
        """Take note that enough have come in time."""
        self._tries, self._pause = TRIES, SHORTEST_PAUSE

    def too_few(self, now: float) -> None:
        """Take note that time ran out."""
        self._tries -= 1
        if not self._tries:
            self._next_try = now + self._pause
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
