"""`parlor archive` and `parlor restore-archive`: months of messages that leave the database, and come back.

A month is archived in steps, each of which may be killed; the next run goes on:

1. Its messages are summed by quarters of an hour, which no reader counts yet.
2. One short transaction detaches its partition, and lets the sums count: statistics stay as they were.
3. Its rows are written to a file, with what other tables have of its messages, and the file is read back.
4. The rows beside it and the detached table are deleted.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import NamedTuple

import psycopg
from psycopg import sql

from libs.db import split_pool_parameters
from ops.archive_files import (
    SUFFIX,
    ArchiveError,
    Manifest,
    file_path,
    manifest_path,
    part_of,
    put_in_place,
    read_rows,
    sha256,
    write_rows,
)
from ops.archive_queries import (
    BESIDE,
    add_deltas,
    add_quarters,
    create_loaded,
    delete_rows_beside,
    obey_erasures,
    salons,
    with_rows_beside,
)
from ops.months import EARLY, Leaf, Month, copy_parameters, is_partitioned, leaves, locked
from ops.partitioned_table import columns

NAME = "parlor archive"
LOADED = "loaded_archive"
Advance = Callable[[str, int, int], None]  # what is done, and how many of how many


def before(age: str) -> datetime:
    """Return the start of the month that is an age, such as 13mo, before the present one. Raises: ArchiveError."""
    if not (found := re.fullmatch(r"([1-9]\d{0,2})mo", age)):
        raise ArchiveError(f"an age is a number of months, such as 13mo, not {age}")
    return Month.of(datetime.now(UTC)).later(-int(found[1])).start


class Archived(NamedTuple):
    """An archive that was written: its file, and its messages."""

    name: str
    file: Path
    rows: int


@contextmanager
def alone(database_url: str) -> Iterator[psycopg.Connection]:
    """Connect, in autocommit mode, unless another archive or restore is under way. Raises: ArchiveError."""
    url, _ = split_pool_parameters(database_url)
    with psycopg.connect(url, autocommit=True, application_name=NAME) as conn:
        conn.execute("SET timezone = 'UTC'")
        if not is_partitioned(conn):
            raise ArchiveError("messages are one table; `parlor partition` makes months of it first")
        query = "SELECT pg_try_advisory_lock(hashtext('parlor archive'))"
        if conn.execute(query).fetchall() != [(True,)]:
            raise ArchiveError("another archive or restore is under way")
        # A killed run may have left sums that don't count.
        conn.execute("DELETE FROM message_quarters WHERE archive <> ALL (SELECT unnest(archives) FROM rollups)")
        yield conn


def archive(
    database_url: str, before: datetime, folder: Path, drop_cache: Callable[[], None], advance: Advance
) -> Iterator[Archived]:
    """Archive all months that end by a time, oldest first, and yield each; then remove erased customers from the files.

    `drop_cache` is called after each month that has left: cached lists still have its messages.
    Raises: ArchiveError; TableBusy; OSError; psycopg.Error; what `drop_cache` raises.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with alone(database_url) as conn:
        if left := detached(conn):
            drop_cache()
        for leaf in left:
            yield finish(conn, leaf, folder, advance)
        for leaf in leaves(conn):
            if leaf.end is None or leaf.end > before:
                break
            if not _is_empty(conn, leaf):
                gone = detach(conn, database_url, leaf, advance)
                drop_cache()
                yield finish(conn, gone, folder, advance)
            elif leaf.start is not None:
                with locked(conn):
                    _cut(conn, leaf, LOADED)
                    run(conn, "DROP TABLE {}", LOADED)
        obey(conn, folder)


def _is_empty(conn: psycopg.Connection, leaf: Leaf) -> bool:
    query = sql.SQL("SELECT FROM {} LIMIT 1").format(sql.Identifier(leaf.name))
    return not conn.execute(query).fetchall()


def _free_name(conn: psycopg.Connection, leaf: Leaf) -> str:
    """Return a name for the archive of a leaf: a month that was archived before has messages that came late."""
    assert leaf.end is not None  # noqa: S101
    month = Month.of(leaf.start or leaf.end)
    name = f"messages_archived_{'' if leaf.start else 'before_'}{month.year:04}_{month.number:02}"
    taken = {found for (found,) in conn.execute("SELECT name FROM message_archives")}
    return next(free for free in chain([name], (f"{name}_{place}" for place in count(2))) if free not in taken)


