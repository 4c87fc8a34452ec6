"""`parlor load-sample-data`: write the sample data with COPY."""

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial

import psycopg
from psycopg import sql
from rich.progress import Progress

from libs.cache import drop
from libs.db import split_pool_parameters
from ops.data_set import COLUMNS, ROWS, Row, data_set
from ops.months import is_partitioned
from ops.rollups import advance_rollups
from services.messaging.rollup_queries import RollupBusy

MAX_SCALE = 100  # all messages are planned in memory, about 150 MB at scale 20

# All tables that refer to salons, for TRUNCATE. Triggers truncate the hourly sums with them.
_TABLES = (
    *COLUMNS,
    *("raw_messages", "message_names", "message_status_events", "message_amendments", "webhook_failures"),
    *("booking_changes", "message_changes"),
    *("booking_requests", "messaging_requests"),
)
_SUMS = ("message_hours", "conversation_hours", "ai_message_hours")


class DataExistsError(Exception):
    """The database already has rows, and `replace` was not set."""


def load_sample_data(
    database_url: str,
    scale: int = 1,
    *,
    replace: bool = False,
    progress: Progress | None = None,
    redis_url: str | None = None,
) -> dict[str, int]:
    """Write the sample data in one transaction, sum it by hour, vacuum, analyze; return the rows written by table.

    Drops the cache in Redis at `redis_url` at the end, because COPY invalidates nothing.
    Units:  scale multiplies the rows of every table but salons, 1..MAX_SCALE.
    Raises: DataExistsError if a table has rows, unless `replace`, which empties all of them in the same transaction.
    """
    if not 1 <= scale <= MAX_SCALE:
        raise ValueError(f"scale must be from 1 to {MAX_SCALE}, not {scale}")
    progress = progress or Progress(disable=True)
    task = progress.add_task("sample data", total=ROWS["salons"] + scale * (sum(ROWS.values()) - ROWS["salons"]))
    advance = partial(progress.advance, task)
    url, _ = split_pool_parameters(database_url)
    with psycopg.connect(url) as conn:
        _claim_tables(conn, replace)
        conn.execute("ALTER TABLE messages DISABLE TRIGGER message_changes_created")  # the feed begins after the data
        # The number of resources and events depends on the bookings, so the progress bar leaves them out.
        written = {
            table: _copy(conn, table, rows, advance if table in ROWS else _ignore) for table, rows in data_set(scale)
        }
        conn.execute("ALTER TABLE messages ENABLE TRIGGER message_changes_created")
        # Nothing is summed yet, so these deltas change no sum.
        conn.execute("TRUNCATE message_deltas, conversation_deltas, ai_message_changes")
    with suppress(RollupBusy):  # the messaging service sums it later
        asyncio.run(advance_rollups(url, "parlor load-sample-data"))
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(sql.SQL("VACUUM (ANALYZE) {}").format(_names((*_TABLES, *_SUMS))))
    if redis_url:
        asyncio.run(drop(redis_url))
    return written


def _names(tables: Iterable[str]) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, tables))


def _ignore(_: float) -> None:
    pass


def _claim_tables(conn: psycopg.Connection, replace: bool) -> None:
    conn.execute("LOCK TABLE rollups IN SHARE UPDATE EXCLUSIVE MODE")  # no step of the rollup job runs meanwhile
    # A second run waits here until the first has committed, and then finds rows.
    conn.execute(sql.SQL("LOCK TABLE {}").format(_names(_TABLES)))
    for table in () if replace else _TABLES:
        if conn.execute(sql.SQL("SELECT 1 FROM {} LIMIT 1").format(sql.Identifier(table))).fetchone():
            raise DataExistsError(f"table {table} already has rows; --replace deletes everything first")
    conn.execute(sql.SQL("TRUNCATE {}").format(_names(_TABLES)))  # even if empty: COPY FREEZE requires it
    # The horizon stays: a job that published it may be under way.
    conn.execute("UPDATE rollups SET sealed_to = '-infinity'")


def _copy(conn: psycopg.Connection, table: str, rows: Iterable[Row], advance: Callable[[float], None]) -> int:
    # Binary: 200,000 messages took 0.7 s, 1.2 s as text.
    names = {
        "columns": sql.SQL(", ").join(map(sql.Identifier, COLUMNS[table].split())),
        "table": sql.Identifier(table),
    }
    with conn.cursor() as cursor:
        cursor.execute(sql.SQL("SELECT {columns} FROM {table} LIMIT 0").format(**names))
        types = [column.type_code for column in cursor.description or ()]
        freeze = "false" if table == "messages" and is_partitioned(conn) else "true"  # partitions can't be frozen
        copy_in = sql.SQL("COPY {table} ({columns}) FROM STDIN (FORMAT binary, FREEZE {freeze})")
        statement = copy_in.format(**names, freeze=sql.SQL(freeze))
        with cursor.copy(statement) as copy:
            copy.set_types(types)
            written = 0
            for written, row in enumerate(rows, 1):
                copy.write_row(row)
                if written % 1000 == 0:
                    advance(1000)
    advance(written % 1000)
    return written
