"""Months of messages for the tests of archives."""

from datetime import UTC, datetime
from pathlib import Path

import psycopg

from ops.archive import Archived, archive
from ops.maintain import maintain
from ops.months import Month
from ops.partition import partition
from tests.rollups import ZONES, create_salons

# What an archive has: the rows that must come back as they were.
KEPT = ("messages", "raw_messages", "message_status_events", "message_amendments")
OLD = Month.of(datetime.now(UTC)).later(-3)  # the first of three months with messages
SUMMED = OLD.later(2).start

# A message every 100 minutes for three months: in and out, some with costs, not counted, without a whatsapp_id.
_MESSAGES = """
    INSERT INTO messages (salon_id, conversation_id, phone_number, direction, type, status, content, whatsapp_id,
        cost_micros, currency_code, counted, details, created_at)
    SELECT salon_id, conversation_id, phone_number, CASE WHEN n %% 3 = 0 THEN 'OUTBOUND' ELSE 'INBOUND' END, 'TEXT',
        'SENT', E'line\\n\\t\\\\ ' || n, CASE WHEN n %% 7 > 0 THEN 'wamid.' || salon_id || '.' || n END,
        CASE WHEN n %% 3 = 0 THEN n ELSE 0 END,
        CASE WHEN n %% 3 = 0 THEN CASE n %% 2 WHEN 0 THEN 'EUR' ELSE 'USD' END END,
        n %% 11 > 0, CASE WHEN n %% 5 = 0 THEN '{"edited_time": {"seconds": 7}}'::jsonb END,
        %(start)s::timestamptz + n * interval '100 minutes'
    FROM generate_series(0, 1300) AS n
    JOIN (SELECT *, row_number() OVER (PARTITION BY salon_id) AS place FROM conversations) AS c ON n %% 3 + 1 = place"""
_BESIDE = """
    INSERT INTO raw_messages (salon_id, message_id, item)
    SELECT salon_id, message_id, '{"text": "\\u0000 and \\"more\\""}' FROM messages WHERE whatsapp_id LIKE '%2';
    INSERT INTO message_status_events (salon_id, whatsapp_id, status, occurred_at, details)
    SELECT salon_id, whatsapp_id, reported, created_at + interval '1 second', '{"error_details": "x"}'
    FROM messages, unnest(ARRAY['SENT', 'READ']) AS reported WHERE whatsapp_id IS NOT NULL AND direction = 'OUTBOUND';
    INSERT INTO message_amendments (salon_id, whatsapp_id, target_whatsapp_id, kind, direction, content, created_at)
    SELECT salon_id, whatsapp_id || '.r', whatsapp_id, 'REACTION', 'INBOUND', '👍', created_at
    FROM messages WHERE whatsapp_id LIKE '%4'"""


def create_months(database_url: str) -> None:
    """Create salons with three months of messages, sum them, and partition them."""
    create_salons(database_url)
    with psycopg.connect(database_url) as conn:
        conn.execute(_MESSAGES, {"start": OLD.start})
        conn.execute(_BESIDE.encode())
    assert all(outcome.ok for outcome in maintain(database_url))
    partition(database_url)


def archive_all(database_url: str, folder: Path) -> list[Archived]:
    """Archive the first two of the three months."""
    return list(archive(database_url, SUMMED, folder, lambda: None, lambda *_: None))


def keep_copies(database_url: str) -> None:
    """Copy the rows of KEPT, to compare them later."""
    with psycopg.connect(database_url) as conn:
        for table in KEPT:
            conn.execute(f"CREATE TABLE {table}_before AS TABLE {table}".encode())


def differences(database_url: str) -> dict[str, tuple[int, int]]:
    """Return the tables of KEPT that differ from their copies: the rows that are missing, and those that are new."""
    found = {}
    with psycopg.connect(database_url) as conn:
        for table in KEPT:
            # Not all columns have an equality: rows are compared as texts.
            before, now = (f"SELECT t::text FROM {name} AS t" for name in (f"{table}_before", table))
            query = f"SELECT (SELECT count(*) FROM ({before} EXCEPT ALL {now}) AS a)," + (
                f" (SELECT count(*) FROM ({now} EXCEPT ALL {before}) AS b)"
            )
            [counts] = conn.execute(query.encode()).fetchall()
            if counts != (0, 0):
                found[table] = counts
    return found


SALONS = tuple(ZONES)
