"""`parlor load-sample-data`: the rows it writes, and its old name."""

import subprocess
import sys
from io import StringIO
from pathlib import Path

import psycopg
from psycopg import sql
from rich.console import Console
from rich.progress import Progress

from ops.data_set import COLUMNS, ROWS
from ops.doctor import Limits
from ops.doctor.database import old_statistics
from ops.sample_data import load_sample_data


def test_progress_ends_at_the_announced_total(database_url: str) -> None:
    with Progress(console=Console(file=StringIO())) as progress:
        written = load_sample_data(database_url, 1, progress=progress)
    [task] = progress.tasks
    assert task.completed == task.total == sum(ROWS.values())
    assert {table: written[table] for table in ROWS} == ROWS
    assert all(written[table] > 0 for table in COLUMNS)


def test_the_old_command_name_works_and_warns(database_url: str) -> None:
    parlor = Path(sys.executable).parent / "parlor"
    done = subprocess.run(  # noqa: S603 - ours
        [parlor, "seed", "--database-url", database_url], capture_output=True, text=True, check=True
    )
    assert "is now `parlor load-sample-data`" in done.stdout
    assert "10,000 bookings" in done.stdout


def test_statistics_do_not_wait_for_the_first_run_of_the_job(database_url: str) -> None:
    load_sample_data(database_url)
    with psycopg.connect(database_url) as conn:
        for table, sums, figure in (
            ("messages", "message_hours", "messages"),
            ("conversations", "conversation_hours", "conversations"),
            ("ai_messages", "ai_message_hours", "messages"),
        ):
            query = sql.SQL("SELECT (SELECT count(*) FROM {}), (SELECT sum({}) FROM {})")
            [(written, summed)] = conn.execute(query.format(*map(sql.Identifier, (table, figure, sums)))).fetchall()
            assert written == summed > 0
        assert list(old_statistics(conn, Limits())) == []
