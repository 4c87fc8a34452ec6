"""A connection with a short path for the statements of RPCs, on psycopg's wrapper of libpq (psycopg.pq).

psycopg's cursors add the socket to the event loop for each answer and remove it again. That and their bookkeeping cost
half of a cold read: with cursors, cold reads take 5-10 % more CPU at 32 in flight, 20-25 % more one by one (decision
0025). `run` leaves the socket in the loop. Cursors still work, for statements that are sent less often.
"""

import asyncio
import os
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from itertools import count
from typing import Any

import psycopg
from psycopg.adapt import PyFormat, Transformer
from psycopg.errors import error_from_result
from psycopg.pq import ExecStatus, Format, TransactionStatus
from psycopg.pq.abc import PGconn, PGresult
from psycopg.types.numeric import Int8BinaryLoader
from psycopg.types.string import ByteaBinaryLoader

from libs.db.history import HISTORY, History
from libs.db.statement import Statement, names_and_rows, no_result, numbered
from libs.db.stats import STATEMENT_LOST, QueryStats, TimedCursor

CANCEL_SECONDS = 1.0  # then the connection is closed: its server may hang
POLL_SECONDS = 0.5  # how often a waiting statement reads although the event loop reported nothing

BEGIN, COMMIT, ROLLBACK = (Statement(query, {}, no_result) for query in ("BEGIN", "COMMIT", "ROLLBACK"))
_BACKEND_PID = Statement("SELECT pg_backend_pid()", {}, lambda _, rows: int(rows[0][0]))
_READ_HISTORY = Statement(HISTORY, {}, lambda _, rows: rows[0])
_SUCCESS = (ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK)
# The column names of each query text. Reading them from each result costs more than encoding its rows.
_column_names: dict[str, list[str]] = {}
# The function of the server that waits for synchronous standbys. Its warning names it in any language.
_REPLICATION_WAIT = "SyncRepWaitForLSN"


class NotReplicated(psycopg.OperationalError):
    """A commit is done on the primary only: its wait for the synchronous standby was canceled."""


