"""`parlor verify-indexes` checks the statements of every RPC, and reports plans that lack their index."""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from io import StringIO
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from rich.console import Console

from ops.indexes import UNUSED, check_plans, tables, verify
from ops.partition import partition
from ops.recording import Statement
from ops.sample_data import load_sample_data
from ops.servers import Postgres, postgres_url
from parlor.booking.v1 import booking_pb2
from parlor.messaging.v1 import messaging_pb2
from parlor.stats.v1 import stats_pb2

PARLOR = Path(sys.executable).parent / "parlor"

# Dropped indexes: an RPC that uses each, and the problem of its plan without it.
DROPPED = {
    "booking_code_salon_id": ("BookingService.GetBookingByCode", "reads all of bookings, 10,000 rows"),
    "idx_bookings_salon_start": ("BookingService.ListBookings", "sorts 500 rows for a page"),
    "idx_bookings_customer_salon": ("BookingService.EraseCustomer", "reads much of bookings for few rows"),
    "booking_events_pkey": ("BookingService.ListBookingEvents", "reads all of booking_events"),
    "idx_bookings_user_salon": ("BookingService.ListBookings", "reads much of bookings for few rows"),
    "idx_bookings_salon_range": ("BookingService.ListBookings", "reads much of bookings for few rows"),
    "idx_bookings_salon_updated": ("BookingService.ListBookings", "sorts 500 rows for a page"),
    "idx_messages_salon_created": ("MessagingService.ListMessages", "sorts 2,500 rows for a page"),
    "idx_messages_phone_salon": ("MessagingService.ListMessages", "reads much of messages for few rows"),
    "idx_messages_conversation_created": ("MessagingService.GetConversation", "reads all of messages, 50,000 rows"),
    "whatsapp_id": ("MessagingService.RecordMessageStatus", "reads all of messages, 50,000 rows"),
    "idx_bookings_created": ("StatsService.ListBookingStats", "reads much of bookings for few rows"),
    "idx_ai_messages_salon_created": ("StatsService.GetAiAnalytics", "reads much of ai_messages for few rows"),
}
# Indexes besides the 15, and an RPC whose plan uses each.
USERS = {
    "bookings_no_overlap": "BookingService.SearchAvailability",
    "booking_events_pkey": "BookingService.ListBookingEvents",
    "idx_bookings_user_salon": "BookingService.ListBookings",
    "idx_bookings_salon_resource_start": "BookingService.ListBookings",
    "idx_bookings_salon_range": "BookingService.ListBookings",
    "idx_bookings_salon_updated": "BookingService.ListBookings",
    "conversations_pkey": "MessagingService.GetConversation",
    "customer_identities_pkey": "MessagingService.IngestWebhook",
    "idx_customer_identities_customer": "MessagingService.GetCustomer",
    "idx_customers_salon_created": "MessagingService.ListCustomers",
    "idx_customers_salon_opted_out": "MessagingService.ListCustomers",
    "idx_customer_identities_prefix": "MessagingService.ListCustomers",
    "idx_conversations_salon_tags": "MessagingService.ListConversations",
    "idx_conversations_salon_unread_last": "MessagingService.ListConversations",
    "idx_conversations_salon_assignee_last": "MessagingService.ListConversations",
    "idx_conversations_salon_unassigned_last": "MessagingService.ListConversations",
    "idx_conversations_salon_window": "MessagingService.ListConversations",
    "idx_conversations_salon_name": "MessagingService.ListConversations",
    "idx_conversations_salon_number": "MessagingService.ListConversations",
    "idx_messages_salon_period_search": "MessagingService.SearchMessages",
    "idx_messages_salon_priced": "StatsService.GetSalonStats",
    "message_hours_pkey": "StatsService.GetMessageDirectionStats",
    "idx_message_deltas_salon_created": "StatsService.GetSalonStats",
    "conversation_hours_pkey": "StatsService.GetSalonStats",
    "idx_conversation_deltas_salon_started": "StatsService.GetSalonStats",
    "ai_message_hours_pkey": "StatsService.GetAiAnalytics",
    "idx_ai_message_changes_salon_created": "StatsService.GetAiAnalytics",
    "idx_ai_messages_salon_booking": "StatsService.GetAiAnalytics",
}


@pytest.fixture(scope="module")
def sample_url(postgres: Postgres) -> Iterator[str]:
    """The owner's URL of a database with the sample data."""
    with psycopg.connect(postgres_url(postgres.port, "postgres"), autocommit=True) as admin:
        admin.execute("CREATE DATABASE sample TEMPLATE parlor")
        url = postgres_url(postgres.port, "sample")
        load_sample_data(url, 1)
        yield url
        admin.execute("DROP DATABASE sample WITH (FORCE)")


def drop(conn: psycopg.Connection, index: str) -> None:
    """Drop an index, with its constraint."""
    query = "SELECT conrelid::regclass::text FROM pg_constraint WHERE conindid = %s::regclass"
    row = conn.execute(query, [index]).fetchone()
    name = sql.Identifier(index)
    if row is None:
        conn.execute(sql.SQL("DROP INDEX {}").format(name))
    else:
        conn.execute(sql.SQL("ALTER TABLE {} DROP CONSTRAINT {}").format(sql.SQL(row[0]), name))


