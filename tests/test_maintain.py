"""`parlor maintain` mends what `parlor doctor` finds in tables and indexes, and leaves the rest alone."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg

from ops.doctor import examine
from tests.stack import rows
from tests.test_doctor import FILL, ROWS, execute, found, until_found

PARLOR = Path(sys.executable).parent / "parlor"


def maintain(database_url: str, *options: str) -> dict[str, Any]:
    """Run `parlor maintain`, which must succeed; return what it says of each step."""
    command = [str(PARLOR), "maintain", "--json", "--database-url", database_url, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    steps: dict[str, Any] = json.loads(done.stdout)
    return steps


def test_tables_with_dead_rows_are_vacuumed_and_others_left_alone(database_url: str) -> None:
    execute(database_url, ROWS, FILL, "DELETE FROM planted WHERE n % 5 = 0")
    until_found(lambda: found(examine(database_url, []), "dead rows", "planted"))
    steps = maintain(database_url)
    assert steps["vacuum"] == {"ok": True, "tables": ["planted"]}
    assert "reindex" not in steps
    assert maintain(database_url)["vacuum"]["tables"] == []
    assert not found(examine(database_url, []), "dead rows", "planted")


def test_bloated_indexes_are_built_anew_on_request(database_url: str) -> None:
    index = "CREATE INDEX planted_text ON planted (text, n)"
    fill = FILL.replace("20_000", "200_000")
    execute(database_url, ROWS, index, fill, "DELETE FROM planted WHERE n % 10 > 0", "VACUUM ANALYZE planted")
    until_found(lambda: found(examine(database_url, []), "index bloat", "planted_text"))
    size = "SELECT pg_relation_size('planted_text')"
    [(before,)] = rows(database_url, size)
    assert maintain(database_url, "--reindex")["reindex"] == {"ok": True, "indexes": ["planted_text"]}
    [(after,)] = rows(database_url, size)
    assert after < before / 4
    assert maintain(database_url, "--reindex")["reindex"]["indexes"] == []


def test_a_step_that_waits_for_nothing_is_done_although_another_fails(database_url: str) -> None:
    execute(database_url, ROWS, FILL, "DELETE FROM planted WHERE n % 5 = 0")
    until_found(lambda: found(examine(database_url, []), "dead rows", "planted"))
    with psycopg.connect(database_url) as conn:
        conn.execute("LOCK TABLE rollups IN ACCESS EXCLUSIVE MODE")
        command = [str(PARLOR), "maintain", "--json", "--database-url", database_url]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    steps = json.loads(done.stdout)
    assert (done.returncode, steps["rollups"]["ok"], steps["vacuum"]["tables"]) == (1, False, ["planted"])