def detach(conn: psycopg.Connection, database_url: str, leaf: Leaf, advance: Advance) -> Leaf:
    """Take the oldest partition with messages out of the table; return it as a table. Statistics stay as they are.

    Raises: ArchiveError if its hours are not summed; TableBusy; psycopg.Error.
    """
    name = _free_name(conn, leaf)
    with no_rollup_job(database_url) as keeper:
        [(sealed_to,)] = keeper.execute(_SEALED_TO).fetchall()
        if leaf.end is None or sealed_to < leaf.end:
            raise ArchiveError(f"statistics are summed to {sealed_to:%Y-%m-%d %H:%M}: run `parlor maintain` first")
        found = salons(conn, leaf)
        for place, salon_id in enumerate(found, 1):
            add_quarters(conn, leaf, name, salon_id)
            advance(f"{name}: sums", place, len(found))
        conn.execute("ANALYZE message_quarters")  # else stats keeps the plan for an empty table: it reads all rows
        with locked(conn):
            _cut(conn, leaf, name)
            add_deltas(conn, leaf, name)
            keeper.execute("SELECT")  # fails if it was ended: then a job may have folded deltas since the sums
            conn.execute(
                """INSERT INTO message_archives (name, start_time, end_time, erasure_id)
                VALUES (%s, %s, %s, (SELECT coalesce(max(erasure_id), 0) FROM message_erasures))""",
                [name, leaf.start, leaf.end],
            )
            conn.execute("UPDATE rollups SET archives = array_append(archives, %s)", [name])
    return Leaf(name, leaf.start, leaf.end)


def _cut(conn: psycopg.Connection, leaf: Leaf, name: str) -> None:
    """Detach a leaf; messages_early takes its time, for messages that come late."""
    do = partial(run, conn)
    do("ALTER TABLE messages DETACH PARTITION {}", leaf.name)
    do("ALTER TABLE {} RENAME TO {}", leaf.name, name)
    if leaf.start is None:
        do("CREATE TABLE {} PARTITION OF messages FOR VALUES FROM (MINVALUE) TO ({})", EARLY, leaf.end)
        copy_parameters(conn, EARLY, name)
    else:
        do("ALTER TABLE messages DETACH PARTITION {}", EARLY)
        do("ALTER TABLE messages ATTACH PARTITION {} FOR VALUES FROM (MINVALUE) TO ({})", EARLY, leaf.end)


def run(conn: psycopg.Connection, statement: str, *values: object) -> None:
    """Run a statement; texts are put into it as identifiers, other values as literals."""
    parts = [sql.Identifier(value) if isinstance(value, str) else sql.Literal(value) for value in values]
    conn.execute(sql.SQL(statement).format(*parts))


_SEALED_TO = "SELECT greatest(sealed_to, '1970-01-01 00:00:00+00') FROM rollups"


@contextmanager
def no_rollup_job(database_url: str) -> Iterator[psycopg.Connection]:
    """Keep the job of the hourly sums from running, as long as the connection lives. Raises: psycopg.Error."""
    url, _ = split_pool_parameters(database_url)
    with psycopg.connect(url, application_name=NAME) as conn:
        conn.execute("LOCK TABLE rollups IN SHARE UPDATE EXCLUSIVE MODE")
        yield conn
        conn.rollback()


def detached(conn: psycopg.Connection) -> list[Leaf]:
    """Return the archives whose tables are still there: an earlier run ended before it had deleted them."""
    query = (
        "SELECT name, start_time, end_time FROM message_archives WHERE to_regclass(name) IS NOT NULL ORDER BY end_time"
    )
    return [Leaf(*row) for row in conn.execute(query)]


def finish(conn: psycopg.Connection, leaf: Leaf, folder: Path, advance: Advance) -> Archived:
    """Write a detached table to its file, unless it is written, and delete it with the rows beside it."""
    file = file_path(folder, leaf.name)
    query = "SELECT erasure_id, sha256 FROM message_archives WHERE name = %s"
    [(erasure_id, recorded)] = conn.execute(query, [leaf.name]).fetchall()
    if recorded is None:
        names = columns(conn, leaf.name)
        advance(f"{leaf.name}: file", 0, 1)
        _write(conn, leaf, file, with_rows_beside(leaf.name, names), [*names, *BESIDE], erasure_id)
        advance(f"{leaf.name}: file", 1, 1)
    checked(conn, file)
    delete_rows_beside(conn, leaf.name)
    run(conn, "DROP TABLE {}", leaf.name)
    [(rows,)] = conn.execute("SELECT rows FROM message_archives WHERE name = %s", [leaf.name]).fetchall()
    return Archived(leaf.name, file, rows)


