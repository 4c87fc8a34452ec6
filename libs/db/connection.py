"""A connection that stays registered with the event loop, and its short ways for look-ups and writes.

Between the tick that sends a statement and the one that reads its answer, psycopg adds the socket to the loop and
removes it again, and what it does besides waiting costs as much once more: together half of a look-up (decision 0025).
"""

import asyncio
import os
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from itertools import count
from typing import Any, TypeVar

import psycopg
from psycopg.abc import PQGen
from psycopg.adapt import PyFormat, Transformer
from psycopg.errors import error_from_result
from psycopg.generators import execute
from psycopg.pq import ConnStatus, ExecStatus, Format, TransactionStatus
from psycopg.pq.abc import PGconn, PGresult
from psycopg.waiting import READY_R, WAIT_R, WAIT_RW, Wait

from libs.db.history import HISTORY, History
from libs.db.statement import Statement, columns, nothing, numbered, raw_cursor
from libs.db.stats import STATEMENT_LOST, QueryStats, TimedCursor

T = TypeVar("T")

CANCEL_SECONDS = 1.0  # then the connection is closed: its server may hang
POKE_SECONDS = 0.5  # after which one who waits looks for an answer unasked

BEGIN, COMMIT, ROLLBACK = (Statement(word, {}, nothing) for word in ("BEGIN", "COMMIT", "ROLLBACK"))


# The function of the server that waits for synchronous standbys: it names itself in its warning, in any language.
_REPLICATION_WAIT = "SyncRepWaitForLSN"


class NotReplicated(psycopg.OperationalError):
    """A commit is done on the primary only: its wait for the synchronous standby was canceled."""


