"""Age, idleness, keepalive and graceful shutdown of a connection."""

import random
from typing import TYPE_CHECKING

import grpc

if TYPE_CHECKING:
    from libs.http2.connection import Connection

NOTICE_SECONDS = 1.0  # from the first GOAWAY to the second, for a client that does not answer the ping
AGE_SPREAD = 0.1  # so that connections opened together do not end together
SHUTDOWN = b"shutdown"  # opaque data of the ping that follows the first GOAWAY
KEEPALIVE = b"keepaliv"


class Lifetime:
    """The times of one connection, by the event loop's clock.

    `last_heard` is when the client last sent something, `last_active` when the connection last had a call.
    """

    def __init__(self, now: float) -> None:
        self.last_active = self.last_heard = now
        self.has_settings = False
        self._opened = now
        self._pinged: float | None = None
        self._retired: float | None = None
        self._age_share = random.uniform(1 - AGE_SPREAD, 1 + AGE_SPREAD)  # noqa: S311

    def shut_down(self, connection: "Connection", now: float) -> None:
        """Ask the client to open no more streams; the connection is closed when those that are open have ended."""
        if self._retired is None:
            self._retired = now
            # The answer to the ping means that no stream which the client opened before is on its way.
            connection.send_goaway(SHUTDOWN)

    def ping_acknowledged(self, connection: "Connection", data: bytes) -> None:
        """Finish the shutdown if it was the shutdown's ping."""
        self._pinged = None
        if self._retired is not None and data == SHUTDOWN:
            connection.send_goaway()

    def check(self, connection: "Connection", now: float) -> None:
        """End the connection if it is too old or idle, or its client does not respond; ping a silent client."""
        limits = connection.limits
        if self._retired is not None:
            if now - self._retired > NOTICE_SECONDS:
                connection.send_goaway()
            if now - self._retired > limits.max_connection_age_grace:
                connection.end(grpc.StatusCode.UNAVAILABLE, "the connection has ended")
        elif not self.has_settings:
            if now - self._opened > limits.handshake_timeout:
                connection.time_out()
        elif (limits.max_connection_age and now - self._opened > limits.max_connection_age * self._age_share) or (
            limits.max_connection_idle and now - self.last_active > limits.max_connection_idle
        ):
            connection.counters.connections_retired += 1
            self.shut_down(connection, now)
        if connection.is_stalled(now - limits.send_timeout):
            connection.time_out()
        elif self._pinged is not None:
            if now - max(self._pinged, self.last_heard) > limits.keepalive_timeout:
                connection.time_out()
        elif limits.keepalive_time and now - self.last_heard > limits.keepalive_time and self.has_settings:
            self._pinged = now
            connection.ping(KEEPALIVE)