def _write(
    conn: psycopg.Connection, leaf: Leaf, file: Path, query: sql.Composable, names: list[str], erasure_id: int
) -> None:
    """Write a file and its manifest, record them, and give them their names."""
    assert leaf.end is not None  # noqa: S101
    rows, digest = write_rows(conn, query, part_of(file))
    [(schema,)] = conn.execute("SELECT max(migration_id) FROM _yoyo_migration").fetchall()
    start = leaf.start.isoformat() if leaf.start else None
    manifest = Manifest(leaf.name, start, leaf.end.isoformat(), rows, names, digest, schema, erasure_id)
    manifest.write(part_of(manifest_path(file)))
    conn.execute(
        "UPDATE message_archives SET rows = %s, sha256 = %s, erasure_id = %s WHERE name = %s",
        [rows, digest, erasure_id, leaf.name],
    )
    put_in_place(file)


def obey(conn: psycopg.Connection, folder: Path) -> list[str]:
    """Remove customers who were erased since from the files in a folder; return the names of those written anew.

    Raises: ArchiveError if a file is not the one that was written; OSError; psycopg.Error.
    """
    query = """
        SELECT name, start_time, end_time FROM message_archives
        WHERE sha256 IS NOT NULL AND erasure_id < (SELECT max(erasure_id) FROM message_erasures) ORDER BY end_time"""
    written = []
    for leaf in [Leaf(*row) for row in conn.execute(query)]:
        file = file_path(folder, leaf.name)
        if not file.exists() and not part_of(file).exists():
            continue  # it is in another folder: the erasures are kept for it
        manifest = checked(conn, file)
        with loaded(conn, file, manifest) as erasure_id:
            names = columns(conn, LOADED)
            order = sql.SQL("SELECT {} FROM {} ORDER BY salon_id, created_at, message_id").format(
                sql.SQL(", ").join(map(sql.Identifier, names)), sql.Identifier(LOADED)
            )
            _write(conn, leaf, file, order, names, erasure_id)
        written.append(leaf.name)
    forget_obeyed(conn)
    return written


def forget_obeyed(conn: psycopg.Connection) -> None:
    """Delete the erasures that all files obey."""
    conn.execute("""
        DELETE FROM message_erasures AS e
        WHERE NOT EXISTS (SELECT FROM message_archives AS a WHERE a.erasure_id < e.erasure_id)""")


def checked(conn: psycopg.Connection, file: Path) -> Manifest:
    """Return the manifest of a file that is the last one written of its archive.

    Raises: ArchiveError: an older copy may have customers who were erased since.
    """
    name = file.name.removesuffix(SUFFIX)
    rows = conn.execute("SELECT sha256 FROM message_archives WHERE name = %s", [name]).fetchall()
    if not rows:
        raise ArchiveError(f"{name} is not an archive of this database, or was restored: then the file can be deleted")
    [(recorded,)] = rows
    if part_of(file).exists() and sha256(part_of(file)) == recorded:  # a run was killed before it put it in place
        put_in_place(file)
    if not file.exists():
        raise ArchiveError(f"{file} is not there")
    manifest = Manifest.read(file)
    if (manifest.name, manifest.sha256) != (name, recorded) or sha256(file) != recorded:
        raise ArchiveError(f"{file} is not the file that was written last: it is damaged, or an older copy")
    return manifest


@contextmanager
def loaded(conn: psycopg.Connection, file: Path, manifest: Manifest) -> Iterator[int]:
    """Load a file into the temporary table LOADED without erased customers; return the last erasure obeyed."""
    conn.execute(f"DROP TABLE IF EXISTS {LOADED}".encode())
    create_loaded(conn, LOADED)
    try:
        read_rows(conn, file, LOADED, manifest.columns)
        run(conn, "CREATE INDEX ON {} (salon_id, conversation_id)", LOADED)
        run(conn, "ANALYZE {}", LOADED)
        with conn.transaction():
            erasure_id = obey_erasures(conn, LOADED, manifest.erasure_id)
        yield erasure_id
    finally:
        if not conn.broken:
            conn.execute(f"DROP TABLE IF EXISTS {LOADED}".encode())
