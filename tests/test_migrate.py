"""Migrations run once, twice and concurrently, and the resulting schema."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from shutil import copy
from typing import Any

import psycopg
import pytest

from libs.cache import Cache, CacheSettings
from ops.migrate import MIGRATIONS, migrate
from ops.servers import Postgres, postgres_url
from services.cache_tags import CacheTags

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
DATA = ["salons", "resources", "bookings", "booking_events", "conversations", "messages", "raw_messages", "ai_messages"]


@pytest.fixture
def empty_url(postgres: Postgres) -> Any:
    """An empty database."""
    with psycopg.connect(postgres_url(postgres.port, "postgres"), autocommit=True) as admin:
        admin.execute("CREATE DATABASE empty TEMPLATE template0")
        yield postgres_url(postgres.port, "empty")
        admin.execute("DROP DATABASE empty WITH (FORCE)")


@pytest.fixture
def migrate_before(empty_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Migrates the empty database with the migrations whose names come before a text."""

    def run(end: str) -> None:
        for path in MIGRATIONS.glob("*.sql"):
            if path.name < end:
                copy(path, tmp_path)
        with monkeypatch.context() as patch:
            patch.setattr("ops.migrate.MIGRATIONS", tmp_path)
            migrate(empty_url)

    return run


def rows(url: str, query: str, *params: Any) -> list[tuple[Any, ...]]:
    """Return the rows of a query."""
    with psycopg.connect(url) as conn:
        return conn.execute(query.encode(), params).fetchall()


def indexes(url: str, kind: str) -> dict[str, str]:
    """Return the tables and columns of the indexes that match a condition."""
    query = "SELECT indexname, tablename || ' ' || substring(indexdef from '\\(.*\\)') FROM pg_indexes WHERE "
    return dict(rows(url, query + kind))


def test_every_file_is_applied_once_in_order_and_a_second_run_changes_nothing(empty_url: str) -> None:
    files = sorted(path.stem for path in MIGRATIONS.glob("*.sql"))
    assert migrate(empty_url) == files
    before = rows(empty_url, "SELECT relname, xmin::text FROM pg_class ORDER BY oid")
    assert migrate(empty_url) == []
    assert migrate(empty_url + "?connection_limit=5&pool_timeout=5&statement_cache_size=5") == []
    assert rows(empty_url, "SELECT relname, xmin::text FROM pg_class ORDER BY oid") == before


def test_migrations_keep_existing_rows(empty_url: str, migrate_before: Callable[[str], None]) -> None:
    migrate_before("0004")
    with psycopg.connect(empty_url) as conn:
        conn.execute("INSERT INTO salons (salon_id, phone_number_id, name, time_zone) VALUES ('s', '1', 's', 'UTC')")
        conn.execute(
            "INSERT INTO bookings (salon_id, booking_code, customer_phone, resource_id, start_ts, end_ts, status)"
            " SELECT 's', n, '+1', r, '2030-01-01Z', '2030-01-02Z', 'COMPLETED'"
            " FROM (VALUES ('A', 'anna'), ('B', 'anna'), ('C', NULL)) AS v (n, r)"
        )
        conn.execute(
            "WITH c AS (INSERT INTO conversations (salon_id, phone_number) VALUES ('s', '+1') RETURNING *)"
            " INSERT INTO messages (salon_id, conversation_id, phone_number, direction, type, content, status,"
            " created_at)"
            " SELECT salon_id, conversation_id, '+1', d, 'TEXT', 'Hallo', 'SENT', t::timestamptz FROM c,"
            " (VALUES ('INBOUND', '2025-01-01Z'), ('INBOUND', '2025-01-02Z'), ('OUTBOUND', '2025-01-03Z')) AS v (d, t)"
        )
    migrate(empty_url)
    assert rows(empty_url, "SELECT resource_id, name, active FROM resources") == [("anna", "anna", True)]
    assert rows(empty_url, "SELECT service_window_expires_at = '2025-01-03Z' FROM conversations") == [(True,)]
    assert rows(empty_url, "SELECT count(*) FROM messages WHERE search @@ message_query('', 'hallo')") == [(3,)]


