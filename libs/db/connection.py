"""A connection that stays registered with the event loop, and the cursor that reads its rows."""

import asyncio
from contextlib import suppress
from typing import Any, TypeVar

import psycopg
from psycopg.abc import PQGen
from psycopg.pq import ConnStatus, TransactionStatus
from psycopg.pq.abc import PGconn
from psycopg.waiting import READY_R, WAIT_R, Wait

from libs.db.encoding import undecoded
from libs.db.queries import Queries, TimedCursor

T = TypeVar("T")

CANCEL_SECONDS = 5.0


class Connection(psycopg.AsyncConnection[Any]):
    """A connection whose statements are counted in `queries`.

    `rows` is its cursor for rows that become bytes of messages; its results must be taken before the next await.
    """

    queries: Queries

    def __init__(self, pgconn: PGconn, *args: Any) -> None:
        """Take over what has been connected."""
        super().__init__(pgconn, *args)
        self.cursor_factory = TimedCursor
        self.rows = undecoded(self)
        self._watched = -1
        self._answer: asyncio.Future[None] | None = None

    async def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:  # noqa: ASYNC109
        """Wait as psycopg does, but for one registration of the socket instead of one a statement (a third, measured).

        What is not plain waiting for an answer is left to psycopg.
        """
        if timeout is None:
            try:
                state = next(gen)
                while state == WAIT_R:
                    await self._readable()
                    state = gen.send(READY_R)
            except StopIteration as end:
                if self.pgconn.status != ConnStatus.OK:
                    self._unwatch()  # at once: libpq has closed the socket, and its number may be another's soon
                answer: T = end.value
                return answer
            except asyncio.CancelledError:
                await self._cancel(gen)
                raise
            except BaseException:
                self._unwatch()  # the socket may be closed
                raise
            gen = _continued(gen, state)
        self._unwatch()
        return await super().wait(gen, interval, timeout)

    @property
    def watched(self) -> bool:
        """Whether the event loop looks at the socket."""
        return self._watched >= 0

    async def close(self) -> None:
        """Close the connection."""
        self._unwatch()
        await super().close()

    async def _cancel(self, gen: PQGen[Any]) -> None:
        """Have the server end the statement, and read what it answers; else close the connection."""
        try:
            with suppress(psycopg.Error):
                await self.cancel_safe(timeout=CANCEL_SECONDS)
                await self.wait(_continued(gen, WAIT_R), timeout=CANCEL_SECONDS)
        finally:
            if self.pgconn.transaction_status == TransactionStatus.ACTIVE:
                await self.close()

    def _readable(self) -> "asyncio.Future[None]":
        """Return a future that is done when there is something to read."""
        loop = asyncio.get_running_loop()
        if not self.watched:
            self._watched = self.pgconn.socket
            loop.add_reader(self._watched, self._told)
        self._answer = loop.create_future()
        return self._answer

    def _told(self) -> None:
        if self._answer is None or self._answer.done():
            self._unwatch()  # nobody reads: the loop would tell it for ever
        else:
            self._answer.set_result(None)

    def _unwatch(self) -> None:
        if self.watched:
            asyncio.get_running_loop().remove_reader(self._watched)
            self._watched = -1


def _continued(gen: PQGen[T], state: Wait) -> PQGen[T]:
    """Return a generator that goes on where another waits: that can't be begun again."""
    try:
        while True:
            state = gen.send((yield state))
    except StopIteration as end:
        answer: T = end.value
        return answer
