"""A run of `parlor archive` or `parlor restore-archive` that is killed: `python -m tests.killed_archive`.

Arguments: the database's URL, the folder of the files, what to run (archive, or the name of a file to restore), and the
number of the statement before which the process kills itself. Prints `done` if there are fewer statements.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import psycopg

from ops.restore_archive import restore
from tests.archives import archive_all

execute = psycopg.Connection.execute


def main(database_url: str, folder: Path, what: str, last: int) -> None:
    """Run, and die."""
    statements = 0

    def count(conn: psycopg.Connection, *args: Any, **kwargs: Any) -> Any:
        nonlocal statements
        statements += 1
        if statements == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return execute(conn, *args, **kwargs)

    psycopg.Connection.execute = count  # type: ignore[assignment,method-assign]
    if what == "archive":
        archive_all(database_url, folder)
    else:
        restore(database_url, folder / what, lambda: None, lambda *_: None)
    print("done")


main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
