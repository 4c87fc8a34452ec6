"""Mutations that a caller may safely repeat (AIP-155).

The reply to a request_id is kept for 24 h, in a row written by the transaction that did the work. The same id again
answers that reply; with another body it is an error. Two at once do the work once: the second waits for the first.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from hashlib import blake2b
from typing import Any
from uuid import UUID

import psycopg
import structlog
from google.protobuf.message import Message
from psycopg.sql import SQL, Identifier

from libs.cache import Cache, Group, Transaction
from libs.db import DatabaseUnavailable, PoolExhausted
from libs.rpc.errors import invalid_fields

PURGE_SECONDS = 3600
PURGE_ROWS = 1000

log = structlog.get_logger()


class Replayed(Exception):
    """Ends a handler whose reply was given before; the interceptor answers `body`."""

    def __init__(self, body: bytes) -> None:
        """Carry the bytes of the reply."""
        super().__init__()
        self.body = body


class Write:
    """A mutation under way. Set `reply` before the block ends."""

    def __init__(self, transaction: Transaction) -> None:
        """Wrap a transaction."""
        self.conn = transaction.conn
        self.invalidate = transaction.invalidate
        self.reply: Any = None

    async def lock(self, *names: str) -> None:
        """Wait for the transactions that hold any of these names, as `locks` do; hold them to the end or `unlock`."""
        taken = [f"SELECT pg_advisory_xact_lock({lock:d})" for lock in sorted(map(_lock, names))]
        await self.conn.execute("; ".join(["SAVEPOINT unlocked", *taken]).encode(), prepare=False)

    async def unlock(self) -> None:
        """Undo all since `lock`, and let go of its names: who waits for more while holding some may deadlock."""
        await self.conn.execute("ROLLBACK TO SAVEPOINT unlocked")


class Mutations:
    """The mutations of one service; `table` keeps their replies."""

    def __init__(self, cache: Cache, table: str) -> None:
        """Prepare the statements."""
        name = Identifier(table)
        self._cache = cache
        self._select = SQL(
            "SELECT request_hash, reply FROM {} WHERE salon_id = %s AND request_id = %s"
            " AND created_at > now() - interval '24 hours'"
        ).format(name)
        self._insert = SQL(
            "INSERT INTO {} AS r (salon_id, request_id, request_hash, reply) VALUES (%s, %s, %s, %s)"
            " ON CONFLICT (salon_id, request_id) DO UPDATE SET request_hash = excluded.request_hash,"
            " reply = excluded.reply, created_at = excluded.created_at"
        ).format(name)
        self._delete = SQL(
            "DELETE FROM {0} WHERE (salon_id, request_id) IN (SELECT salon_id, request_id FROM {0}"
            " WHERE created_at <= now() - interval '24 hours' LIMIT {1})"
        ).format(name, PURGE_ROWS)

    @asynccontextmanager
    async def __call__(
        self, request: Any, salon_id: str, *groups: Group, locks: tuple[str, ...] = ()
    ) -> AsyncIterator[Write]:
        """Run the block as the transaction of a request: it commits at the end, and rolls back on an error.

        `groups` are what it invalidates. `locks` are names on which such transactions wait for each other, besides
        the request_id. Raises: Replayed; REQUEST_ID_REUSED; what `Cache.transaction` raises.
        """
        request_id = UUID(request.request_id) if getattr(request, "request_id", "") else None
        names = [*locks, f"{salon_id} {request_id}"] if request_id else locks
        try:
            async with self._cache.transaction(locks=sorted(map(_lock, names))) as transaction:
                if request_id:
                    await self._replay(transaction.conn, salon_id, request_id, _hash(request))
                transaction.invalidate(*groups)
                write = Write(transaction)
                yield write
                if request_id and write.reply is not None:
                    row = (salon_id, request_id, _hash(request), write.reply.SerializeToString())
                    await transaction.conn.execute(self._insert, row)
        except Replayed:  # answers a write that another process may not have answered yet
            await self._cache.all_seen()
            raise

    async def _replay(
        self, conn: psycopg.AsyncConnection[Any], salon_id: str, request_id: UUID, request_hash: bytes
    ) -> None:
        row = await (await conn.execute(self._select, (salon_id, request_id))).fetchone()
        if row is None:
            return
        if row[0] != request_hash:
            raise invalid_fields([("request_id", "was used for another request")], "REQUEST_ID_REUSED")
        raise Replayed(row[1])

    async def purge(self, connect: Callable[[], AbstractAsyncContextManager[psycopg.AsyncConnection[Any]]]) -> None:
        """Delete the replies older than 24 h, now and every hour, for ever."""
        while True:
            try:
                deleted = PURGE_ROWS
                while deleted == PURGE_ROWS:
                    async with connect() as conn:
                        deleted = (await conn.execute(self._delete)).rowcount
            except (DatabaseUnavailable, PoolExhausted, psycopg.Error) as error:
                log.warning("purge", error=repr(error))
            await asyncio.sleep(PURGE_SECONDS)


def _lock(name: str) -> int:
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), signed=True)


def _hash(request: Message) -> bytes:
    kind = request.DESCRIPTOR.full_name.encode()
    return blake2b(kind + request.SerializeToString(deterministic=True), digest_size=32).digest()