class Connection(psycopg.AsyncConnection[Any]):
    """A connection whose statements are counted in `queries`.

    `rows` is its cursor for rows that become bytes of messages; its results must be taken before the next await.
    `on_pooled` is called when its server turns out to be shared with others, so that nothing may stay prepared.
    `may_begin` says whether `run` may begin a transaction.

    A COMMIT is never canceled: if its caller is, `ending` is the task that waits for the answer. Until it is done, the
    connection can't be used. `began` is when the last statement was sent, by time.perf_counter.
    """

    queries: QueryStats
    history: History | None = None
    began = 0.0
    committing = False
    ending: asyncio.Task[None] | None = None
    on_pooled: Callable[[], None] = staticmethod(lambda: None)
    may_begin: Callable[[], bool] = staticmethod(lambda: True)

    def __init__(self, pgconn: PGconn, *args: Any) -> None:
        """Take over what has been connected."""
        super().__init__(pgconn, *args)
        self.cursor_factory = TimedCursor
        self.rows = raw_cursor(self)
        self._adapt = Transformer(self.rows)
        self.add_notice_handler(self._notice)
        self._not_replicated = False
        self._prepared_names: dict[str, bytes] = {}
        # Behind a pooler other processes' statements may be on the same server: names must differ from theirs.
        self._token = secrets.token_hex(6)
        self._names = count()
        self._watched = -1
        self._answer: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def look_up(self, query: str, params: Sequence[Any]) -> tuple[PGresult, list[Any]]:
        """Return the result, and the rows as `encoder` takes them, of a statement with `$1`, `$2`...

        The connection must be in autocommit. The texts must be few: each stays prepared, unless none may be.
        """
        adapt = self._adapt
        started = self.began = time.perf_counter()
        try:
            values = adapt.dump_sequence(params, [PyFormat.TEXT] * len(params))
            result = await self._answer_to(query, values)
        except Exception:
            self.queries.errors += 1
            raise
        finally:
            self.queries.add(query, time.perf_counter() - started)
        adapt.set_pgresult(result)
        return result, adapt.load_rows(0, result.ntuples, tuple)

    async def _answer_to(self, query: str, values: Sequence[Any], *, again: bool = False) -> PGresult:
        pgconn = self.pgconn
        if self.prepare_threshold is None:
            pgconn.send_query_params(query.encode(), values, result_format=Format.BINARY)
            return await self._result()
        try:
            name = self._prepared_names.get(query) or await self._prepare(query)
            pgconn.send_query_prepared(name, values, result_format=Format.BINARY)
            return await self._result()
        except STATEMENT_LOST:
            if again:
                self.pooled()
            else:
                await self.statement_lost()
            return await self._answer_to(query, values, again=True)

    async def statement_lost(self) -> None:
        """Prepare anew from now on, after psycopg deallocated all statements; or no more, if the server is shared."""
        self._prepared_names.clear()
        if self.pgconn.transaction_status == TransactionStatus.IDLE:
            self.pgconn.send_query_params(b"SELECT pg_backend_pid()::text", [])
            result = await self._result()
            if int(result.get_value(0, 0) or 0) == self.pgconn.backend_pid:
                return
        self.pooled()

    def pooled(self) -> None:
        """Prepare nothing from now on."""
        self.prepare_threshold = None
        self.on_pooled()

    async def read_history(self) -> bool:
        """Read the line of history; return whether the server is shared with others, by a pooler.

        `history` is None where the server is a standby. Raises: psycopg.Error.
        """
        self.began = time.perf_counter()
        self.pgconn.send_query_params(HISTORY.encode(), [])
        result = await self._result()
        pid, system, timeline = ((result.get_value(0, column) or b"").decode() for column in range(3))
        self.history = History(int(system), int(timeline, 16)) if int(timeline, 16) else None
        return int(pid) != self.pgconn.backend_pid

    async def _prepare(self, query: str) -> bytes:
        name = f"parlor_{self._token}_{next(self._names)}".encode()
        self.pgconn.send_prepare(name, query.encode())
        await self._result()
        self._prepared_names[query] = name
        return name

    async def _result(self) -> PGresult:
        """Return the one result of what was sent: as `wait(execute(...))` does, without its generators."""
        pgconn, result = self.pgconn, None
        if not pgconn.flush():
            try:
                await self._readable()
            except asyncio.CancelledError:
                await self._cancel(execute(pgconn))
                raise
            pgconn.consume_input()
            if not pgconn.is_busy():
                result = pgconn.get_result()
        if result is None or pgconn.is_busy() or pgconn.get_result() is not None:
            self._unwatch()  # not all is here, see wait
            rest = await self.wait(execute(pgconn))
            result = result or rest[0]
        if result.status not in (ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK):
            raise error_from_result(result)
        return result

    async def run(self, *statements: Statement[Any]) -> list[Any]:
        """Send statements in one round trip; return the result of each.

        A statement that fails ends the row: those after it are not executed. Raises: its error, unless the `read` of
        one before it raises.
        """
        started = self.began = time.perf_counter()
        is_idle = self.pgconn.transaction_status == TransactionStatus.IDLE
        if is_idle and statements[0] is BEGIN and not self.may_begin():
            raise psycopg.OperationalError("too many commits wait for the synchronous standby")
        try:
            try:
                return self._read(statements, await self._send(statements))
            except STATEMENT_LOST:
                if is_idle:
                    await self.rollback()
                await self.statement_lost()
                if not is_idle:
                    raise
            return self._read(statements, await self._send(statements))
        except psycopg.Error:
            self.queries.errors += 1
            raise
        finally:
            self.queries.add_all([statement.query for statement in statements], time.perf_counter() - started)

    async def commit(self) -> None:
        """Commit."""
        await self.run(COMMIT)

    async def rollback(self) -> None:
        """Roll back; psycopg would deallocate all prepared statements, too."""
        if self.pgconn.transaction_status != TransactionStatus.IDLE:
            await self.run(ROLLBACK)

    async def _send(self, statements: Sequence[Statement[Any]]) -> list[PGresult]:
        """Return the results of statements, up to the first error.

        By libpq's pipeline mode: psycopg's own costs more than the round trips that it saves.
        """
        pgconn = self.pgconn
        sent = []
        for statement in statements:
            query, names = numbered(statement.query)
            values = self._adapt.dump_sequence([statement.params[name] for name in names], [PyFormat.TEXT] * len(names))
            is_kept = names and self.prepare_threshold is not None  # BEGIN and the like have no plan worth keeping
            name = (self._prepared_names.get(query) or await self._prepare(query)) if is_kept else b""
            sent.append((query, name, values))
        pgconn.enter_pipeline_mode()
        try:
            for query, name, values in sent:
                if name:
                    pgconn.send_query_prepared(name, values, result_format=Format.BINARY)
                else:
                    pgconn.send_query_params(query.encode(), values, result_format=Format.BINARY)
            pgconn.pipeline_sync()
            self.committing = statements[-1] is COMMIT
            results = await self.wait(_results(pgconn))
        finally:
            if self.ending is None:
                self._end_pipeline()
        if self._not_replicated:
            self._not_replicated = False
            raise NotReplicated("the wait for the synchronous standby was canceled")
        return results

    def _end_pipeline(self) -> None:
        self.committing = False
        if self.pgconn.status == ConnStatus.OK:
            self.pgconn.exit_pipeline_mode()

    async def _end(self, commit: Awaitable[Any]) -> None:
        """Wait for the answer to a COMMIT that nobody else waits for any more."""
        try:
            with suppress(psycopg.Error):
                await commit
        finally:
            self._end_pipeline()

    def _notice(self, notice: psycopg.errors.Diagnostic) -> None:
        if notice.source_function == _REPLICATION_WAIT:
            self._not_replicated = True

    def _read(self, statements: Sequence[Statement[Any]], results: Sequence[PGresult]) -> list[Any]:
        found = []
        for statement, result in zip(statements, results, strict=False):
            if result.status not in (ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK):
                raise error_from_result(result)
            rows: list[Any] = []
            if result.ntuples:
                self._adapt.set_pgresult(result)
                rows = self._adapt.load_rows(0, result.ntuples, tuple)
            found.append(statement.read(columns(result, statement.query), rows))
        return found

    async def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:  # noqa: ASYNC109
        """Wait as psycopg does, but for one registration of the socket instead of one a statement.

        What is not plain waiting for an answer is left to psycopg.
        """
        try:
            state = next(gen)
            while state == WAIT_R and timeout is None:
                await self._readable()
                state = gen.send(READY_R)
                self._unwatch()  # not all is here; if that is for an error of the socket, uvloop has forgotten it
        except StopIteration as end:
            answer: T = end.value
            return answer
        except asyncio.CancelledError:
            if not self.committing:
                await self._cancel(_continued(gen, WAIT_R))
            elif self.ending is None:
                self.ending = asyncio.create_task(self._end(self.wait(_continued(gen, WAIT_R))))
            else:
                self.hang_up()
            raise
        if not self.committing:
            return await super().wait(_continued(gen, state), interval, timeout)
        rest = asyncio.ensure_future(super().wait(_continued(gen, state), interval, timeout))
        try:
            return await asyncio.shield(rest)
        except asyncio.CancelledError:
            self.ending = asyncio.create_task(self._end(rest))
            raise

    def is_overdue(self, seconds: float) -> bool:
        """Return whether a statement has been under way for longer than that."""
        is_active = self.pgconn.transaction_status == TransactionStatus.ACTIVE
        return is_active and time.perf_counter() - self.began > seconds

    def hang_up(self) -> None:
        """Break the connection from this side, without a word to the server, which may never answer.

        The statement under way fails with an OperationalError, and so does the next one. The socket stays open until
        then: its number must not be reused while the loop watches it.
        """
        with suppress(OSError, psycopg.OperationalError), socket.socket(fileno=os.dup(self.pgconn.socket)) as shared:
            shared.shutdown(socket.SHUT_RDWR)

    async def close(self) -> None:
        """Close the connection."""
        await super().close()
        self._unwatch()

    async def _cancel(self, gen: PQGen[Any]) -> None:
        """Have the server end the statement, and read what it answers; else close the connection."""
        try:
            with suppress(psycopg.Error):
                await self.cancel_safe(timeout=CANCEL_SECONDS)
                await self.wait(gen, timeout=CANCEL_SECONDS)
        finally:
            if self.pgconn.transaction_status == TransactionStatus.ACTIVE:
                await self.close()

    def _readable(self) -> "asyncio.Future[None]":
        """Return a future that is done when there is something to read."""
        loop = asyncio.get_running_loop()
        if self._watched < 0:
            # A number of our own: libpq closes its socket as it likes, and the next connection gets that number.
            self._watched = os.dup(self.pgconn.socket)
            loop.add_reader(self._watched, self._told)
        if self._timer is None:
            self._timer = loop.call_later(POKE_SECONDS, self._poke)
        self._answer = loop.create_future()
        return self._answer

    def _told(self) -> None:
        if self._answer is None or self._answer.done():
            self._unwatch()  # nobody reads: the loop would tell it for ever
        else:
            self._answer.set_result(None)

    def _poke(self) -> None:
        self._timer = None
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(None)

    def _unwatch(self) -> None:
        if self._watched >= 0:
            asyncio.get_running_loop().remove_reader(self._watched)
            os.close(self._watched)
            self._watched = -1


def _results(pgconn: PGconn) -> PQGen[list[PGresult]]:
    """Return the results of what was sent in pipeline mode."""
    while pgconn.flush():
        if (yield WAIT_RW) & READY_R:
            pgconn.consume_input()
    results: list[PGresult] = []
    yield WAIT_R
    pgconn.consume_input()
    while True:
        while pgconn.is_busy():
            yield WAIT_R
            pgconn.consume_input()
        result = pgconn.get_result()  # None at the end of each statement
        if result is not None:
            if result.status == ExecStatus.PIPELINE_SYNC:
                return results
            results.append(result)


def _continued(gen: PQGen[T], state: Wait) -> PQGen[T]:
    """Return a generator that goes on where another waits: that can't be begun again."""
    while True:
        try:
            state = gen.send((yield state))
        except StopIteration as end:
            answer: T = end.value
            return answer
