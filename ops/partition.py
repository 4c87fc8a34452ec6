"""`parlor partition`: makes messages a table that is partitioned by month, while the services use it (decision 0067).

A new table, messages_new, gets all rows and each change. Then it takes the place of messages, within milliseconds.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple
from uuid import UUID

import psycopg
from psycopg import sql
from psycopg.errors import DeadlockDetected, LockNotAvailable
from rich.progress import Progress

from libs.db import split_pool_parameters
from ops.migrate import exclusive
from ops.months import attempts, end_autovacuum, is_partitioned, leaves, set_timeouts
from ops.partitioned_table import (
    NEW,
    OLD,
    change_places,
    check,
    columns,
    create_copy_trigger,
    create_foreign_keys,
    create_table,
    drop_foreign_keys,
    months,
    remove,
)

NAME = "parlor partition"
# A batch locks its messages. It takes about BATCH_SECONDS, and gives up for a while if it waits for a call.
# Calls have the processors to themselves for as long after it.
BATCH_SECONDS = 0.03
FIRST_ROWS, MOST_ROWS = 100, 2_000
BATCH_LOCK_MILLISECONDS = 50
PAUSE_SECONDS = 0.05
WAIT_SECONDS = 600.0  # for transactions of before to end

Step = Callable[[str], None]


class CannotPartition(Exception):
    """What is in the way."""


class Partitioned(NamedTuple):
    """What was done. `locked_milliseconds` is how long nobody could read or write messages."""

    messages: int
    partitions: int
    seconds: float
    locked_milliseconds: float


def partition(database_url: str, *, progress: Progress | None = None, step: Step | None = None) -> Partitioned:
    """Partition messages by month, and return what was done. `step` is called with the name of each step before it.

    If it is killed, the services go on as before; the next run begins again. If it fails, it removes what it has made.
    Raises: CannotPartition; TableBusy; MigrationBusy if a migration or another run is under way; psycopg.Error.
    """
    url, _ = split_pool_parameters(database_url)
    with (
        exclusive(url, 0, NAME),
        psycopg.connect(url, autocommit=True, prepare_threshold=None, application_name=NAME) as conn,
    ):
        return _Run(conn, progress or Progress(disable=True), step or (lambda _: None)).run()


class _Run:
    def __init__(self, conn: psycopg.Connection, progress: Progress, step: Step) -> None:
        self.conn = conn
        self.progress = progress
        self.task = progress.add_task("begin", total=None)
        self._step = step

    def step(self, name: str) -> None:
        self.progress.update(self.task, description=name)
        self._step(name)

    def run(self) -> Partitioned:
        started = time.monotonic()
        if is_partitioned(self.conn):
            if not self._exists(OLD):
                raise CannotPartition("messages are partitioned already")
            self._remove_old()  # a run before was killed after it had changed the tables
            return Partitioned(0, len(leaves(self.conn)), time.monotonic() - started, 0.0)
        self.step("remove what a run before left")
        retry(self.conn, lambda: remove(self.conn), "messages", NEW, OLD)
        if problem := check(self.conn):
            raise CannotPartition(problem)
        try:
            copied = self._prepare()
            self.step("change places")
            locked = self._change_places()
        except BaseException:
            with suppress(psycopg.Error):
                if not is_partitioned(self.conn):
                    retry(self.conn, lambda: remove(self.conn), "messages", NEW, OLD)
            raise
        self._remove_old()
        return Partitioned(copied, len(leaves(self.conn)), time.monotonic() - started, locked)

    def _prepare(self) -> int:
        """Fill the new table; return the number of copied messages."""
        self.step("create the new table")
        partitions = months(self.conn)
        retry(self.conn, lambda: create_table(self.conn, partitions))
        retry(self.conn, lambda: create_foreign_keys(self.conn), "conversations")
        self.step("create the triggers that copy changes")
        retry(self.conn, lambda: create_copy_trigger(self.conn), "messages")
        self._await_transactions()
        self.step("copy messages")
        copied = self._copy()
        self.step("vacuum and analyze")
        self.conn.execute(f"VACUUM (ANALYZE) {NEW}, message_names".encode())
        # A snapshot of before does not see the copied rows.
        self.step("wait for older transactions")
        self._await_transactions()
        return copied

    def _copy(self) -> int:
        """Copy all messages, in the order of messages_pkey; return how many there were."""
        query = "SELECT greatest(reltuples, 0)::bigint FROM pg_class WHERE oid = 'messages'::regclass"
        self.progress.update(self.task, total=self.conn.execute(query).fetchall()[0][0])
        names = sql.SQL(", ").join(map(sql.Identifier, columns(self.conn)))
        statement = _COPY.format(columns=names, new=sql.Identifier(NEW))
        place: tuple[str, UUID] | None = ("", UUID(int=0))
        rows, copied, analyzed = FIRST_ROWS, 0, MOST_ROWS
        while place:
            started = time.monotonic()
            try:
                with self.conn.transaction():
                    set_timeouts(self.conn, BATCH_LOCK_MILLISECONDS)
                    self.conn.execute("SET LOCAL synchronous_commit = off")  # of no use if the server fails
                    params = {"salon_id": place[0], "message_id": place[1], "rows": rows}
                    found = self.conn.execute(statement, params).fetchone()
            except (LockNotAvailable, DeadlockDetected):
                time.sleep(PAUSE_SECONDS)
                continue
            took = time.monotonic() - started
            count, place = (found[0], found[1:]) if found else (0, None)
            copied += count
            if copied >= 2 * analyzed:  # else a service keeps the plan for an empty table: it reads all rows
                self.conn.execute("ANALYZE message_names")
                analyzed = copied
            self.progress.advance(self.task, count)
            rows = min(MOST_ROWS, max(1, int(rows * BATCH_SECONDS / took)), 2 * rows)
            time.sleep(took)
        return copied

    def _change_places(self) -> float:
        """Let the new table be messages; return for how many milliseconds nobody could read or write messages."""
        for _ in attempts():
            with suppress(LockNotAvailable, DeadlockDetected):
                with self.conn.transaction():
                    set_timeouts(self.conn)
                    self.conn.execute("LOCK TABLE messages IN ACCESS EXCLUSIVE MODE")
                    started = time.monotonic()
                    change_places(self.conn)
                    self._step("commit")
                return (time.monotonic() - started) * 1000
            end_autovacuum(self.conn, "messages", NEW, "raw_messages")
        raise AssertionError

    def _remove_old(self) -> None:
        self.step("drop the old table")
        retry(self.conn, lambda: drop_foreign_keys(self.conn, OLD), "conversations", OLD)
        retry(self.conn, lambda: remove(self.conn), "messages", NEW, OLD)

    def _exists(self, table: str) -> bool:
        return bool(self.conn.execute("SELECT to_regclass(%s) IS NOT NULL", [table]).fetchall()[0][0])

    def _await_transactions(self) -> None:
        """Wait until all transactions of this database have ended that are open now. Raises: CannotPartition."""
        [(open_now,)] = self.conn.execute(_OPEN, [["parlor migrate", NAME]]).fetchall()
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            query = "SELECT array_agg(pid) FROM pg_locks WHERE locktype = 'virtualxid' AND virtualtransaction = ANY(%s)"
            [(left,)] = self.conn.execute(query, [open_now or []]).fetchall()
            if not left:
                return
            if time.monotonic() > deadline:
                raise CannotPartition(f"transactions have been open for long: those of the processes {left}")
            time.sleep(PAUSE_SECONDS)


def retry(conn: psycopg.Connection, change: Callable[[], None], *tables: str) -> None:
    """Run a short transaction that locks tables, again and again while a lock is not free. Raises: TableBusy."""
    for _ in attempts():
        with suppress(LockNotAvailable, DeadlockDetected):
            with conn.transaction():
                set_timeouts(conn)
                change()
            return
        end_autovacuum(conn, *tables)


# The messages are locked, so that none is deleted between the read and the insert. Their triggers have inserted what is
# newer already.
_COPY = sql.SQL("""
    WITH batch AS MATERIALIZED (
        SELECT {columns} FROM messages
        WHERE (salon_id, message_id) > (%(salon_id)s, %(message_id)s)
        ORDER BY salon_id, message_id LIMIT %(rows)s FOR SHARE
    ), copied AS (
        INSERT INTO {new} ({columns}) SELECT {columns} FROM batch ON CONFLICT DO NOTHING
    ), named AS (
        INSERT INTO message_names (salon_id, name)
        SELECT salon_id, message_name(whatsapp_id) FROM batch WHERE whatsapp_id IS NOT NULL ON CONFLICT DO NOTHING
    )
    SELECT count(*) OVER (), salon_id, message_id FROM batch ORDER BY salon_id DESC, message_id DESC LIMIT 1""")

# VACUUM reads no rows by its snapshot; sessions that hold the lock of migrations have none.
_OPEN = """
    SELECT array_agg(virtualtransaction) FROM pg_locks JOIN pg_stat_activity USING (pid)
    WHERE locktype = 'virtualxid' AND granted AND mode = 'ExclusiveLock' AND datname = current_database()
        AND pid <> pg_backend_pid() AND coalesce(application_name, '') <> ALL (%s)
        AND pid NOT IN (SELECT pid FROM pg_stat_progress_vacuum)"""
