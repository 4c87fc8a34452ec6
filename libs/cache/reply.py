"""What a caller asks for and gets, and what a load returns."""

from contextvars import ContextVar
from typing import Generic, NamedTuple, Protocol, TypeVar

from libs.cache.keys import Key

V = TypeVar("V", covariant=True)

# How old an answer the caller takes, in s: 0 asks past the cache, None takes any.
MAX_AGE: ContextVar[int | None] = ContextVar("max_age", default=None)


class Stamped(Protocol, Generic[V]):
    """What a load returns: the value, None if there is none, and the stamp of the statement that read it."""

    @property
    def stamp(self) -> int:
        """`pg_snapshot_xmin(pg_current_snapshot())` of the load's own statement, or of one before it."""

    @property
    def value(self) -> V:
        """The value."""


class Reply(NamedTuple):
    """The bytes of a reply, None if there is nothing; by which of `near`, `hit`, `miss`, `bypass`; how old.

    `key` names it where the near cache keeps such replies.
    """

    body: bytes | None
    source: str
    age_ms: int
    key: Key | None = None