def test_every_rpc_has_a_recorded_statement(recorded: Sequence[Statement]) -> None:
    rpcs = {
        f"{service.name}.{method.name}"
        for module in (booking_pb2, messaging_pb2, stats_pb2)
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    assert rpcs - {rpc for statement in recorded for rpc in statement.rpcs} == set()


def test_indexes_and_plans_are_ok_on_the_sample_data(sample_url: str, recorded: Sequence[Statement]) -> None:
    report = verify(sample_url, recorded)
    assert [plan for plan in report.plans if not plan.ok] == []
    assert [index for index in report.indexes if index.state != "present"] == []
    assert {index.name for index in report.indexes if not index.rpcs} == set(UNUSED)
    assert report.ok
    for index, rpc in USERS.items():
        assert any(rpc in plan.rpcs and index in plan.indexes for plan in report.plans), index


def test_indexes_and_plans_are_ok_on_the_sample_data_if_messages_are_partitioned(
    one_table_url: str, recorded: Sequence[Statement]
) -> None:
    load_sample_data(one_table_url, 1)
    partition(one_table_url)
    report = verify(one_table_url, recorded)
    assert [plan for plan in report.plans if not plan.ok] == []
    assert [index for index in report.indexes if index.state != "present"] == []
    assert all(index.size_bytes >= 100_000 for index in report.indexes if index.table == "messages")
    load_sample_data(one_table_url, 1, replace=True)


@pytest.mark.parametrize("index", DROPPED)
def test_a_dropped_index_fails_the_statements_of_its_rpcs(
    sample_url: str, recorded: Sequence[Statement], index: str
) -> None:
    rpc, verdict = DROPPED[index]
    with psycopg.connect(sample_url) as conn:
        drop(conn, index)
        failed = [plan for plan in check_plans(conn, recorded) if not plan.ok]
        conn.rollback()
    assert any(rpc in plan.rpcs and verdict in plan.verdict for plan in failed)


def test_a_statement_with_a_missing_column_is_reported(sample_url: str) -> None:
    statement = Statement("SELECT gone FROM bookings WHERE salon_id = $1", ("BookingService.GetBookingByCode",))
    with psycopg.connect(sample_url) as conn:
        [plan] = check_plans(conn, [statement])
    assert (plan.ok, plan.verdict) == (False, 'column "gone" does not exist')


def test_an_unused_index_is_reported(sample_url: str, recorded: Sequence[Statement]) -> None:
    rest = [statement for statement in recorded if "StatsService.ListBookingStats" not in statement.rpcs]
    states = {index.name: index.state for index in verify(sample_url, rest).indexes}
    assert [name for name, state in states.items() if state != "present"] == ["idx_bookings_created"]


def test_the_command_names_the_statements_that_need_a_missing_index(sample_url: str) -> None:
    with psycopg.connect(sample_url, autocommit=True) as conn:
        drop(conn, "idx_messages_phone_salon")
        try:
            command = [str(PARLOR), "verify-indexes", "--json", "--database-url", sample_url]
            done = subprocess.run(command, capture_output=True, text=True)  # noqa: S603 - ours
        finally:
            conn.execute("CREATE INDEX idx_messages_phone_salon ON messages (phone_number, salon_id)")
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    assert not report["ok"]
    assert [index["name"] for index in report["indexes"] if index["state"] == "missing"] == ["idx_messages_phone_salon"]
    failed = [plan for plan in report["plans"] if not plan["ok"]]
    assert [plan["rpcs"] for plan in failed] == [["MessagingService.ListMessages"]] * len(failed)
    assert failed and all("phone_number = wanted.phone_number" in plan["sql"] for plan in failed)


def test_statements_whose_plans_break_a_rule_are_shown_in_full(sample_url: str) -> None:
    statement = Statement("SELECT booking_id\nFROM bookings WHERE notes = $1", ("BookingService.ListBookings",))
    console = Console(width=100, record=True, file=StringIO())
    console.print(tables(verify(sample_url, [statement])))
    shown = console.export_text()
    assert "BookingService.ListBookings: reads all of bookings, 10,000 rows\nSELECT booking_id\nFROM bookings" in shown
    assert shown.endswith("1 of 15 indexes ok, 0 of 1 plans ok\n")


def test_similar_words_are_found_with_an_index(sample_url: str) -> None:
    """A function of the database finds them, so no recorded plan shows the index."""
    scans = "SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = 'message_words_similar'"
    with psycopg.connect(sample_url, autocommit=True) as conn:
        words = "SELECT 'salon-123', md5(n::text) FROM generate_series(1, 20000) AS n"
        conn.execute(f"INSERT INTO message_words (salon_id, word) {words}".encode())
        conn.execute("ANALYZE message_words")
        before = conn.execute(scans).fetchall()
        conn.execute("SELECT similar_query('salon-123', message_query('de', 'Strahnn'))")
        conn.execute("SELECT pg_stat_force_next_flush()")
        assert conn.execute(scans).fetchall() > before
