"""The seed's data set as it is written."""

from io import StringIO

from rich.console import Console
from rich.progress import Progress

from ops.data_set import COLUMNS, ROWS
from ops.seed import seed


def test_its_progress_ends_where_it_said(database_url: str) -> None:
    with Progress(console=Console(file=StringIO())) as progress:
        written = seed(database_url, 1, progress=progress)
    [task] = progress.tasks
    assert task.completed == task.total == sum(ROWS.values())
    assert {table: written[table] for table in ROWS} == ROWS
    assert all(written[table] > 0 for table in COLUMNS)
