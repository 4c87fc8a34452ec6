"""A transaction that invalidates: its steps, in the order in which the cache takes them."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias

import psycopg
from psycopg.pq import TransactionStatus

from libs.cache.keys import Tag, whole
from libs.cache.store import Store

# Begins a transaction on a connection; returns its id, and the epoch that was in force after it had one.
Begin: TypeAlias = Callable[[Any], Awaitable[tuple[int, str]]]
Commit: TypeAlias = Callable[[Any], Awaitable[Any]]


async def plain_commit(conn: psycopg.AsyncConnection[Any]) -> None:
    """Commit, with nothing else in that round trip."""
    await conn.commit()


class CommitUnknown(Exception):
    """The connection was lost while COMMIT was under way: the transaction may have been committed or not."""


class Transaction:
    """A transaction under way: its connection, its id, and what it invalidates."""

    def __init__(
        self, conn: psycopg.AsyncConnection[Any], xact_id: int, store: Store, commit: Commit = plain_commit
    ) -> None:
        """Begin to collect what the transaction invalidates."""
        self.conn = conn
        self.xact_id = xact_id
        self.pending = False
        self.metas: dict[str, asyncio.Future[Any]] = {}  # each with the answer to its registration
        self._store = store
        self._commit = commit

    @classmethod
    async def begin(cls, conn: psycopg.AsyncConnection[Any], store: Store, locks: Sequence[int]) -> "Transaction":
        """Begin a transaction that has an id, in one round trip."""
        taken = "".join(f"SELECT pg_advisory_xact_lock({lock:d}); " for lock in locks)
        cursor = await conn.execute(
            f"BEGIN; {taken}SELECT pg_current_xact_id()::text::bigint, cache_epoch()".encode(), prepare=False
        )
        while cursor.nextset():
            pass
        [(xact_id, epoch)] = await cursor.fetchall()
        store.compare(epoch)
        return cls(conn, xact_id, store)

    def invalidate(self, *tags: Tag) -> None:
        """Register the transaction with more tags, beside its statements.

        With a part's whole no later than with the part: what opens the part takes over what the whole knows.
        """
        metas = dict.fromkeys([meta for tag in tags for meta in (whole(tag.name), tag.meta)])
        if new := [meta for meta in metas if meta not in self.metas]:
            self.metas.update(dict.fromkeys(new, self._store.register(new, self.xact_id)))

    async def registered(self) -> None:
        """Return when every registration has been answered. Raises: StoreAway."""
        for answer in set(self.metas.values()):
            await answer

    def forget(self) -> None:
        """Leave the answers that nobody waits for any more."""
        for answer in set(self.metas.values()):
            if not answer.cancel() and not answer.cancelled():
                answer.exception()

    async def leave_pending(self) -> None:
        """Leave the tags to be registered by whoever reaches Redis once the transaction is committed."""
        self.pending = True
        await self.conn.execute(
            "INSERT INTO cache_outbox (tag, xact_id) SELECT unnest(%s::text[]), %s ON CONFLICT DO NOTHING",
            [list(self.metas), self.xact_id],
        )

    async def register_again(self) -> None:
        """Register with every tag anew. Raises: StoreAway."""
        await self._store.register(list(self.metas), self.xact_id)

    async def commit(self) -> None:
        """Commit. Raises: CommitUnknown; psycopg.Error, also if the block ended or broke the transaction itself."""
        status = self.conn.info.transaction_status
        if status in (TransactionStatus.IDLE, TransactionStatus.INERROR):
            # COMMIT would be answered without an error, although nothing is committed.
            raise psycopg.errors.InFailedSqlTransaction(f"the transaction can't be committed: it is {status.name}")
        try:
            await self._commit(self.conn)
        except psycopg.OperationalError as error:
            if error.sqlstate is None or error.sqlstate.startswith(("08", "57P")):
                raise CommitUnknown from error
            raise
