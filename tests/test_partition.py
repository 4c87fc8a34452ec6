"""`parlor partition` keeps every message and each change while the services are called."""

import asyncio
import json
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from ops import partition as partition_module
from ops.doctor import Limits
from ops.doctor.database import missing_indexes, unused_indexes
from ops.migrate import MigrationBusy
from ops.months import Leaf, Month, create_leaf, is_partitioned, leaves
from ops.partition import CannotPartition, partition
from ops.partitioned_table import change_places
from parlor.messaging.v1 import messaging_pb2 as pb
from parlor.stats.v1 import stats_pb2
from tests.partition_load import ALL, PAST, Load, fill
from tests.stack import PHONE, SALON, Stack, message_request, rows, running, salon

PARLOR = Path(sys.executable).parent / "parlor"
STEPS = [
    *("create the triggers that copy changes", "copy messages", "change places", "commit", "drop the old table"),
]
# Both tables, as the switch leaves them.
DIFFERENT = """
    SELECT count(*) FROM (
        (TABLE messages_one_table EXCEPT ALL TABLE messages) UNION ALL
        (TABLE messages EXCEPT ALL TABLE messages_one_table)
    ) AS different"""
DIFFERENT_NAMES = """
    WITH names AS (
        SELECT salon_id, message_name(whatsapp_id) AS name FROM messages WHERE whatsapp_id IS NOT NULL
    )
    SELECT count(*) FROM (
        (TABLE names EXCEPT ALL TABLE message_names) UNION ALL (TABLE message_names EXCEPT ALL TABLE names)
    ) AS different"""
WRONG_PARTITION = """
    SELECT count(*) FROM messages WHERE tableoid <> (CASE
        WHEN created_at >= %(end)s THEN 'messages_later' WHEN created_at < %(start)s THEN 'messages_early'
        ELSE to_char(created_at AT TIME ZONE 'UTC', '"messages_"YYYY_MM') END)::regclass"""


