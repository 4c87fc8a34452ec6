"""What the statements of a process cost: counts, times, and the last slow ones."""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, LiteralString, Self, cast

from psycopg import AsyncCursor
from psycopg.abc import Params, Query
from psycopg.errors import DuplicatePreparedStatement, InvalidSqlStatementName
from psycopg.pq import TransactionStatus
from psycopg.sql import Composable

# What a pooler makes of prepared statements: they are on another server, or somebody else's are on this one.
STATEMENT_LOST = (InvalidSqlStatementName, DuplicatePreparedStatement)


@dataclass(frozen=True, slots=True)
class SlowQuery:
    """A statement over the threshold: its text without parameters, its time in ms, when it was sent."""

    query: str
    duration_ms: float
    time: datetime


@dataclass(slots=True)
class QueryStats:
    """Counters of the statements sent; `slow` holds the last 100 over `threshold` seconds."""

    threshold: float
    executed: int = 0
    errors: int = 0
    slow_total: int = 0
    seconds: float = 0.0
    slow: deque[SlowQuery] = field(default_factory=lambda: deque(maxlen=100))

    def add(self, query: Query, seconds: float) -> None:
        """Count one statement."""
        self.executed += 1
        self.seconds += seconds
        if seconds >= self.threshold:
            self.slow_total += 1
            text = query.as_string() if isinstance(query, Composable) else query
            text = text.decode() if isinstance(text, bytes) else str(text)
            self.slow.append(SlowQuery(" ".join(text.split()), seconds * 1000, datetime.now(UTC)))

    def add_all(self, queries: Sequence[str], seconds: float) -> None:
        """Count statements that shared a round trip."""
        self.executed += len(queries) - 1
        self.add("; ".join(queries) if seconds >= self.threshold else "", seconds)


class TimedCursor(AsyncCursor[Any]):
    """A cursor that counts what it executes, in the `queries` of its connection."""

    async def execute(
        self, query: Query, params: Params | None = None, *, prepare: bool | None = None, binary: bool | None = None
    ) -> Self:
        """Execute as psycopg does."""
        conn = cast(Any, self.connection)
        queries: QueryStats = conn.queries
        started = conn.began = time.perf_counter()
        try:
            try:
                return await super().execute(cast(LiteralString, query), params, prepare=prepare, binary=binary)
            except STATEMENT_LOST:
                conn.pooled()  # psycopg knows which statements it has deallocated
                if conn.pgconn.transaction_status != TransactionStatus.IDLE:
                    raise
            return await super().execute(cast(LiteralString, query), params, prepare=False, binary=binary)
        except Exception:
            queries.errors += 1
            raise
        finally:
            queries.add(query, time.perf_counter() - started)
