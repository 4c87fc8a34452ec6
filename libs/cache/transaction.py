"""A transaction that invalidates tags."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias

import psycopg
from psycopg.pq import TransactionStatus

from libs.cache import outbox
from libs.cache.keys import Tag, parent_key
from libs.cache.store import Store

# Begins a transaction on a connection; returns its ID, and the epoch read after it had one.
Begin: TypeAlias = Callable[[Any], Awaitable[tuple[int, str]]]
Commit: TypeAlias = Callable[[Any], Awaitable[Any]]


async def plain_commit(conn: psycopg.AsyncConnection[Any]) -> None:
    """Commit, with nothing else in that round trip."""
    await conn.commit()


class CommitUnknown(Exception):
    """The connection was lost during COMMIT: the transaction may have been committed or not."""


class Transaction:
    """A transaction under way: its connection, its ID, and the tags that it invalidates."""

    def __init__(
        self, conn: psycopg.AsyncConnection[Any], xact_id: int, store: Store, commit: Commit = plain_commit
    ) -> None:
        """Start without tags."""
        self.conn = conn
        self.xact_id = xact_id
        self.in_outbox = False
        self.registrations: dict[str, asyncio.Future[Any]] = {}  # by version key
        self._store = store
        self._commit = commit

    @classmethod
    async def begin(cls, conn: psycopg.AsyncConnection[Any], store: Store, locks: Sequence[int]) -> "Transaction":
        """Begin a transaction and take its ID and advisory locks, in one round trip."""
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
        """Register the transaction with tags and their parents, while its statements run.

        A parent is registered no later than its sub-tag: a sub-tag that is opened takes over what its parent knows.
        """
        new: dict[str, None] = {}
        for tag in tags:
            for key in (parent_key(tag.name), tag.version_key):
                if key not in self.registrations:
                    new[key] = None
        if new:
            self.registrations.update(dict.fromkeys(new, self._store.register(list(new), self.xact_id)))

    async def registered(self) -> None:
        """Return when every registration is done. Raises: StoreAway."""
        for registration in set(self.registrations.values()):
            await registration

    def forget(self) -> None:
        """Cancel the registrations that nobody waits for any more."""
        for registration in set(self.registrations.values()):
            if registration.done():
                _retrieve(registration)
            else:
                registration.add_done_callback(_retrieve)
                registration.cancel()

    async def write_outbox(self) -> None:
        """Leave the tags to be registered by the processes that reach Redis, once the transaction has committed."""
        self.in_outbox = True
        await outbox.insert(self.conn, list(self.registrations), self.xact_id)

    async def register_again(self) -> None:
        """Register with every tag again. Raises: StoreAway."""
        await self._store.register(list(self.registrations), self.xact_id)

    async def commit(self) -> None:
        """Commit. Raises: CommitUnknown; psycopg.Error, also if the block ended or broke the transaction itself."""
        status = self.conn.info.transaction_status
        if status in (TransactionStatus.IDLE, TransactionStatus.INERROR):
            # COMMIT would not fail, although nothing is committed.
            raise psycopg.errors.InFailedSqlTransaction(f"the transaction can't be committed: it is {status.name}")
        try:
            await self._commit(self.conn)
        except psycopg.OperationalError as error:
            if error.sqlstate is None or error.sqlstate.startswith(("08", "57P")):
                raise CommitUnknown from error
            raise


def _retrieve(registration: "asyncio.Future[Any]") -> None:
    """Look at the exception of a registration, if any: asyncio logs those that nobody has looked at.

    The future of several slots is not cancelled: it ends with the exception of one of them.
    """
    if not registration.cancelled():
        registration.exception()