def compared(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return a list that will have the number of different rows at the moment of the switch."""
    found: list[Any] = []

    def change_and_compare(conn: psycopg.Connection) -> None:
        change_places(conn)
        for query in (DIFFERENT, DIFFERENT_NAMES, "SELECT count(*) FROM messages"):
            found.extend(conn.execute(query.encode()).fetchone() or ())

    monkeypatch.setattr(partition_module, "change_places", change_and_compare)
    return found


async def test_no_row_and_no_call_is_lost_while_messages_are_partitioned(
    one_table_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    different = compared(monkeypatch)
    async with running(one_table_url, redis_url) as stack:
        await fill(stack, 1_000)
        load = Load(stack, 1_000)
        async with load.running():
            done = await asyncio.to_thread(partition, one_table_url)
            await asyncio.sleep(1)  # the load goes on for a while, on the partitions
        assert load.failed == []
        assert different[:2] == [0, 0] and different[2] > 2_500
        assert rows(one_table_url, DIFFERENT_NAMES) == [(0,)]
        await statistics_equal_the_rows(stack)
    assert {name for _, _, name in load.calls} >= {
        "record",
        "status",
        "edit",
        "call",
        "sent",
        "erase",
        "list",
        "search",
    }
    assert load.commits > 20
    assert done.messages > 2_500
    with psycopg.connect(one_table_url) as conn:
        months = leaves(conn)
        assert len(months) == done.partitions == 2 + 24 + 1 + 12
        ends = {"start": months[0].end, "end": months[-1].start}
        assert conn.execute(WRONG_PARTITION, ends).fetchone() == (0,)


async def statistics_equal_the_rows(stack: Stack) -> None:
    request = stats_pb2.GetMessageDirectionStatsRequest(salon_id=SALON, **ALL)
    found = await stack.stats.GetMessageDirectionStats(request, **PAST)
    query = f"SELECT count(*) FROM messages WHERE salon_id = '{SALON}' AND direction = '{{}}' AND counted"
    for direction, messages in (("INBOUND", found.inbound_messages), ("OUTBOUND", found.outbound_messages)):
        assert rows(stack.database_url, query.format(direction)) == [(messages,)]


def plant(database_url: str) -> None:
    """Insert 400 messages of 30 months."""
    with psycopg.connect(database_url, autocommit=True) as conn:
        conn.execute("INSERT INTO conversations (salon_id, phone_number) VALUES ('a', '+4915112345678')")
        conn.execute("""
            INSERT INTO messages (salon_id, conversation_id, direction, whatsapp_id, type, status, content, created_at)
            SELECT salon_id, conversation_id, 'INBOUND', 'wamid.' || n, 'TEXT', 'RECEIVED', 'text ' || n,
                now() - n * interval '55 hours'
            FROM conversations, generate_series(1, 400) AS n""")


@pytest.mark.parametrize("step", STEPS)
def test_after_a_kill_at_any_step_messages_can_be_written_and_the_next_run_ends_the_work(
    one_table_url: str, step: str
) -> None:
    plant(one_table_url)
    query = "SELECT * FROM messages ORDER BY message_id"
    killed = subprocess.run([sys.executable, "-m", "tests.killed_partition", one_table_url, step], check=False)  # noqa: S603
    assert killed.returncode == -signal.SIGKILL
    with psycopg.connect(one_table_url, autocommit=True) as conn:
        conn.execute(
            "UPDATE messages SET content = 'changed', created_at = created_at - interval '1 month'"
            " WHERE whatsapp_id IN ('wamid.7', 'wamid.380')"
        )
        conn.execute("DELETE FROM messages WHERE whatsapp_id IN ('wamid.8', 'wamid.381')")
        before = conn.execute(query).fetchall()
        partition(one_table_url)
        assert conn.execute(query).fetchall() == before
        assert is_partitioned(conn)
        assert conn.execute(DIFFERENT_NAMES.encode()).fetchone() == (0,)
        left = "SELECT relname FROM pg_class WHERE relname ~ '_new$|_old$|one_table|copy_message'"
        assert conn.execute(left).fetchall() == []


def test_what_fails_leaves_one_table_without_triggers(one_table_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(conn: psycopg.Connection) -> None:
        change_places(conn)
        conn.execute("SELECT 1 / 0")

    plant(one_table_url)
    triggers = "SELECT tgname FROM pg_trigger WHERE tgrelid = 'messages'::regclass ORDER BY tgname"
    before = rows(one_table_url, triggers)
    monkeypatch.setattr(partition_module, "change_places", fail)
    with pytest.raises(psycopg.errors.DivisionByZero):
        partition(one_table_url)
    assert rows(one_table_url, triggers) == before
    assert rows(one_table_url, "SELECT to_regclass('messages_new'), (SELECT count(*) FROM message_names)") == [
        (None, 0)
    ]


def test_what_is_in_the_way_is_refused_in_words(one_table_url: str) -> None:
    with psycopg.connect(one_table_url, autocommit=True) as conn:
        conn.execute("CREATE VIEW newest AS SELECT max(created_at) FROM messages")
        with pytest.raises(CannotPartition, match="the view newest reads the table"):
            partition(one_table_url)
        conn.execute("DROP VIEW newest; CREATE UNIQUE INDEX one_media ON messages (salon_id, media_id)")
        with pytest.raises(CannotPartition, match="the unique index one_media must have the column created_at"):
            partition(one_table_url)
        conn.execute("DROP INDEX one_media")
    with psycopg.connect(one_table_url) as conn:
        conn.execute("SELECT pg_advisory_xact_lock(hashtext('parlor migrate'))")
        with pytest.raises(MigrationBusy):
            partition(one_table_url)


def test_the_command_says_what_it_did_and_refuses_a_second_run(one_table_url: str) -> None:
    plant(one_table_url)
    command = [str(PARLOR), "partition", "--json", "--database-url", one_table_url]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    found = json.loads(done.stdout)
    assert (found["messages"], found["partitions"]) == (400, 39)
    assert 0 < found["locked_milliseconds"] < 10_000
    again = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    assert (again.returncode, "messages are partitioned already" in again.stderr) == (1, True)


def test_a_writer_with_an_older_snapshot_fails_instead_of_being_lost(one_table_url: str) -> None:
    with psycopg.connect(one_table_url) as conn:
        conn.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ

        def write(name: str) -> None:
            if name == "copy messages":
                with pytest.raises(psycopg.errors.SerializationFailure):
                    conn.execute("DELETE FROM messages WHERE whatsapp_id = 'wamid.7'")
                conn.rollback()

        plant(one_table_url)
        partition(one_table_url, step=write)
    assert rows(one_table_url, "SELECT count(*) FROM messages") == [(400,)]


def test_the_layouts_have_the_same_columns_constraints_indexes_triggers_rights_and_comments(one_table_url: str) -> None:
    def schema() -> set[Any]:
        queries = [
            "SELECT attname, atttypid::regtype, attnotnull, pg_get_expr(adbin, adrelid), attacl::text,"
            " col_description(attrelid, attnum) FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid"
            " AND adnum = attnum WHERE attrelid = 'messages'::regclass AND attnum > 0 AND NOT attisdropped",
            "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = 'messages'::regclass"
            " AND contype NOT IN ('p', 'u')",
            "SELECT pg_get_indexdef(indexrelid), obj_description(indexrelid) FROM pg_index"
            " WHERE indrelid = 'messages'::regclass AND NOT indisunique",
            "SELECT tgname, tgtype, tgattr::text, tgfoid::regproc, tgargs, tgnewtable, tgenabled, tgqual IS NULL"
            " FROM pg_trigger WHERE tgrelid = 'messages'::regclass AND NOT tgisinternal AND tgname <> 'name_message'",
            "SELECT pg_get_statisticsobjdef(oid) FROM pg_statistic_ext WHERE stxrelid = 'messages'::regclass",
            "SELECT unnest(relacl)::text FROM pg_class WHERE oid = 'messages'::regclass",
        ]
        return {str(row).replace(" ON ONLY ", " ON ") for query in queries for row in rows(one_table_url, query)}

    before = schema()
    partition(one_table_url)
    after = schema()
    assert before - after == set()
    comment = "SELECT obj_description('whatsapp_id'::regclass)"
    assert {row for row in after - before if "(salon_id, whatsapp_id)" not in row} == set()
    assert rows(one_table_url, comment) == [("Finds a repeat, and the message of a status.",)]


async def test_a_whatsapp_id_is_unique_over_all_months(one_table_url: str) -> None:
    plant(one_table_url)
    partition(one_table_url)
    copy = "INSERT INTO messages (salon_id, conversation_id, direction, whatsapp_id, type, status, created_at)"
    copy += " SELECT salon_id, conversation_id, 'INBOUND', 'wamid.380', 'TEXT', 'RECEIVED', now() FROM conversations"
    with psycopg.connect(one_table_url, autocommit=True) as conn:
        with pytest.raises(psycopg.errors.UniqueViolation) as error:
            conn.execute(copy.encode())
        assert error.value.diag.constraint_name == "whatsapp_id"
        conn.execute("UPDATE messages SET whatsapp_id = NULL WHERE whatsapp_id = 'wamid.380'")
        conn.execute(copy.encode())
        conn.execute("UPDATE messages SET created_at = created_at - interval '5 months'")
        assert conn.execute(DIFFERENT_NAMES.encode()).fetchone() == (0,)


async def test_messages_of_each_month_are_found_repeated_changed_and_erased(one_table_url: str, redis_url: str) -> None:
    partition(one_table_url)
    async with running(one_table_url, redis_url) as stack:
        await salon(stack)
        months = [Month.of(datetime.now(UTC)).later(-number) for number in range(30)]
        for month in months:
            request = message_request(f"wamid.{month.leaf}", direction=2, type="MESSAGE_TYPE_TEMPLATE")
            request.send_time.FromDatetime(month.start)
            first = await stack.messaging.RecordMessage(request)
            assert await stack.messaging.RecordMessage(request) == first
            status = pb.RecordMessageStatusRequest(salon_id=SALON, whatsapp_id=request.whatsapp_id)
            status.status = pb.MESSAGE_STATUS_READ
            assert (await stack.messaging.RecordMessageStatus(status)).message_id == first.message_id
        assert rows(one_table_url, "SELECT count(*) FROM messages WHERE status = 'READ'") == [(30,)]
        await stack.messaging.EraseCustomer(pb.EraseCustomerRequest(salon_id=SALON, phone_number=PHONE))
        left = "SELECT (SELECT count(*) FROM messages WHERE content <> ''), (SELECT count(*) FROM message_names)"
        assert rows(one_table_url, left) == [(0, 0)]


def test_maintain_makes_months_ahead_and_messages_that_wait_for_them_move_unseen(one_table_url: str) -> None:
    plant(one_table_url)
    partition(one_table_url)
    insert = """
        INSERT INTO messages (salon_id, conversation_id, direction, whatsapp_id, type, status, content, created_at)
        SELECT salon_id, conversation_id, 'INBOUND', 'wamid.later.' || n, 'TEXT', 'RECEIVED', 'later',
            now() + n * interval '30 days'
        FROM conversations, generate_series(9, 15) AS n"""
    seen = """
        SELECT (SELECT count(*) FROM message_changes), (SELECT count(*) FROM message_deltas),
            (SELECT count(*) FROM message_words), (SELECT count(*) FROM messages)"""
    with psycopg.connect(one_table_url, autocommit=True) as conn:
        before = [leaf.name for leaf in leaves(conn)]
        [*kept, lost, lost_too, _] = leaves(conn)
        for leaf in (lost, lost_too, "messages_later"):
            name = leaf if isinstance(leaf, str) else leaf.name
            conn.execute(sql.SQL("DROP TABLE {}").format(sql.Identifier(name)))
        create_leaf(conn, Leaf("messages_later", lost.start, None), kept[-1].name)
        conn.execute(insert.encode())
        [counts] = conn.execute(seen.encode()).fetchall()
        command = [str(PARLOR), "maintain", "--json", "--database-url", one_table_url]
        done = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)  # noqa: S603
        assert done["partitions"] == {"ok": True, "partitions": [lost.name, lost_too.name]}
        assert [leaf.name for leaf in leaves(conn)] == before
        assert conn.execute(seen.encode()).fetchall() == [counts]
        assert conn.execute(DIFFERENT_NAMES.encode()).fetchone() == (0,)
        months = leaves(conn)
        assert conn.execute(WRONG_PARTITION, {"start": months[0].end, "end": months[-1].start}).fetchone() == (0,)
        assert conn.execute("SELECT count(*) > 0 FROM messages_later").fetchone() == (True,)
        alike = """
            SELECT (SELECT count(*) FROM pg_index WHERE indrelid = oid),
                (SELECT count(*) FROM pg_trigger WHERE tgrelid = oid AND tgenabled = 'O'),
                (SELECT count(*) FROM pg_constraint WHERE conrelid = oid),
                (SELECT count(*) FROM pg_statistic_ext WHERE stxrelid = oid), reloptions
            FROM pg_class WHERE oid IN (SELECT inhrelid FROM pg_inherits WHERE inhparent = 'messages'::regclass)"""
        assert len(set(map(str, conn.execute(alike.encode())))) == 1


def test_maintain_and_doctor_leave_one_table_and_its_partitions_alone(one_table_url: str) -> None:
    command = [str(PARLOR), "maintain", "--json", "--database-url", one_table_url]
    done = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)  # noqa: S603
    assert done["partitions"] == {"ok": True, "partitions": []}
    plant(one_table_url)
    partition(one_table_url)
    with psycopg.connect(one_table_url, autocommit=True) as conn:
        for _ in range(20):
            conn.execute("SELECT count(*) FROM messages")
        reads = Limits(fewest_reads_of_table=10)
        assert list(missing_indexes(conn, reads)) == []
        assert list(unused_indexes(conn, reads)) == []
