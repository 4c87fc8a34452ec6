"""Migrations: once, twice, at the same time; and what they leave in the database."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from ops.migrate import MIGRATIONS, migrate
from ops.servers import Postgres, postgres_url

INDEXES = {
    "idx_bookings_salon_start": "bookings (salon_id, start_ts)",
    "idx_bookings_salon_status_start": "bookings (salon_id, status, start_ts)",
    "idx_bookings_customer_salon": "bookings (customer_phone, salon_id)",
    "idx_bookings_created": "bookings (created_at)",
    "idx_messages_salon_created": "messages (salon_id, created_at)",
    "idx_messages_phone_salon": "messages (phone_number, salon_id)",
    "idx_messages_conversation_created": "messages (conversation_id, created_at)",
    "idx_messages_direction_salon": "messages (direction, salon_id)",
    "idx_conversations_salon_status_last": "conversations (salon_id, status, last_message_at)",
    "idx_conversations_salon_started": "conversations (salon_id, started_at)",
    "idx_ai_messages_conversation_created": "ai_messages (conversation_id, created_at)",
    "idx_ai_messages_salon_created": "ai_messages (salon_id, created_at)",
}
CONSTRAINTS = {
    "booking_code_salon_id": "bookings (booking_code, salon_id)",
    "salon_id_phone_number": "conversations (salon_id, phone_number)",
    "whatsapp_id": "messages (salon_id, whatsapp_id)",
}
DATA = ["salons", "resources", "bookings", "booking_events", "conversations", "messages", "ai_messages"]


@pytest.fixture
def empty_url(postgres: Postgres) -> Any:
    """An empty database."""
    with psycopg.connect(postgres_url(postgres.port, "postgres"), autocommit=True) as admin:
        admin.execute("CREATE DATABASE empty TEMPLATE template0")
        yield postgres_url(postgres.port, "empty")
        admin.execute("DROP DATABASE empty WITH (FORCE)")


def rows(url: str, query: str, *params: Any) -> list[tuple[Any, ...]]:
    """Return the rows of a query."""
    with psycopg.connect(url) as conn:
        return conn.execute(query.encode(), params).fetchall()


def indexes(url: str, kind: str) -> dict[str, str]:
    """Return the tables and columns of the indexes that a condition picks."""
    query = "SELECT indexname, tablename || ' ' || substring(indexdef from '\\(.*\\)') FROM pg_indexes WHERE "
    return dict(rows(url, query + kind))


def test_every_file_is_applied_once_in_order_and_a_second_run_changes_nothing(empty_url: str) -> None:
    files = sorted(path.stem for path in MIGRATIONS.glob("*.sql"))
    assert migrate(empty_url) == files
    before = rows(empty_url, "SELECT relname, xmin::text FROM pg_class ORDER BY oid")
    assert migrate(empty_url) == []
    assert migrate(empty_url + "?connection_limit=5&pool_timeout=5&statement_cache_size=5") == []
    assert rows(empty_url, "SELECT relname, xmin::text FROM pg_class ORDER BY oid") == before


def test_two_at_once_apply_every_file_once(empty_url: str) -> None:
    with ThreadPoolExecutor(4) as threads:
        applied = sorted(threads.map(migrate, [empty_url] * 4))
    assert [len(names) for names in applied] == [0, 0, 0, len(list(MIGRATIONS.glob("*.sql")))]


def test_a_run_that_was_killed_under_its_lock_blocks_no_other(empty_url: str) -> None:
    migrate(empty_url)
    with psycopg.connect(empty_url) as conn:
        conn.execute("INSERT INTO yoyo_lock (locked, ctime, pid) VALUES (1, now(), 1)")
    assert migrate(empty_url) == []


def test_the_twelve_indexes_and_three_constraints_stand_under_their_names(database_url: str) -> None:
    assert indexes(database_url, "indexname LIKE 'idx\\_%%'") == INDEXES
    query = (
        "SELECT c.conname, c.conrelid::regclass || ' (' || string_agg(a.attname, ', ' ORDER BY k.n) || ')'"
        " FROM pg_constraint c, unnest(c.conkey) WITH ORDINALITY AS k (number, n), pg_attribute a"
        " WHERE c.contype = 'u' AND a.attrelid = c.conrelid AND a.attnum = k.number AND c.conname = ANY(%s)"
        " GROUP BY c.oid, c.conname, c.conrelid"
    )
    assert dict(rows(database_url, query, list(CONSTRAINTS))) == CONSTRAINTS


def test_every_primary_key_of_the_data_begins_with_the_salon(database_url: str) -> None:
    query = (
        "SELECT c.conrelid::regclass::text FROM pg_constraint c JOIN pg_attribute a"
        " ON a.attrelid = c.conrelid AND a.attnum = c.conkey[1]"
        " WHERE c.contype = 'p' AND a.attname = 'salon_id' AND c.conrelid::regclass::text = ANY(%s)"
    )
    assert sorted(name for (name,) in rows(database_url, query, DATA)) == sorted(DATA)


def test_a_resource_cannot_be_booked_twice_at_a_time_whoever_writes(database_url: str) -> None:
    [(definition,)] = rows(
        database_url,
        "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = 'bookings_no_overlap' AND contype = 'x'",
    )
    assert "salon_id WITH =, resource_id WITH =, tstzrange(start_ts, end_ts) WITH &&" in definition
    book = (
        "INSERT INTO bookings (salon_id, booking_code, customer_phone, resource_id, start_ts, end_ts, status)"
        " VALUES ('s', %s, '+1', %s, %s, %s, %s)"
    )
    with psycopg.connect(database_url, autocommit=True) as conn:
        conn.execute("INSERT INTO salons (salon_id, phone_number_id, name, time_zone) VALUES ('s', '1', 's', 'UTC')")
        for name in ("anna", "bert"):
            conn.execute("INSERT INTO resources (salon_id, resource_id, name) VALUES ('s', %s, 'x')", [name])
        conn.execute(book, ("A", "anna", "2030-01-01 10:00Z", "2030-01-01 11:00Z", "CONFIRMED"))
        with pytest.raises(psycopg.errors.ExclusionViolation):
            conn.execute(book, ("B", "anna", "2030-01-01 10:59Z", "2030-01-01 12:00Z", "PENDING"))
        for code, resource, start, status in [
            ("C", "anna", "2030-01-01 11:00Z", "CONFIRMED"),
            ("D", "bert", "2030-01-01 10:00Z", "CONFIRMED"),
            ("E", "anna", "2030-01-01 10:00Z", "CANCELLED"),
            ("F", None, "2030-01-01 10:00Z", "CONFIRMED"),
        ]:
            conn.execute(book, (code, resource, start, "2030-01-01 12:00Z", status))


def test_every_index_says_what_it_serves(database_url: str) -> None:
    query = "SELECT c.relname FROM pg_class c WHERE c.relname LIKE 'idx\\_%%' AND obj_description(c.oid) IS NULL"
    assert rows(database_url, query) == []
