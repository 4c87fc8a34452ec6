"""The context of a call, like grpc.aio's ServicerContext."""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn, Protocol, TypeAlias

import grpc

from libs.http2.framing import Head, Metadata

OnDone: TypeAlias = Callable[[Any], None]

log = logging.getLogger(__name__)

_CODES = {code.value[0]: code for code in grpc.StatusCode}


class Peer(Protocol):
    """The client of a call."""

    peer: str
    state: dict[str, Any]

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """Return the properties of the client's certificate; none without one."""


class Context(ABC):
    """The context of a call. It lacks some of grpc.aio's features, such as compression of replies."""

    __slots__ = (
        "_callbacks",
        "_code",
        "_details",
        "_head",
        "_peer",
        "_trailing",
        "deadline",
        "is_cancelled",
        "is_done",
    )

    def __init__(self, head: Head, peer: Peer) -> None:
        """`deadline` is a time of the event loop's clock."""
        self._head = head
        self._peer = peer
        self._code = 0
        self._details = ""
        self._trailing: Metadata = ()
        self._callbacks: list[OnDone] | None = None
        self.deadline: float | None = None
        self.is_cancelled = False
        self.is_done = False

    def invocation_metadata(self) -> Metadata:
        """Return the metadata of the request."""
        return self._head.metadata

    def peer(self) -> str:
        """Return the address of the client, such as `ipv4:127.0.0.1:40000`."""
        return self._peer.peer

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """Return the properties of the client's certificate; none without one."""
        return self._peer.auth_context()

    def connection_state(self) -> dict[str, Any]:
        """Return what handlers keep for the connection of this call; it ends with the connection. grpcio has none."""
        return self._peer.state

    def peer_identity_key(self) -> str | None:
        """Return the name of the property of `auth_context` that identifies the client."""
        known = self.auth_context()
        names = ("x509_subject_alternative_name", "x509_common_name")
        return next((name for name in names if name in known), None)

    def peer_identities(self) -> Iterable[bytes] | None:
        """Return the names of the client, None if it has no certificate."""
        key = self.peer_identity_key()
        return None if key is None else self.auth_context()[key]

    def time_remaining(self) -> float | None:
        """Return how many seconds are left, None without a deadline."""
        if self.deadline is None:
            return None
        return max(0.0, self.deadline - asyncio.get_running_loop().time())

    def set_trailing_metadata(self, trailing_metadata: Iterable[tuple[str, str | bytes]]) -> None:
        """Set the metadata sent with the status."""
        self._trailing = tuple(trailing_metadata)

    def trailing_metadata(self) -> Metadata:
        """Return the metadata sent with the status."""
        return self._trailing

    def set_code(self, code: grpc.StatusCode) -> None:
        """Set the status code."""
        self._code = code.value[0]

    def code(self) -> grpc.StatusCode:
        """Return the status code."""
        return _CODES[self._code]

    def set_details(self, details: str) -> None:
        """Set the text of the status."""
        self._details = details

    def details(self) -> str:
        """Return the text of the status."""
        return self._details

    async def abort(
        self, code: grpc.StatusCode, details: str = "", trailing_metadata: Iterable[tuple[str, str | bytes]] = ()
    ) -> NoReturn:
        """End the call with a status that is not OK. Raises: grpc.aio.AbortError, which the handler must not catch."""
        self._code = code.value[0] or grpc.StatusCode.UNKNOWN.value[0]
        self._details = details or self._details
        if trailing_metadata:
            self._trailing = tuple(trailing_metadata)
        self.finish()  # now, since the handler may catch the error or delay it
        raise grpc.aio.AbortError

    @abstractmethod
    def finish(self) -> None:
        """Send the status, once."""

    async def abort_with_status(self, status: grpc.Status) -> NoReturn:
        """End the call with a status that is not OK. Raises: as `abort` does."""
        await self.abort(status.code, status.details, status.trailing_metadata or ())

    def cancelled(self) -> bool:
        """Return whether the client has cancelled the call, or its deadline has passed."""
        return self.is_cancelled

    def done(self) -> bool:
        """Return whether the call has ended."""
        return self.is_done

    def add_done_callback(self, callback: OnDone) -> None:
        """Call a function with this context when the call has ended."""
        if self.is_done:
            callback(self)
        elif self._callbacks is None:
            self._callbacks = [callback]
        else:
            self._callbacks.append(callback)

    def end(self) -> None:
        """Mark the call as ended, and call the callbacks."""
        self.is_done = True
        callbacks, self._callbacks = self._callbacks, None
        for callback in callbacks or ():
            try:
                callback(self)
            except Exception:
                log.exception("a callback of a call failed: %s", self._head.path)
