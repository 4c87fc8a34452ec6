"""A table of changes, read in an order that loses none.

The table has the columns xact_id (DEFAULT pg_current_xact_id()), seq (an identity), salon_id and created_at, the
primary key (xact_id, seq), and an index on created_at. Each row is written by the transaction that makes the change. A
trigger raises its xact_id to that of its salon's last row, if that is higher: changes of one thing come in their order.

Rows are read in the order (xact_id, seq), and only those of transactions below the snapshot's xmin: every transaction
below it has ended, so no row can appear behind one that was read. In the order of seq alone a row is lost whose
transaction commits after a higher seq was read.

A position is always that of a row, never the snapshot's xmin: after a crash Postgres assigns again the IDs of
transactions that left nothing in its log, such as those that were rolled back, and the xmin goes back with them. A row
that was read is in the log.
"""

import base64
import json
from binascii import b2a_base64
from collections.abc import Sequence
from typing import Any, NamedTuple

from google.protobuf.message import Message
from psycopg import AsyncConnection

from libs.cache import digest
from libs.db import Connection, Statement
from libs.messages import encoder
from libs.server import errors

# Times are the database's, in microseconds since 2000, as its rows have them.
HOUR = 3_600_000_000
TOKEN_AGE = 7 * 24 * HOUR
# A token of a change promises the changes after it, which may be as old as that change. It counts as issued at most
# this long after the change, so that they are still there when it expires.
TOKEN_GRACE = 12 * HOUR
# Rows outlive tokens: by TOKEN_GRACE, and because the row of a long transaction may follow one that was made later.
KEPT_DAYS = 8
PURGE_ROWS = 1000

_URLSAFE = bytes.maketrans(b"+/", b"-_")
_XMIN = "pg_snapshot_xmin(pg_current_snapshot())"


class Position(NamedTuple):
    """The place of a row in the order of changes; (0, 0) is before all."""

    xact_id: int
    seq: int


class Cursor(NamedTuple):
    """What a page_token contains: a position, and when it counts as issued."""

    position: Position
    time: int


class Change(NamedTuple):
    """A change: its place, its salon, when a token of it counts as issued, and its message, encoded."""

    position: Position
    salon_id: str
    time: int
    body: bytes


class ChangePage(NamedTuple):
    """Changes in their order, and the cursor of what follows.

    `now` is the time of the statement, `delay` for how many s the oldest change has been waiting that can't be read yet
    because an older transaction is open; 0 if there is none.
    """

    changes: Sequence[Change]
    cursor: Cursor
    is_full: bool
    now: int
    delay: float


