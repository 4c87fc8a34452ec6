"""Counts and times of a process's statements, and the last slow ones."""

import time
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, LiteralString, Self, cast

from psycopg import AsyncCursor
from psycopg.abc import Params, Query
from psycopg.errors import DuplicatePreparedStatement, InvalidSqlStatementName
from psycopg.sql import Composable

from libs.db.statement import Statement

# Behind a pooler, a prepared statement may be on another server, or another client's may be on this one.
STATEMENT_LOST = (InvalidSqlStatementName, DuplicatePreparedStatement)


@dataclass(frozen=True, slots=True)
class SlowQuery:
    """A statement at or over the threshold: its text without parameters, its duration in ms, when it ended."""

    query: str
    duration_ms: float
    time: datetime


@dataclass(slots=True)
class QueryStats:
    """Counters of the statements sent; `slow` holds the last 100 that took at least `threshold` seconds."""

    threshold: float
    executed: int = 0
    errors: int = 0
    slow_total: int = 0
    seconds: float = 0.0
    slow: deque[SlowQuery] = field(default_factory=lambda: deque(maxlen=100))

    def add(self, seconds: float, *queries: Query | Statement[Any]) -> None:
        """Count statements that shared a round trip of so many seconds."""
        self.executed += len(queries)
        self.seconds += seconds
        if seconds >= self.threshold:
            self.slow_total += 1
            text = " ".join("; ".join(map(_text, queries)).split())
            self.slow.append(SlowQuery(text, seconds * 1000, datetime.now(UTC)))


def _text(query: Query | Statement[Any]) -> str:
    if isinstance(query, Statement):
        return query.query
    text = query.as_string() if isinstance(query, Composable) else query
    return text.decode() if isinstance(text, bytes) else str(text)


class TimedCursor(AsyncCursor[Any]):
    """A cursor that counts its statements in the `queries` of its connection."""

    async def execute(
        self, query: Query, params: Params | None = None, *, prepare: bool | None = None, binary: bool | None = None
    ) -> Self:
        """Execute as psycopg does."""
        conn = cast(Any, self.connection)
        queries: QueryStats = conn.queries
        started = conn.began = time.perf_counter()
        try:
            return await super().execute(cast(LiteralString, query), params, prepare=prepare, binary=binary)
        except Exception:
            queries.errors += 1
            raise
        finally:
            queries.add(time.perf_counter() - started, query)