def test_a_migrated_invalid_actor_is_removed_from_events_and_the_cache(
    empty_url: str, migrate_before: Callable[[str], None]
) -> None:
    migrate_before("0013")
    actors = {"bot": "bot", "BOT": "bot", "anna.schmidt": "anna.schmidt", "": "", "system": "system"}
    actors |= dict.fromkeys(["Zoë Hartmann", "+4915112345678", "whatsapp +4915112345678", "x" * 65, "a\nb"], "")
    with psycopg.connect(empty_url) as conn:
        conn.execute("INSERT INTO salons (salon_id, phone_number_id, name, time_zone) VALUES ('s', '1', 's', 'UTC')")
        for number, actor in enumerate(actors):
            conn.execute(
                "WITH b AS (INSERT INTO bookings (salon_id, booking_code, customer_phone, start_ts, end_ts, status)"
                " VALUES ('s', %s, '+1', '2030-01-01Z', '2030-01-02Z', 'PENDING') RETURNING *)"
                " INSERT INTO booking_events (salon_id, booking_id, revision, type, to_status, to_start_ts, to_end_ts,"
                " actor) SELECT salon_id, booking_id, 1, 'CREATED', status, start_ts, end_ts, %s FROM b",
                (f"C{number}", actor),
            )
    migrate(empty_url)
    query = "SELECT booking_code, actor FROM bookings JOIN booking_events USING (salon_id, booking_id)"
    left = dict(rows(empty_url, query))
    assert left == {f"C{number}": actor for number, actor in enumerate(actors.values())}
    changed = [f"C{number}" for number, (before, after) in enumerate(actors.items()) if before != after]
    pending = {key for (key,) in rows(empty_url, "SELECT tag FROM cache_outbox")}
    tag = CacheTags(Cache(CacheSettings(), None, bytes)).booking  # type: ignore[arg-type]
    assert pending == {tag("s", code).version_key for code in changed}
    with pytest.raises(psycopg.errors.CheckViolation):
        rows(empty_url, "UPDATE booking_events SET actor = 'Anna' RETURNING 1")


def test_conversations_of_one_customer_are_merged(empty_url: str, migrate_before: Callable[[str], None]) -> None:
    migrate_before("0017")
    # Number, user ID and unread messages of each, the oldest first; what is separated by a line becomes one.
    conversations = [
        ("+551187654321", None, 1),
        ("+5511987654321", None, 2),
        ("+5215512345678", None, 3),
        ("+525512345678", None, 4),
        ("+4915100000001", "DE.1", 5),
        ("+4915100000002", "DE.1", 6),
        (None, "DE.1", 7),
        ("+4915100000003", "DE.2", 8),
        (None, None, 9),  # erased
    ]
    with psycopg.connect(empty_url) as conn:
        conn.execute("INSERT INTO salons (salon_id, phone_number_id, name, time_zone) VALUES ('s', '1', 's', 'UTC')")
        for day, (number, user, unread) in enumerate(conversations, 1):
            conn.execute(
                "WITH c AS (INSERT INTO conversations (salon_id, phone_number, user_id, unread_count, started_at,"
                " last_message_at, tags) VALUES ('s', %(number)s, %(user)s, %(unread)s, %(day)s, %(day)s,"
                " ARRAY[%(tag)s]) RETURNING *), ai AS ("
                " INSERT INTO ai_messages (salon_id, conversation_id, model, role, content)"
                " SELECT salon_id, conversation_id, 'm', 'USER', 'x' FROM c)"
                " INSERT INTO messages (salon_id, conversation_id, phone_number, direction, type, content, status,"
                " created_at) SELECT salon_id, conversation_id, phone_number, 'INBOUND', 'TEXT', 'x', 'RECEIVED',"
                " started_at FROM c",
                {"number": number, "user": user, "unread": unread, "day": f"2025-01-0{day}Z", "tag": f"t{day}"},
            )
    migrate(empty_url)
    query = """
        SELECT phone_number, user_id, unread_count, array_to_string(tags, ' '), extract(day FROM started_at)::int,
            (SELECT count(*) FROM messages AS m WHERE m.conversation_id = c.conversation_id
                AND m.phone_number IS NOT DISTINCT FROM c.phone_number),
            (SELECT count(*) FROM ai_messages AS a WHERE a.conversation_id = c.conversation_id)
        FROM conversations AS c ORDER BY started_at"""
    assert rows(empty_url, query) == [
        ("+5511987654321", None, 3, "t1 t2", 1, 2, 2),
        ("+525512345678", None, 7, "t3 t4", 3, 2, 2),
        ("+4915100000002", "DE.1", 18, "t5 t6 t7", 5, 3, 3),
        ("+4915100000003", "DE.2", 8, "t8", 8, 1, 1),
        (None, None, 9, "t9", 9, 1, 1),
    ]
    query = "SELECT count(*) FILTER (WHERE kind = %s), count(DISTINCT customer_id) FROM customer_identities"
    assert rows(empty_url, query, "PHONE_NUMBER") == [(5, 4)]
    assert rows(empty_url, query, "CONVERSATION_ID") == [(4, 4)]
    assert rows(empty_url, "SELECT count(*) FROM customers") == [(4,)]


