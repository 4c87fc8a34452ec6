"""Writes that a caller may safely repeat, by their request_id (AIP-155).

The transaction of the write stores the reply in a row, which is kept for 24 h. A second request with the same ID gets
that reply, or an error if the request differs. Of two concurrent ones, the second waits for the first.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from typing import Any
from uuid import UUID

import psycopg
import structlog
from google.protobuf.message import Message

from libs.cache import Cache, Tag
from libs.db import (
    BEGIN,
    COMMIT,
    ROLLBACK,
    Connection,
    Database,
    DatabaseUnavailable,
    PoolExhausted,
    Statement,
    for_writes,
    no_result,
)
from libs.server.errors import invalid_fields

PURGE_SECONDS = 3600
PURGE_ROWS = 1000

_UUID = re.compile("[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")

log = structlog.get_logger()


class Replayed(Exception):
    """Raised in a handler whose request was answered before; the dispatcher returns `body`."""

    def __init__(self, body: bytes) -> None:
        super().__init__()
        self.body = body


@dataclass(eq=False, slots=True)
class Write:
    """A write under way: the results of its `first` statements. Set `reply` before the block ends."""

    conn: Connection = field(init=False)
    invalidate: Callable[..., None] = field(init=False)
    first: list[Any] = field(init=False)
    reply: Any = None  # a message or its bytes

    async def lock(self, names: Iterable[str], *then: Statement[Any]) -> list[Any]:
        """Lock names, as `locks` does, until the transaction ends or `unlock`.

        Returns the results of the statements `then`, which are executed in the same round trip.
        """
        return (await self.conn.run(_SAVEPOINT, _locks(names), *then))[2:]

    async def unlock(self, *then: Statement[Any]) -> list[Any]:
        """Undo everything since `lock`, and release its names: waiting for more while holding some may deadlock.

        It may also follow a statement that failed. Returns the results of the statements `then`.
        """
        # In a separate round trip: after a failed statement nothing can be prepared before.
        await self.conn.run(_ROLLBACK_TO_SAVEPOINT)
        return await self.conn.run(*then) if then else []


class IdempotentWrites:
    """The writes of one service; `table` keeps their replies.

    They use at most half of the pool's connections, those of one salon a quarter.
    """

    def __init__(self, cache: Cache, database: Database, table: str) -> None:
        self._cache = cache
        self._limit = for_writes(database)
        self._select = f"""
            SELECT request_hash, reply FROM {table} WHERE salon_id = %(salon_id)s AND request_id = %(request_id)s::uuid
                AND created_at > now() - interval '24 hours'"""  # noqa: S608 - the name is a literal in our code
        self._insert = f"""
            INSERT INTO {table} AS r (salon_id, request_id, request_hash, reply)
            VALUES (%(salon_id)s, %(request_id)s::uuid, %(hash)s, %(reply)s)
            ON CONFLICT (salon_id, request_id) DO UPDATE SET request_hash = excluded.request_hash,
                reply = excluded.reply, created_at = excluded.created_at"""  # noqa: S608
        self._delete = f"""
            DELETE FROM {table} WHERE (salon_id, request_id) IN (SELECT salon_id, request_id FROM {table}
                WHERE created_at <= now() - interval '24 hours' LIMIT {PURGE_ROWS})"""  # noqa: S608

    @asynccontextmanager
    async def __call__(
        self,
        request: Any,
        salon_id: str,
        *,
        invalidates: Sequence[Tag] = (),
        locks: Iterable[str] = (),
        shared: Sequence[str] = (),
        first: Sequence[Statement[Any]] = (),
    ) -> AsyncIterator[Write]:
        """Run the block as the transaction of a request: it commits at the end, and rolls back on an error.

        `invalidates` are the cache tags to invalidate; `Write.invalidate` adds those that only the block knows. `locks`
        are names that the transaction locks, besides the request_id; `shared` are names that it locks together with
        other transactions that share them, against those that have them in `locks`. The statements `first` are sent in
        the round trip that begins the transaction, and executed under the locks.

        Raises: Replayed; REQUEST_ID_REUSED; the exceptions of `Cache.transaction` and of the statements.
        """
        write = Write()
        begins: list[Statement[Any]] = [BEGIN, _locks(locks, shared)]
        commits: list[Statement[Any]] = [COMMIT]
        kept: dict[str, Any] = {}
        if getattr(request, "request_id", ""):
            request_id = _key(request.request_id)
            kept = {"salon_id": salon_id, "request_id": request_id, "hash": _hash(request)}
            replay = Statement(self._select, kept, partial(_replay, kept["hash"]))
            begins = [BEGIN, _locks((*locks, f"{salon_id} {request_id}"), shared), replay]

        async def begin(conn: Connection) -> tuple[int, str]:
            try:
                _, begun, *found = await conn.run(*begins, *first)
            except Replayed:
                await conn.run(ROLLBACK, _REPLICATED)
                raise
            write.conn, write.first = conn, found[len(begins) - 2 :]
            return begun  # type: ignore[no-any-return]

        async def commit(conn: Connection) -> None:
            if kept and write.reply is not None:
                commits.insert(0, Statement(self._insert, kept | {"reply": _bytes(write.reply)}, no_result))
            await conn.run(*commits)

        try:
            lease = self._limit.connection(salon_id)
            async with self._cache.transaction(*invalidates, lease=lease, begin=begin, commit=commit) as transaction:
                write.invalidate = transaction.invalidate
                yield write
        except Replayed:  # the reply of a write that another process may not have answered yet
            await self._cache.all_seen()
            raise

    async def purge(self, connect: Callable[[], AbstractAsyncContextManager[psycopg.AsyncConnection[Any]]]) -> None:
        """Delete the replies older than 24 h, every hour, until canceled."""
        while True:
            try:
                deleted = PURGE_ROWS
                while deleted == PURGE_ROWS:
                    async with connect() as conn:
                        deleted = (await conn.execute(self._delete.encode())).rowcount
            except (DatabaseUnavailable, PoolExhausted, psycopg.Error) as error:
                log.warning("purge", error=repr(error))
            await asyncio.sleep(PURGE_SECONDS)


# With a synchronous standby, waits until the standby has everything that was committed before. The write whose reply is
# repeated may be visible but not replicated, if its own commit was canceled while it waited.
_REPLICATED = Statement(
    "SELECT CASE WHEN current_setting('synchronous_standby_names') <> ''"
    " THEN pg_logical_emit_message(true, 'parlor', '')::text END",
    {},
    no_result,
)
_SAVEPOINT = Statement("SAVEPOINT unlocked", {}, no_result)
_ROLLBACK_TO_SAVEPOINT = Statement("ROLLBACK TO SAVEPOINT unlocked", {}, no_result)
# The locks come first: a transaction that has an ID while it waits keeps loads of other writes from being stored.
_EXCLUSIVE = "count(pg_advisory_xact_lock(lock)) FROM unnest(%(locks)s::bigint[]) AS lock"
_SHARED = "count(pg_advisory_xact_lock_shared(lock)) FROM unnest(%(shared)s::bigint[]) AS lock"
_BEGUN = "pg_current_xact_id()::text::bigint, cache_epoch()"
_LOCKS = f"SELECT (SELECT {_EXCLUSIVE}), {_BEGUN}"
_LOCKS_SHARED_FIRST = f"SELECT (SELECT {_SHARED}), (SELECT {_EXCLUSIVE}), {_BEGUN}"


def _locks(names: Iterable[str], shared: Sequence[str] = ()) -> Statement[tuple[int, str]]:
    """Return a statement that locks these names until the transaction ends, the shared ones first.

    In another order three transactions could block each other: A shares a name and waits for another one; B holds that
    one and waits to share the name, behind C, which waits until A no longer shares it.
    Its result is the transaction's ID, and the epoch of the cache in force.
    """
    params = {"locks": _numbers(names), "shared": _numbers(shared)}
    return Statement(_LOCKS_SHARED_FIRST if shared else _LOCKS, params, _begun)


def _numbers(names: Iterable[str]) -> str:
    """Return the array of the numbers of locks, in the order in which every transaction takes them: that of the names.

    So those of one kind can be locked in a later round trip than those of another whose names come before.
    """
    numbers = [int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), signed=True) for name in sorted(names)]
    return f"{{{','.join(map(str, numbers))}}}"


def _begun(_: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> tuple[int, str]:
    *_, xact_id, epoch = rows[0]
    return int(xact_id), epoch.decode()


def _replay(request_hash: bytes, _: Sequence[str], rows: Sequence[tuple[bytes, bytes]]) -> None:
    """Raise Replayed if the request_id has a reply. Raises: REQUEST_ID_REUSED."""
    for found, reply in rows:
        if found != request_hash:
            raise invalid_fields([("request_id", "was used for another request")], "REQUEST_ID_REUSED")
        raise Replayed(reply)


def _key(request_id: str) -> str:
    """Return the UUID under which a reply is kept: a request_id that is one, else a hash of its text."""
    if _UUID.fullmatch(request_id):
        return request_id.lower()
    return str(UUID(bytes=blake2b(request_id.encode(), digest_size=16).digest()))


def _hash(request: Message) -> bytes:
    kind = request.DESCRIPTOR.full_name.encode()
    return blake2b(kind + request.SerializeToString(deterministic=True), digest_size=32).digest()


def _bytes(reply: Message | bytes) -> bytes:
    return reply if isinstance(reply, bytes) else reply.SerializeToString()
