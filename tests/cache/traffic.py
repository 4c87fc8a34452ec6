"""Counts the round trips to Postgres and the calls to Valkey."""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from psycopg_pool import AsyncConnectionPool

from tests.cache.servers import each

# Commands inside scripts, of new connections, and of the counting itself.
NOT_CALLS = {"get", "set", "pexpire", "time", "info", "select", "auth", "client|setinfo", "hello", "cluster|slots"}


def valkey_calls(redis_url: str) -> Counter[str]:
    """Return the number of calls that clients have made, by command."""
    calls = Counter[str]()
    for client in each(redis_url):
        stats: Any = client.info("commandstats")
        calls.update({name.removeprefix("cmdstat_"): int(figures["calls"]) for name, figures in stats.items()})
    return Counter({name: count for name, count in calls.items() if name not in NOT_CALLS})


class Traffic:
    """The traffic since `reset`: round trips to Postgres, calls to Valkey."""

    def __init__(self, trace: Path, redis_url: str) -> None:
        """Read the round trips from `trace`, which libpq writes."""
        self._trace = trace
        self._redis_url = redis_url
        self.reset()

    def reset(self) -> None:
        """Count from here."""
        self._length = len(self._trace.read_text())
        self._calls = valkey_calls(self._redis_url)

    @property
    def postgres(self) -> int:
        """Round trips to Postgres."""
        return self._trace.read_text()[self._length :].count("\tReadyForQuery\t")

    @property
    def valkey(self) -> dict[str, int]:
        """Calls to Valkey by command."""
        return dict(valkey_calls(self._redis_url) - self._calls)


@asynccontextmanager
async def traced(database_url: str, redis_url: str, trace: Path) -> AsyncIterator[tuple[AsyncConnectionPool, Traffic]]:
    """Return a pool of one connection, and the traffic of that connection and of Valkey."""
    async with AsyncConnectionPool(
        database_url, kwargs={"autocommit": True}, min_size=1, max_size=1, open=False
    ) as pool:
        with trace.open("w") as file:
            async with pool.connection() as conn:
                conn.pgconn.trace(file.fileno())
            yield pool, Traffic(trace, redis_url)
