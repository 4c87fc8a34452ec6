"""What a caller asks for and gets, and what a load returns."""

from collections.abc import Awaitable, Callable, Hashable, Sequence
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, Protocol, TypeAlias, TypeVar

import psycopg

from libs.cache.keys import Key

V = TypeVar("V", covariant=True)

# The oldest reply that the caller accepts, in s: 0 reads past the cache, None accepts any.
MAX_AGE: ContextVar[int | None] = ContextVar("max_age", default=None)


class LoadResult(Protocol, Generic[V]):
    """What a load returns: the value, None if there is none, and the snapshot xmin of the statement that read it.

    A value that is an error is raised to the callers, and is not cached. A value that is true only for a time comes
    with `valid_ms`, that many ms from the snapshot on (None: until a write); its entry ends before.
    """

    @property
    def xmin(self) -> int:
        """`pg_snapshot_xmin(pg_current_snapshot())` of the load's own statement, or of an earlier one."""

    @property
    def value(self) -> V:
        """The value."""


Connect: TypeAlias = Callable[[], AbstractAsyncContextManager[psycopg.AsyncConnection[Any]]]
LoadMany: TypeAlias = Callable[[psycopg.AsyncConnection[Any], Sequence[Any]], Awaitable[Sequence[LoadResult[Any]]]]


class Replica(Protocol):
    """A standby of the primary, for loads that may be tried there first."""

    @property
    def usable(self) -> bool:
        """Whether to try it now."""

    async def read(
        self, run: Callable[[Any], Awaitable[Sequence[LoadResult[Any]]]]
    ) -> tuple[Sequence[LoadResult[Any]], str]:
        """Return what `run` reads on a connection to it, and its epoch.

        Raises: any Exception, after which the primary is read.
        """


@dataclass(frozen=True, slots=True)
class LoadOne:
    """A load of one entry, on a connection that `connect` lends. Loads of the same entry are equal."""

    entry: str
    load: Callable[[psycopg.AsyncConnection[Any]], Awaitable[LoadResult[Any]]] = field(compare=False)
    connect: Connect | None = field(default=None, compare=False)  # None: the cache's

    async def __call__(self, conn: psycopg.AsyncConnection[Any], _: Sequence[Any]) -> list[LoadResult[Any]]:
        """Load it."""
        return [await self.load(conn)]


class Read(NamedTuple):
    """A read: its key, and how to load it. See `Cache.get_batched` for the fields.

    `repeatable`: all of it follows from the request's bytes alone. `replica`: it may be loaded from the replica.
    """

    key: Key
    argument: Hashable
    load: LoadMany
    batch: Callable[[Any], Hashable] | None = None
    rows: int = 1
    repeatable: bool = False
    replica: bool = False


class Reply(NamedTuple):
    """The bytes of a reply, None if there is nothing; its source (`near`, `hit`, `miss` or `bypass`); its age.

    `again` is the read that answers the next request with the same bytes, if it is repeatable.
    """

    body: bytes | None
    source: str
    age_ms: int
    again: Read | None = None
