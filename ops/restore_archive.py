"""`parlor restore-archive`: put the messages of an archived month back into the database."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import psycopg
from psycopg import sql

from ops.archive import LOADED, Advance, Archived, alone, checked, detached, finish, forget_obeyed, loaded, run
from ops.archive_files import ArchiveError, Manifest, manifest_path
from ops.archive_queries import follow_merges, insert_rows_beside
from ops.months import EARLY, Leaf, Month, copy_parameters, leaves, locked
from ops.partitioned_table import columns, foreign_keys

TRIES = 5
PRESENT = "messages_present"


def restore(database_url: str, file: Path, drop_cache: Callable[[], None], advance: Advance) -> Archived:
    """Put the messages of a file back, without customers who were erased since, and delete the file.

    They are in the table again, as are their status events, reactions and items; statistics stay as they were. From now
    on EraseCustomer would not reach the file.
    Raises: ArchiveError; TableBusy; OSError; psycopg.Error; what `drop_cache` raises.
    """
    with alone(database_url) as conn:
        for left in detached(conn):
            finish(conn, left, file.parent, advance)
        manifest = checked(conn, file)
        for _ in range(TRIES):
            if _try(conn, file, manifest, advance):
                break
        else:
            raise ArchiveError("customers are erased all the time; try again later")
        drop_cache()
        conn.execute("DELETE FROM message_quarters WHERE archive = %s", [manifest.name])
        forget_obeyed(conn)
    file.unlink()
    manifest_path(file).unlink()
    return Archived(manifest.name, file, manifest.rows)


def _try(conn: psycopg.Connection, file: Path, manifest: Manifest, advance: Advance) -> bool:
    """Load the file and put its rows into messages; return False if a customer was erased meanwhile."""
    query = "SELECT name, start_time, end_time FROM message_archives WHERE name = %s"
    [row] = conn.execute(query, [manifest.name]).fetchall()
    leaf = Leaf(*row)
    advance(f"{leaf.name}: load", 0, 2)
    with loaded(conn, file, manifest) as erasure_id:
        with conn.transaction():
            follow_merges(conn, LOADED)
            _create(conn, leaf)
            _copy_rows(conn, LOADED, leaf.name, leaf)
            insert_rows_beside(conn, LOADED)
    advance(f"{leaf.name}: load", 1, 2)
    _add_foreign_key(conn, leaf)
    run(conn, "ANALYZE {}", leaf.name)
    place = _place(conn, leaf)
    with locked(conn):
        newest = conn.execute("SELECT coalesce(max(erasure_id), 0) FROM message_erasures").fetchall()
        if is_newest := newest <= [(erasure_id,)]:
            if place is None:
                _insert(conn, leaf)
            else:
                _attach(conn, leaf, place)
            conn.execute("DELETE FROM message_archives WHERE name = %s", [leaf.name])
            conn.execute("UPDATE rollups SET archives = array_remove(archives, %s)", [leaf.name])
    if not is_newest:
        finish(conn, leaf, file.parent, advance)
        return False
    advance(f"{leaf.name}: load", 2, 2)
    return True


def _create(conn: psycopg.Connection, leaf: Leaf) -> None:
    """Create the table that becomes the partition. Its constraint spares the scan of all rows when it is attached."""
    run(conn, "CREATE TABLE {} (LIKE messages INCLUDING ALL)", leaf.name)
    bounds = "created_at < {}" if leaf.start is None else "created_at < {} AND created_at >= {}"
    run(conn, f"ALTER TABLE {{}} ADD CONSTRAINT months_check CHECK ({bounds})", leaf.name, leaf.end, *leaf[1:2])


def _add_foreign_key(conn: psycopg.Connection, leaf: Leaf) -> None:
    """Give the table the foreign key of messages, so that it need not be checked when it is attached."""
    for name, definition in foreign_keys(conn):
        names = {"table": sql.Identifier(leaf.name), "name": sql.Identifier(name)}
        with locked(conn):
            added = sql.SQL("ALTER TABLE {table} ADD CONSTRAINT {name} {definition} NOT VALID")
            conn.execute(added.format(**names, definition=definition))
        conn.execute(sql.SQL("ALTER TABLE {table} VALIDATE CONSTRAINT {name}").format(**names))


def _place(conn: psycopg.Connection, leaf: Leaf) -> Leaf | None:
    """Return the partition whose place a table takes; None if the rows of the table are to be inserted.

    Nobody can read messages meanwhile, so fewer rows move: those of the partition, or those of the table.
    """
    assert leaf.end is not None  # noqa: S101
    for one in leaves(conn):
        begins = one.start is None or (leaf.start is not None and one.start <= leaf.start)
        if begins and one.end is not None and leaf.end <= one.end and _count(conn, one) <= _count(conn, leaf):
            return one
    return None


def _count(conn: psycopg.Connection, leaf: Leaf) -> int:
    query = sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(leaf.name))
    [(count,)] = conn.execute(query).fetchall()
    return int(count)


def _insert(conn: psycopg.Connection, leaf: Leaf) -> None:
    """Insert the rows of a table into the partitions of their times. No trigger sees them."""
    conn.execute("ALTER TABLE messages DISABLE TRIGGER USER")
    _copy_rows(conn, leaf.name, "messages", leaf)
    conn.execute("ALTER TABLE messages ENABLE TRIGGER USER")
    run(conn, "DROP TABLE {}", leaf.name)


def _attach(conn: psycopg.Connection, leaf: Leaf, present: Leaf) -> None:
    """Attach a table, and partitions for the time after it and for what came late, in the place of one partition."""
    do = partial(run, conn)
    do("ALTER TABLE messages DETACH PARTITION {}", present.name)
    do("ALTER TABLE {} RENAME TO {}", present.name, PRESENT)
    restored = Leaf(Month.of(leaf.start).leaf if leaf.start else EARLY, leaf.start, leaf.end)
    do("ALTER TABLE {} RENAME TO {}", leaf.name, restored.name)
    for piece in _pieces(present, restored):
        if piece != restored:
            do("CREATE TABLE {} (LIKE messages INCLUDING ALL)", piece.name)
        copy_parameters(conn, piece.name, PRESENT)
        _copy_rows(conn, PRESENT, piece.name, piece)
        do(f"ALTER TABLE messages ATTACH PARTITION {{}} FOR VALUES FROM ({_bound(piece)}) TO ({{}})", *_values(piece))
    do("DROP TABLE {}", PRESENT)
    do("ALTER TABLE {} DROP CONSTRAINT months_check", restored.name)


def _pieces(present: Leaf, restored: Leaf) -> list[Leaf]:
    """Return the partitions that take the place of one: the restored one, what is before it, and months after it."""
    assert restored.end is not None and present.end is not None  # noqa: S101
    pieces = [restored] if present.start == restored.start else [Leaf(EARLY, None, restored.start), restored]
    month = Month.of(restored.end)
    while month.start < present.end:
        pieces.append(Leaf(month.leaf, month.start, month.later(1).start))
        month = month.later(1)
    return pieces


def _bound(piece: Leaf) -> str:
    return "MINVALUE" if piece.start is None else "{}"


def _values(piece: Leaf) -> tuple[str | object, ...]:
    return (piece.name, piece.end) if piece.start is None else piece


def _copy_rows(conn: psycopg.Connection, source: str, target: str, period: Leaf) -> None:
    names = sql.SQL(", ").join(map(sql.Identifier, columns(conn)))
    query = sql.SQL("""
        INSERT INTO {} ({}) SELECT {} FROM {}
        WHERE created_at >= coalesce(%s::timestamptz, '-infinity') AND created_at < %s""")
    parts = (sql.Identifier(target), names, names, sql.Identifier(source))
    conn.execute(query.format(*parts), [period.start, period.end])