class Connection(psycopg.AsyncConnection[Any]):
    """A connection whose statements are counted in `queries`.

    `on_pooled` is called when the connection's server turns out to be shared by a pooler, so that no process may leave
    a statement prepared. `began` is when the last statement was sent, by time.perf_counter. A statement may take
    `allowed_seconds`, if that is more than others may.

    `run` prepares at most `most_prepared` statements. Cursors must prepare none: connect with `prepare_threshold=None`.
    psycopg names theirs alike in every process, so behind a pooler a cursor could run the statement of another process
    and return its rows.

    A COMMIT is never canceled: if its caller is, `ending` is the task that waits for the answer. The connection can't
    be used until that task is done. While `endings` has `most_endings` such tasks, no transaction begins.
    """

    queries: QueryStats
    most_prepared = 0
    history: History | None = None
    began = 0.0
    allowed_seconds = 0.0
    committing = False
    ending: asyncio.Task[None] | None = None
    on_pooled: Callable[[], None] = staticmethod(lambda: None)
    endings: Collection[asyncio.Task[None]] = ()
    most_endings = 1

    def __init__(self, pgconn: PGconn, *args: Any) -> None:
        """Prepare a new connection."""
        super().__init__(pgconn, *args)
        self.cursor_factory = TimedCursor
        self.add_notice_handler(self._on_notice)
        types = self.cursor(binary=True)
        for name in ("text", "jsonb"):
            types.adapters.register_loader(name, ByteaBinaryLoader)
        types.adapters.register_loader("timestamptz", Int8BinaryLoader)
        self._adapt = Transformer(types)
        self._not_replicated = False
        self._prepared_names: dict[bytes, bytes] = {}
        # Behind a pooler, statements of other processes may be on the same server: names must differ from theirs.
        self._prefix = secrets.token_hex(6)
        self._numbers = count()
        self._watched = -1
        self._readable: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def fetch(self, query: str, params: Sequence[Any]) -> tuple[list[str], list[Any]]:
        """Run one statement; return its column names and its rows, in the types that `encoder` takes."""
        return (await self.run(Statement(query, params, names_and_rows)))[0]  # type: ignore[no-any-return]

    async def run(self, *statements: Statement[Any]) -> list[Any]:
        """Send statements in one round trip; return the result of each.

        If a statement fails, those after it are not executed. Raises: its error, unless the `read` of a statement
        before it raises.
        """
        started = self.began = time.perf_counter()
        is_idle = self.pgconn.transaction_status == TransactionStatus.IDLE
        if is_idle and statements[0] is BEGIN and len(self.endings) >= self.most_endings:
            raise psycopg.OperationalError("too many commits wait for the synchronous standby")
        is_repeated = False
        try:
            while True:
                try:
                    return await self._send(statements)
                except STATEMENT_LOST:
                    if is_idle:
                        await self.rollback()
                    await self._statement_lost(is_repeated=is_repeated)
                    if not is_idle:
                        raise
                is_repeated = True
        except psycopg.Error:
            self.queries.errors += 1
            raise
        finally:
            self.queries.add(time.perf_counter() - started, *statements)

    async def commit(self) -> None:
        """Commit, if a transaction is open. psycopg commits at the end of a connection's block."""
        if self.pgconn.transaction_status != TransactionStatus.IDLE:
            await self.run(COMMIT)

    async def rollback(self) -> None:
        """Roll back. psycopg would also deallocate all prepared statements."""
        if self.pgconn.transaction_status != TransactionStatus.IDLE:
            await self.run(ROLLBACK)

    async def read_history(self) -> bool:
        """Read `history`, None on a standby; return whether a pooler shares the server with others.

        Raises: psycopg.Error.
        """
        self.began = time.perf_counter()
        [(pid, system, timeline)] = await self._send([_READ_HISTORY])
        self.history = History(int(system), int(timeline, 16)) if int(timeline, 16) else None
        return bool(pid != self.pgconn.backend_pid)

    def stop_preparing(self) -> None:
        """Prepare nothing from now on."""
        self.most_prepared = 0
        self.on_pooled()

    def is_overdue(self, seconds: float) -> bool:
        """Return whether a statement has been running for longer than that."""
        is_active = self.pgconn.transaction_status == TransactionStatus.ACTIVE
        return is_active and time.perf_counter() - self.began > max(seconds, self.allowed_seconds)

    def hang_up(self) -> None:
        """Break the connection from this side, without waiting for the server, which may never answer.

        The running statement fails with an OperationalError, and so does the next one. The socket stays open until
        then: its number must not be reused while the event loop watches it.
        """
        with suppress(OSError, psycopg.OperationalError), socket.socket(fileno=os.dup(self.pgconn.socket)) as shared:
            shared.shutdown(socket.SHUT_RDWR)

    async def close(self) -> None:
        """Close the connection."""
        await super().close()
        self._unwatch()

    async def cancel_safe(self, *, timeout: float = CANCEL_SECONDS) -> None:  # noqa: ASYNC109
        """Cancel as psycopg does, but break the connection if the server does not react within CANCEL_SECONDS."""
        try:
            await super().cancel_safe(timeout=min(timeout, CANCEL_SECONDS))
        except psycopg.Error:
            self.hang_up()
            raise

    async def _send(self, statements: Sequence[Statement[Any]]) -> list[Any]:
        """Send statements in libpq's pipeline mode; return their results.

        psycopg's own pipeline mode costs more than the round trips that it saves.
        """
        pgconn, adapt = self.pgconn, self._adapt
        commands = []
        for statement in statements:
            query, keys = numbered(statement.query)
            values = adapt.dump_sequence(list(map(statement.params.__getitem__, keys)), [PyFormat.TEXT] * len(keys))
            name = b""
            if keys and self.most_prepared:  # BEGIN and the like have no plan worth keeping
                name = self._prepared_names.get(query) or await self._prepare(query)
            commands.append((query, name, values))
        pgconn.enter_pipeline_mode()
        for query, name, values in commands:
            if name:
                pgconn.send_query_prepared(name, values, result_format=Format.BINARY)
            else:
                pgconn.send_query_params(query, values, result_format=Format.BINARY)
        self.committing = statements[-1] is COMMIT
        results = await self._receive()
        if self._not_replicated:
            self._not_replicated = False
            raise NotReplicated("the wait for the synchronous standby was canceled")
        found = []
        for statement, result in zip(statements, results, strict=False):
            if result.status not in _SUCCESS:
                raise error_from_result(result)
            rows: list[Any] = []
            if result.ntuples:
                adapt.set_pgresult(result)
                rows = adapt.load_rows(0, result.ntuples, tuple)
            names = _column_names.get(statement.query)
            if names is None:
                names = [(result.fname(column) or b"").decode() for column in range(result.nfields)]
                _column_names[statement.query] = names
            found.append(statement.read(names, rows))
        return found

    async def _prepare(self, query: bytes) -> bytes:
        """Prepare a statement; return its name, b"" if as many are prepared as may be."""
        if len(self._prepared_names) >= self.most_prepared:
            return b""
        name = f"parlor_{self._prefix}_{next(self._numbers)}".encode()
        self.pgconn.enter_pipeline_mode()
        self.pgconn.send_prepare(name, query)
        [result] = await self._receive()
        if result.status not in _SUCCESS:
            raise error_from_result(result)
        self._prepared_names[query] = name
        return name

    async def _statement_lost(self, *, is_repeated: bool) -> None:
        """Prepare all statements again, since psycopg may have deallocated them; none if a pooler shares the server."""
        self._prepared_names.clear()
        if self.pgconn.transaction_status == TransactionStatus.IDLE and not is_repeated:
            [pid] = await self._send([_BACKEND_PID])
            if pid == self.pgconn.backend_pid:
                return
        self.stop_preparing()

    async def _receive(self) -> list[PGresult]:
        """End a pipeline; return the results of its commands, up to the first error.

        If the caller is canceled, the server cancels the statement, unless it is a COMMIT.
        """
        try:
            self.pgconn.pipeline_sync()
            return await self._results()
        except asyncio.CancelledError:
            if self.committing:
                self.ending = asyncio.create_task(self._end_commit())
            else:
                await self._cancel()
            raise
        finally:
            if self.ending is None:
                self.committing = False

    async def _results(self) -> list[PGresult]:
        """Return the results that come before the end of a pipeline, and leave pipeline mode."""
        pgconn = self.pgconn
        while pgconn.flush():  # more than the socket takes at once
            readable = self._watch()
            asyncio.get_running_loop().add_writer(self._watched, self._on_readable)
            await readable
            self._unwatch()
            pgconn.consume_input()
        results: list[PGresult] = []
        while True:
            await self._watch()
            pgconn.consume_input()
            while not pgconn.is_busy():
                result = pgconn.get_result()  # None at the end of each command
                if result is not None and result.status == ExecStatus.PIPELINE_SYNC:
                    pgconn.exit_pipeline_mode()
                    return results
                if result is not None:
                    results.append(result)
            self._unwatch()  # uvloop has forgotten the socket if it reported an error of it

    async def _cancel(self) -> None:
        """Have the server cancel the statement and read its answer, or close the connection."""
        try:
            with suppress(psycopg.Error, TimeoutError):
                await self.cancel_safe()
                async with asyncio.timeout(CANCEL_SECONDS):
                    await self._results()
        finally:
            if self.pgconn.transaction_status == TransactionStatus.ACTIVE:
                await self.close()

    async def _end_commit(self) -> None:
        """Wait for the answer to a COMMIT whose caller was canceled."""
        try:
            with suppress(psycopg.Error):
                await self._results()
        except asyncio.CancelledError:
            self.hang_up()
            raise
        finally:
            self.committing = False

    def _on_notice(self, notice: psycopg.errors.Diagnostic) -> None:
        if notice.source_function == _REPLICATION_WAIT:
            self._not_replicated = True

    def _watch(self) -> Awaitable[None]:
        """Return a future that is done when there is something to read."""
        loop = asyncio.get_running_loop()
        if self._watched < 0:
            # A descriptor of our own: libpq may close its socket at any time, and another may get that number.
            self._watched = os.dup(self.pgconn.socket)
            loop.add_reader(self._watched, self._on_readable)
        if self._timer is None:
            self._timer = loop.call_later(POLL_SECONDS, self._on_timer)
        self._readable = loop.create_future()
        return self._readable

    def _on_readable(self) -> None:
        if self._readable is None or self._readable.done():
            self._unwatch()  # no statement waits: the loop would call this forever
        else:
            self._readable.set_result(None)

    def _on_timer(self) -> None:
        self._timer = None
        if self._readable is not None and not self._readable.done():
            self._readable.set_result(None)

    def _unwatch(self) -> None:
        if self._watched >= 0:
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._watched)
            loop.remove_writer(self._watched)
            os.close(self._watched)
            self._watched = -1