def test_conversations_begun_by_processes_of_0_3_are_merged_with_their_customers(
    empty_url: str, migrate_before: Callable[[str], None]
) -> None:
    migrate_before("0028")
    # What was known before of a number or user ID, and the conversation that 0.3 began; each pair becomes one customer.
    pairs: list[tuple[tuple[str | None, str | None], tuple[str | None, str | None]]] = [
        (("+525512345678", None), ("+5215512345678", None)),
        (("+5511987654321", "BR.1"), ("+551187654321", "BR.1")),
        ((None, "AR.1"), ("+541112345678", "AR.1")),
        (("+4915100000001", None), ("+4915100000001", "DE.1")),
        (("+4915100000002", "DE.2"), ("+4915100000003", "DE.2")),
    ]
    insert = (
        "INSERT INTO conversations (salon_id, phone_number, user_id, unread_count, started_at, last_message_at)"
        " SELECT 's', %s, %s, 1, day, day FROM (VALUES (%s::timestamptz)) AS dated (day)"
    )
    identity = "INSERT INTO customer_identities SELECT 's', %s, %s, %s, '2100-01-01Z'"
    with psycopg.connect(empty_url) as conn:
        conn.execute("INSERT INTO salons (salon_id, phone_number_id, name, time_zone) VALUES ('s', '1', 's', 'UTC')")
        for place, (known, begun) in enumerate(pairs):
            with_conversation = place % 2 == 0 and known[0] != begun[0]
            if with_conversation:
                conn.execute(insert, (*known, "2025-01-01Z"))
            else:
                [customer] = conn.execute("INSERT INTO customers (salon_id) VALUES ('s') RETURNING customer_id")
                for kind, name in zip(("PHONE_NUMBER", "USER_ID"), known, strict=True):
                    if name:
                        conn.execute(identity, (name, kind, customer[0]))
            conn.execute(insert, (*begun, "2025-01-02Z"))
    migrate(empty_url)
    query = "SELECT phone_number, user_id, unread_count FROM conversations ORDER BY phone_number"
    assert rows(empty_url, query) == [
        ("+4915100000001", "DE.1", 1),
        ("+4915100000003", "DE.2", 2),
        ("+525512345678", None, 2),
        ("+5491112345678", "AR.1", 2),
        ("+5511987654321", "BR.1", 1),
    ]
    assert rows(empty_url, "SELECT count(*) FROM customers") == [(5,)]
    query = "SELECT count(*), count(DISTINCT customer_id), bool_or(seen_at > now()) FROM customer_identities"
    assert rows(empty_url, query + " WHERE kind = 'PHONE_NUMBER'") == [(6, 5, False)]


@pytest.mark.parametrize("poll_seconds", [0.1, 0.0])  # without a pause, a waiting run nearly always has a snapshot
def test_concurrent_runs_apply_every_file_once(
    empty_url: str, poll_seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ops.migrate.LOCK_POLL_SECONDS", poll_seconds)
    with ThreadPoolExecutor(4) as threads:
        applied = sorted(threads.map(migrate, [empty_url] * 4))
    assert [len(names) for names in applied] == [0, 0, 0, len(list(MIGRATIONS.glob("*.sql")))]


def test_a_run_killed_while_it_holds_the_lock_blocks_no_other(empty_url: str) -> None:
    migrate(empty_url)
    with psycopg.connect(empty_url) as conn:
        conn.execute("INSERT INTO yoyo_lock (locked, ctime, pid) VALUES (1, now(), 1)")
    assert migrate(empty_url) == []


def test_the_twelve_indexes_and_three_constraints_have_their_names(database_url: str) -> None:
    assert indexes(database_url, "indexname LIKE 'idx\\_%%'").items() >= INDEXES.items()
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


def test_the_database_refuses_two_bookings_of_a_resource_at_a_time(database_url: str) -> None:
    [(definition,)] = rows(
        database_url,
        "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = 'bookings_no_overlap' AND contype = 'x'",
    )
    blocked = "blocked_range(start_ts, end_ts, buffer_before, buffer_after)"
    assert f"salon_id WITH =, resource_id WITH =, {blocked} WITH &&" in definition
    book = (
        "INSERT INTO bookings (salon_id, booking_code, customer_phone, resource_id, start_ts, end_ts, status)"
        " VALUES ('s', %s, '+1', %s, %s, %s, %s)"
    )
    with psycopg.connect(database_url, autocommit=True) as conn:
        conn.execute("INSERT INTO salons (salon_id, phone_number_id, name, time_zone) VALUES ('s', '1', 's', 'UTC')")
        conn.execute("INSERT INTO resources (salon_id, resource_id, name) VALUES ('s', 'anna', ''), ('s', 'bert', '')")
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


def test_every_index_has_a_comment_with_its_queries(database_url: str) -> None:
    query = "SELECT c.relname FROM pg_class c WHERE c.relname LIKE 'idx\\_%%' AND obj_description(c.oid) IS NULL"
    assert rows(database_url, query) == []
