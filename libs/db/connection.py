"""A connection, and the cursor that reads its rows."""

from typing import Any

import psycopg
from psycopg.pq.abc import PGconn

from libs.db.encoding import undecoded
from libs.db.queries import Queries, TimedCursor


class Connection(psycopg.AsyncConnection[Any]):
    """A connection whose statements are counted in `queries`.

    `rows` is its cursor for rows that become bytes of messages; its results must be taken before the next await.
    """

    queries: Queries

    def __init__(self, pgconn: PGconn, *args: Any) -> None:
        """Take over what has been connected."""
        super().__init__(pgconn, *args)
        self.cursor_factory = TimedCursor
        self.rows = undecoded(self)
