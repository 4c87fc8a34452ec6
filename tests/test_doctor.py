"""`parlor doctor` finds ills that a test plants, names what mends them, and finds nothing in a healthy system."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import psycopg
import pytest

from ops.doctor import Diagnosis, Finding, Limits, examine
from ops.migrate import migrate
from ops.process import free_ports
from ops.servers import Postgres
from parlor.booking.v1 import booking_pb2
from tests.conftest import FAST
from tests.processes import Processes, processes, stubs
from tests.stack import SALON, failure
from tools.postgres_pair import pair

PARLOR = Path(sys.executable).parent / "parlor"
LIMITS = Limits()
SOON = 30.0  # s; Postgres reports some things a little later

READS = "DO $$ BEGIN FOR n IN 1..1000 LOOP PERFORM FROM bookings WHERE booking_code = 'b'; END LOOP; END $$"
ROWS = "CREATE TABLE planted (n bigint, text text) WITH (autovacuum_enabled = off)"
FILL = "INSERT INTO planted SELECT n, repeat('x', 100) FROM generate_series(1, 20_000) AS n"

# Statements that plant an ill; its check and subject; what mends it.
PLANTED = {
    "an index that nothing uses": (
        ["CREATE INDEX planted ON bookings (updated_at, created_at)", READS],
        ("unused index", "planted"),
        "DROP INDEX CONCURRENTLY planted",
    ),
    "20 % dead rows": (
        [ROWS, FILL, "DELETE FROM planted WHERE n % 5 = 0"],
        ("dead rows", "planted"),
        "VACUUM (ANALYZE) planted",
    ),
    "a table that was never analyzed": ([ROWS, FILL], ("planner statistics", "planted"), "ANALYZE planted"),
    "an empty table in a large file": (
        [
            ROWS,
            *[FILL] * 5,
            "DELETE FROM planted WHERE n % 10 > 0",
            "VACUUM ANALYZE planted",
        ],
        ("table bloat", "planted"),
        "pg_repack --table planted",
    ),
    "a bloated index": (
        [
            ROWS,
            "CREATE INDEX planted_text ON planted (text, n)",
            *[FILL] * 4,
            "DELETE FROM planted WHERE n % 10 > 0",
            "VACUUM ANALYZE planted",
        ],
        ("index bloat", "planted_text"),
        "REINDEX INDEX CONCURRENTLY planted_text",
    ),
    "a missing index": (
        ["DROP INDEX idx_bookings_created"],
        ("index", "idx_bookings_created"),
        "parlor migrate",
    ),
    "an outbox that nobody reads": (
        ["INSERT INTO cache_outbox SELECT 'tag' || n, '1' FROM generate_series(1, 1_001) AS n"],
        ("invalidation outbox", "cache_outbox"),
        "start the services; if they run, look for `redis away` in their logs",
    ),
    "hours that nobody summed": (
        ["UPDATE rollups SET horizon = now(), sealed_to = now() - interval '181 minutes'"],
        ("unsealed hours", "rollups"),
        "parlor maintain; it says what is in the way",
    ),
    "a replication slot that nobody reads": (
        ["SELECT pg_create_physical_replication_slot('planted', true)"],
        ("replication slot", "planted"),
        "SELECT pg_drop_replication_slot('planted')",
    ),
}


def execute(url: str, *statements: str) -> None:
    """Run statements, each in a separate transaction."""
    with psycopg.connect(url, autocommit=True) as conn:
        for statement in statements:
            conn.execute(statement.encode())


def found(diagnosis: Diagnosis, check: str, subject: str) -> list[Finding]:
    """Return the findings of a check about a subject."""
    return [finding for finding in diagnosis.findings if (finding.check, finding.subject) == (check, subject)]


def until_found(look: Callable[[], list[Finding]]) -> Finding:
    """Look until there is exactly one finding; Postgres reports some things a little later."""
    end = time.monotonic() + SOON
    while not (findings := look()):
        assert time.monotonic() < end
        time.sleep(0.05)
    assert len(findings) == 1
    return findings[0]


@pytest.fixture
def system(tmp_path: Path, database_url: str, redis_url: str) -> Iterator[Processes]:
    """The three services."""
    with processes(database_url, redis_url, tmp_path) as system:
        yield system


def doctor(*options: str) -> subprocess.CompletedProcess[str]:
    """Run `parlor doctor`."""
    return subprocess.run([PARLOR, "doctor", *options], capture_output=True, text=True, check=False)  # noqa: S603


def metrics_urls(system: Processes) -> list[str]:
    return [f"http://127.0.0.1:{port}/metrics" for port in system.metrics_ports.values()]


@pytest.mark.parametrize("ill", PLANTED)
def test_a_planted_ill_is_found(database_url: str, ill: str) -> None:
    statements, (check, subject), remedy = PLANTED[ill]
    limits = replace(LIMITS, smallest_bloat=1024 * 1024)
    assert not found(examine(database_url, [], limits), check, subject)
    try:
        execute(database_url, *statements)
        finding = until_found(lambda: found(examine(database_url, [], limits), check, subject))
    finally:
        execute(database_url, "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")
    assert finding.remedy == remedy


def test_messages_of_which_none_is_summed_are_found(database_url: str) -> None:
    assert not found(examine(database_url, []), "unsealed hours", "rollups")
    execute(
        database_url,
        "INSERT INTO salons (salon_id, phone_number_id, name, time_zone) VALUES ('s1', '1', 'Hair', 'Asia/Tokyo')",
        "INSERT INTO conversations (salon_id, user_id) VALUES ('s1', 'u1')",
        "INSERT INTO messages (salon_id, conversation_id, direction, type, status, created_at)"
        " SELECT salon_id, conversation_id, 'INBOUND', 'TEXT', 'RECEIVED', now() FROM conversations",
    )
    (finding,) = found(examine(database_url, []), "unsealed hours", "rollups")
    assert finding.seen == "nothing is summed"
    execute(database_url, "UPDATE rollups SET horizon = now(), sealed_to = now() - interval '179 minutes'")
    assert not found(examine(database_url, []), "unsealed hours", "rollups")


def test_an_index_whose_creation_failed_is_found(database_url: str) -> None:
    execute(database_url, ROWS, "INSERT INTO planted VALUES (1), (1)")
    with pytest.raises(psycopg.errors.UniqueViolation):
        execute(database_url, "CREATE UNIQUE INDEX CONCURRENTLY planted_n ON planted (n)")
    (finding,) = found(examine(database_url, []), "index", "planted_n")
    assert finding.remedy == "REINDEX INDEX CONCURRENTLY planted_n"


def test_an_index_left_by_an_ended_reindex_is_to_be_dropped(database_url: str) -> None:
    execute(database_url, ROWS, "INSERT INTO planted VALUES (1), (1)")
    with pytest.raises(psycopg.errors.UniqueViolation):
        execute(database_url, "CREATE UNIQUE INDEX CONCURRENTLY planted_n_ccnew ON planted (n)")
    (finding,) = found(examine(database_url, []), "index", "planted_n_ccnew")
    assert finding.remedy == "DROP INDEX CONCURRENTLY planted_n_ccnew"


def test_of_other_databases_only_writers_are_found(database_url: str, postgres: Postgres) -> None:
    limits = replace(LIMITS, transaction_age=0.01)

    def look() -> list[Finding]:
        return [finding for finding in examine(database_url, [], limits).findings if finding.check == "old transaction"]

    with psycopg.connect(postgres.url("postgres")) as conn:
        conn.execute("SELECT pg_sleep(0.02)")
        assert not look()
        conn.execute("SELECT pg_current_xact_id()")
        assert f"(pid {conn.info.backend_pid})" in until_found(look).subject


def test_a_check_that_fails_hides_no_other_finding(database_url: str) -> None:
    execute(database_url, "CREATE EXTENSION pg_stat_statements", "DROP INDEX idx_bookings_created")
    diagnosis = examine(database_url, [])  # the extension is not in shared_preload_libraries
    assert found(diagnosis, "index", "idx_bookings_created")
    [reason] = [text for text in diagnosis.unchecked if "shared_preload_libraries" in text]
    assert reason.startswith("slow statements: ")


def test_a_transaction_left_open_is_found(database_url: str) -> None:
    def look(limits: Limits) -> list[Finding]:
        diagnosis = examine(database_url, [], limits)
        return [finding for finding in diagnosis.findings if finding.check == "old transaction"]

    with psycopg.connect(database_url) as conn:
        conn.execute("SELECT 1")
        assert not look(LIMITS)
        finding = until_found(lambda: look(replace(LIMITS, transaction_age=0.01)))
        assert finding.seen.startswith("idle in transaction, ")
        execute(database_url, finding.remedy)
        with pytest.raises(psycopg.OperationalError):
            conn.execute("SELECT 1")


def test_a_slow_statement_is_found(tmp_path: Path) -> None:
    settings = {**FAST, "shared_preload_libraries": "pg_stat_statements"}
    with Postgres(tmp_path / "postgres", settings=settings) as server:
        migrate(server.dsn)
        execute(server.dsn, "CREATE EXTENSION pg_stat_statements")
        limits = replace(LIMITS, fewest_calls=2, slow_statement=0.01)
        execute(server.dsn, *["SELECT pg_sleep(0.02)"] * 3)
        (finding,) = found(examine(server.dsn, [], limits), "slow statement", "SELECT pg_sleep($1)")
        assert "3 calls" in finding.seen


def test_a_standby_that_does_not_replay_is_found(tmp_path: Path) -> None:
    limits = replace(LIMITS, replica_lag=0.2)

    def look() -> list[Finding]:
        execute(both.primary.dsn, "INSERT INTO planted VALUES (1)")
        return [finding for finding in examine(both.primary.dsn, [], limits).findings if finding.check == "replica lag"]

    with pair(tmp_path) as both:
        execute(both.primary.dsn, ROWS)
        both.caught_up()
        execute(both.standby.dsn, "SELECT pg_wal_replay_pause()")
        assert "pg_wal_replay_resume" in until_found(look).remedy


async def test_a_hit_rate_of_60_percent_is_found(system: Processes) -> None:
    url = metrics_urls(system)[0]
    limits = replace(LIMITS, fewest_cached_reads=100)
    async with stubs(system) as stack:
        for code in [*(f"N{n}" for n in range(40)), *["N0"] * 60]:
            request = booking_pb2.GetBookingByCodeRequest(salon_id=SALON, booking_code=code)
            assert (await failure(stack.booking.GetBookingByCode(request))).code is grpc.StatusCode.NOT_FOUND
    (finding,) = found(examine(system.database_url, [url], limits), "hit rate", url)
    assert finding.seen == "60% of 100 cached reads"
    assert "TTL" in finding.remedy


def test_services_without_redis_are_found(tmp_path: Path, database_url: str) -> None:
    with processes(database_url, f"redis://127.0.0.1:{free_ports(1)[0]}", tmp_path) as system:
        urls = metrics_urls(system)
        diagnosis = examine(database_url, urls)
    assert [finding.subject for finding in diagnosis.findings if finding.check == "redis"] == urls


def test_nothing_is_found_in_a_healthy_system(system: Processes) -> None:
    urls = [option for url in metrics_urls(system) for option in ("--metrics-url", url)]
    done = doctor("--json", "--database-url", system.database_url, *urls)
    told = json.loads(done.stdout)
    assert (told["ok"], told["findings"], done.returncode) == (True, [], 0)
    assert told["unchecked"] == ["slow statements: the extension pg_stat_statements is not installed"]


def test_findings_and_what_was_not_checked_are_told(database_url: str) -> None:
    execute(database_url, "DROP INDEX idx_bookings_created")
    nobody = f"http://127.0.0.1:{free_ports(1)[0]}/metrics"
    done = doctor("--database-url", database_url, "--metrics-url", nobody)
    assert done.returncode == 1
    assert "idx_bookings_created" in done.stdout
    assert "parlor migrate" in done.stdout
    assert "not checked: " + nobody in done.stdout
    assert done.stdout.rstrip().endswith("1 finding")


@pytest.mark.parametrize("url", ["postgresql://127.0.0.1:1/parlor", "nonsense"])
def test_a_database_that_cannot_be_read_is_told(url: str) -> None:
    done = doctor("--database-url", url)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
