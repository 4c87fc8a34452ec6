"""The partitions of messages by month (`parlor partition`): their names and bounds.

`messages_early` has what is older than the first month, `messages_later` what is newer than the last one.
"""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import NamedTuple

import psycopg
from psycopg import sql
from psycopg.errors import LockNotAvailable, UndefinedTable

EARLY, LATER = "messages_early", "messages_later"
LOCK_MILLISECONDS = 50  # while this waits for the table, calls wait behind it
LOCK_ATTEMPTS = 600
PAUSE_SECONDS = 0.2

_MONTH = re.compile(r"messages_(\d{4})_(\d{2})")


class Month(NamedTuple):
    """A month in UTC."""

    year: int
    number: int

    @classmethod
    def of(cls, moment: datetime) -> "Month":
        """Return the month of a moment."""
        moment = moment.astimezone(UTC)
        return cls(moment.year, moment.month)

    @property
    def leaf(self) -> str:
        """The name of its partition."""
        return f"messages_{self.year:04}_{self.number:02}"

    @property
    def start(self) -> datetime:
        """Its first moment."""
        return datetime(self.year, self.number, 1, tzinfo=UTC)

    def later(self, months: int) -> "Month":
        """Return the month that is some months later, or earlier if negative."""
        year, index = divmod(self.year * 12 + self.number - 1 + months, 12)
        return Month(year, index + 1)


class Leaf(NamedTuple):
    """A partition of messages; `start` None: from the beginning; `end` None, exclusive: without an end."""

    name: str
    start: datetime | None
    end: datetime | None


class TableBusy(Exception):
    """Statements that take long left no moment to change the table messages."""


def is_partitioned(conn: psycopg.Connection) -> bool:
    """Return whether messages are partitioned by month."""
    row = conn.execute("SELECT relkind = 'p' FROM pg_class WHERE oid = 'messages'::regclass").fetchone()
    return bool(row and row[0])


def leaves(conn: psycopg.Connection, parent: str = "messages") -> list[Leaf]:
    """Return the partitions, oldest first; none if messages are one table."""
    query = """
        SELECT relname FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
        WHERE inhparent = %s::regclass AND NOT inhdetachpending"""
    names = [name for (name,) in conn.execute(query, [parent])]
    months = sorted(Month(int(found[1]), int(found[2])) for name in names if (found := _MONTH.fullmatch(name)))
    if not months:
        return []
    return [
        Leaf(EARLY, None, months[0].start),
        *(Leaf(month.leaf, month.start, month.later(1).start) for month in months),
        Leaf(LATER, months[-1].later(1).start, None),
    ]


@contextmanager
def locked(conn: psycopg.Connection) -> Iterator[None]:
    """Run a short transaction that nobody reads or writes messages beside.

    Calls wait for it, and up to LOCK_MILLISECONDS for it to begin; while a statement takes longer, it tries again.
    Raises: TableBusy.
    """
    for _ in attempts():
        with conn.transaction():
            set_timeouts(conn)
            try:
                with conn.transaction():
                    conn.execute("LOCK TABLE messages IN ACCESS EXCLUSIVE MODE")
                    # A partition gets the foreign key to it, which needs this lock.
                    conn.execute("LOCK TABLE conversations IN SHARE ROW EXCLUSIVE MODE")
            except LockNotAvailable:
                pass
            else:
                yield
                return
        end_autovacuum(conn, "messages")


def attempts() -> Iterator[int]:
    """Yield the numbers of LOCK_ATTEMPTS attempts, with pauses between them. Raises: TableBusy after the last."""
    for attempt in range(LOCK_ATTEMPTS):
        yield attempt
        time.sleep(PAUSE_SECONDS)
    raise TableBusy("messages are read or written by long statements; try again later")


def set_timeouts(conn: psycopg.Connection, lock_milliseconds: int = LOCK_MILLISECONDS) -> None:
    """Let the statements of this transaction take any time, but wait only a moment for a lock."""
    conn.execute(f"SET LOCAL lock_timeout = {lock_milliseconds}; SET LOCAL statement_timeout = 0".encode())


def end_autovacuum(conn: psycopg.Connection, *tables: str) -> None:
    """End an autovacuum of tables: Postgres does so for those who wait longer than LOCK_MILLISECONDS.

    Calls don't wait for this lock.
    """
    for table in tables:
        with suppress(LockNotAvailable, UndefinedTable), conn.transaction():
            set_timeouts(conn, 5_000)
            conn.execute(sql.SQL("LOCK TABLE {} IN SHARE UPDATE EXCLUSIVE MODE").format(sql.Identifier(table)))


def create_leaf(conn: psycopg.Connection, leaf: Leaf, like: str, parent: str = "messages") -> None:
    """Create a partition with the storage parameters and the extended statistics of the table `like`.

    A partition has the indexes and triggers of its parent, but not these.
    """
    start, end = (
        sql.SQL(default) if moment is None else sql.Literal(moment)
        for moment, default in ((leaf.start, "MINVALUE"), (leaf.end, "MAXVALUE"))
    )
    name = sql.Identifier(leaf.name)
    create = sql.SQL("CREATE TABLE {} PARTITION OF {} FOR VALUES FROM ({}) TO ({})")
    conn.execute(create.format(name, sql.Identifier(parent), start, end))
    copy_parameters(conn, leaf.name, like)
    query = "SELECT stxname, pg_get_statisticsobjdef(oid) FROM pg_statistic_ext WHERE stxrelid = %s::regclass"
    for statistics, definition in conn.execute(query, [like]).fetchall():
        renamed = statistics.replace(like, leaf.name, 1)
        conn.execute(renamed_statistics(definition, renamed, leaf.name))


def copy_parameters(conn: psycopg.Connection, table: str, like: str) -> None:
    """Give a table the storage parameters of another one."""
    query = "SELECT unnest(reloptions) FROM pg_class WHERE oid = %s::regclass"
    for (option,) in conn.execute(query, [like]).fetchall():
        conn.execute(sql.SQL("ALTER TABLE {} SET ({})").format(sql.Identifier(table), sql.SQL(option)))


def renamed_statistics(definition: str, name: str, table: str) -> sql.Composed:
    """Return the statement that creates extended statistics as those of a definition, on another table."""
    what = re.sub(r"^CREATE STATISTICS \S+ | FROM \S+$", "", definition)
    return sql.SQL("CREATE STATISTICS {} {} FROM {}").format(sql.Identifier(name), sql.SQL(what), sql.Identifier(table))
