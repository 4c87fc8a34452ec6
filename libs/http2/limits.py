"""Limits and counters of one server."""

from collections.abc import Mapping
from dataclasses import dataclass, field

MIB = 2**20


@dataclass(frozen=True)
class Limits:
    """Limits of a server; times are in seconds, sizes in bytes. For times of a connection 0 means no limit.

    `max_message` is the size of one decompressed request message; `max_messages` has that of single methods, by path.
    `max_receiving`, `max_sending` and `max_calls` limit all calls of the process together: the bytes of requests, the
    bytes of replies that clients have not taken, and the number of calls. A quarter of each is reserved for connections
    that hold little. A client has `receive_timeout` to send a request, and more time for a large one.
    """

    max_message: int = 16 * MIB
    max_messages: Mapping[str, int] = field(default_factory=dict)
    max_receiving: int = 48 * MIB
    max_sending: int = 48 * MIB
    max_calls: int = 4000
    max_metadata: int = 16 * 1024
    max_connections: int = 10_000
    max_concurrent_streams: int = 1000
    max_connection_age: float = 0
    max_connection_age_grace: float = 30
    max_connection_idle: float = 0
    keepalive_time: float = 60
    keepalive_timeout: float = 20
    send_timeout: float = 30
    receive_timeout: float = 30
    handshake_timeout: float = 10
    resets: tuple[int, int] = (1000, 200)
    """How many streams a client may reset: in a burst, and per second."""
    control_frames: tuple[int, int] = (1000, 100)
    """How many PING, SETTINGS, PRIORITY_UPDATE and empty DATA frames a client may send: in a burst, and per second."""

    def message_of(self, path: str) -> int:
        """Return the maximum size of a request message of a method, by its path."""
        return self.max_messages.get(path, self.max_message)


@dataclass
class Counters:
    """Counts since the server started; `connections`, `calls`, `receiving` and `sending` are current values."""

    connections: int = 0
    connections_opened: int = 0
    connections_refused: int = 0
    connections_retired: int = 0
    connections_timed_out: int = 0
    protocol_errors: int = 0
    floods: int = 0
    streams: int = 0
    streams_reset: int = 0
    calls_invalid: int = 0
    calls_refused: int = 0
    requests_refused: int = 0
    requests_too_large: int = 0
    requests_timed_out: int = 0
    replies_refused: int = 0
    deadlines_exceeded: int = 0
    calls: int = 0
    receiving: int = 0
    sending: int = 0


class TokenBucket:
    """Allows `burst` events at once, and `rate` per second."""

    __slots__ = ("_burst", "_rate", "_tokens", "_updated")

    def __init__(self, burst: int, rate: int, now: float) -> None:
        self._burst, self._rate, self._tokens, self._updated = burst, rate, float(burst), now

    def take(self, now: float) -> bool:
        """Take a token; return False if there is none."""
        self._tokens = min(self._burst, self._tokens + (now - self._updated) * self._rate)
        self._updated = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