class ChangeTable:
    """The statements that read and purge one table."""

    def __init__(self, name: str, message: type[Message], columns: str) -> None:
        """`columns` are SELECT's, named as the fields of the message; `name` and `columns` are literals in our code."""
        self.name = name
        self._message = message
        changes = f"""
            SELECT {name}.xact_id::text::bigint AS xact_id, {name}.seq, {name}.salon_id AS salon, {columns}
            FROM {name} WHERE ({name}.xact_id, {name}.seq) > (%(xact_id)s::xid8, %(seq)s::bigint)
                AND {name}.xact_id < {_XMIN}{{of_salon}}
            ORDER BY {name}.xact_id, {name}.seq LIMIT %(rows)s::int"""  # noqa: S608 - literals in our code
        read = f"""
            SELECT seen.*, page.* FROM (
                SELECT statement_timestamp() AS now, pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS xmax, (
                    SELECT extract(epoch FROM statement_timestamp() - created_at)::float8 FROM {name}
                    WHERE xact_id >= {_XMIN} ORDER BY xact_id, seq LIMIT 1
                ) AS delay
            ) AS seen LEFT JOIN LATERAL ({changes}
            ) AS page ON true"""  # noqa: S608
        self._read_all = read.format(of_salon="")
        self._read_salon = read.format(of_salon=f" AND {name}.salon_id = %(salon_id)s")
        self._latest = f"""
            SELECT statement_timestamp() AS now, page.* FROM (SELECT) AS one LEFT JOIN LATERAL (
                SELECT {name}.xact_id::text::bigint, {name}.seq FROM {name} WHERE {name}.xact_id < {_XMIN}
                ORDER BY {name}.xact_id DESC, {name}.seq DESC LIMIT 1
            ) AS page ON true"""  # noqa: S608
        self._oldest = f"""
            SELECT statement_timestamp() AS now, page.* FROM (SELECT) AS one LEFT JOIN LATERAL (
                SELECT {name}.xact_id::text::bigint, {name}.seq FROM {name}
                WHERE created_at < now() - interval '7 days' ORDER BY created_at DESC LIMIT 1
            ) AS page ON true"""  # noqa: S608
        # Of two processes that purge, one finds no row: they could deadlock.
        self._purge = f"""
            DELETE FROM {name} WHERE ctid = ANY(ARRAY(
                SELECT ctid FROM {name}
                WHERE created_at < now() - interval '{KEPT_DAYS} days'
                    AND (SELECT pg_try_advisory_xact_lock(hashtext('parlor'), hashtext('{name}')))
                ORDER BY created_at LIMIT {PURGE_ROWS}))"""  # noqa: S608

    def token(self, salon_id: str, cursor: Cursor) -> str:
        """Return the page_token of a cursor of a salon's changes; "" is all salons."""
        (xact_id, seq), time = cursor
        token = f'["{digest(self.name, salon_id)}",{xact_id},{seq},{time}]'
        return b2a_base64(token.encode(), newline=False).translate(_URLSAFE).decode()

    def cursor(self, salon_id: str, page_token: str) -> Cursor:
        """Return the cursor of a page_token. Raises: INVALID_FIELD if it is not ours, or of another salon."""
        try:
            made_for, *numbers = json.loads(base64.b64decode(page_token, altchars=b"-_", validate=True))
            xact_id, seq, time = numbers
        except (ValueError, TypeError, RecursionError) as error:
            raise _bad_token("is not a token of this service") from error
        if not all(type(number) is int and 0 <= number < 2**63 for number in numbers):
            raise _bad_token("is not a token of this service")
        if made_for != digest(self.name, salon_id):
            raise _bad_token("was made for another salon, or for all")
        return Cursor(Position(xact_id, seq), time)

    async def latest(self, conn: Connection) -> ChangePage:
        """Return an empty page whose cursor is that of all changes from now on.

        Changes of transactions that are open now follow it. Source: the primary key.
        """
        return (await conn.run(Statement(self._latest, {}, _read_position)))[0]  # type: ignore[no-any-return]

    async def oldest(self, conn: Connection) -> Position:
        """Return the position before the oldest change that is kept. Source: the index on created_at."""
        page: ChangePage = (await conn.run(Statement(self._oldest, {}, _read_position)))[0]
        return page.cursor.position

    async def read(self, conn: Connection, salon_id: str, cursor: Cursor | Position, rows: int) -> ChangePage:
        """Return up to `rows` changes after a cursor: those of one salon, or for "" of all.

        Raises: CURSOR_EXPIRED.
        Source: the primary key; the index on salon_id, xact_id, seq.
        """
        position = cursor.position if isinstance(cursor, Cursor) else cursor
        params = {"xact_id": position.xact_id, "seq": position.seq, "salon_id": salon_id, "rows": rows}
        query = self._read_salon if salon_id else self._read_all
        names, found = (await conn.run(Statement(query, params, lambda *found: found)))[0]
        now, xmax, delay, *_ = found[0]
        # A position that no transaction has reached is of a history that is gone: lost in a failover, or restored.
        if position.xact_id >= xmax or (isinstance(cursor, Cursor) and now - cursor.time > TOKEN_AGE):
            message = "changes that old are not kept: start again from the lists"
            raise errors.failed_precondition("CURSOR_EXPIRED", "page_token", message)
        if found[0][3] is None:
            return ChangePage((), Cursor(position, now), False, now, delay or 0.0)
        columns = list(zip(*found, strict=True))
        created_at = columns[names.index("create_time")]
        bodies = encoder(self._message, *names[6:])(columns[6:])
        changes = [
            Change(Position(xact_id, seq), salon.decode(), min(now, created + TOKEN_GRACE), body)
            for xact_id, seq, salon, created, body in zip(*columns[3:6], created_at, bodies, strict=True)
        ]
        is_full = len(changes) == rows
        after = Cursor(changes[-1].position, changes[-1].time if is_full else now)
        return ChangePage(changes, after, is_full, now, delay or 0.0)

    async def purge(self, conn: AsyncConnection[Any]) -> int:
        """Delete up to PURGE_ROWS changes that are too old; return how many. Source: the index on created_at."""
        return (await conn.execute(self._purge.encode())).rowcount


def _read_position(_: Sequence[str], rows: Sequence[Any]) -> ChangePage:
    now, xact_id, seq = rows[0]
    return ChangePage((), Cursor(Position(xact_id or 0, seq or 0), now), False, now, 0.0)


def _bad_token(description: str) -> errors.RpcError:
    return errors.invalid_fields([("page_token", description)])
