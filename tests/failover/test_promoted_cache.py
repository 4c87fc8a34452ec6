"""The cache after a promotion, while another process still reads from the old primary."""

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import psycopg
import pytest
from pydantic import SecretStr

from libs.cache import Cache, CacheSettings
from libs.cache.settings import WithoutRedis
from libs.db import Database, DatabaseSettings
from services.namespaces import NAMESPACES
from tests.cache.shop import RESET, SCHEMA, Shop, until
from tools.postgres_pair import Pair, pair

MODES = list(WithoutRedis)


@pytest.fixture
def both(tmp_path: Path) -> Iterator[Pair]:
    """A primary and a standby, with an item."""
    with pair(tmp_path) as both:
        with psycopg.connect(both.primary.dsn) as conn:
            conn.execute(SCHEMA)
            conn.execute(RESET)
        both.caught_up()
        yield both


class Process:
    """A process of the shop on one of the databases."""

    def __init__(self, url: str, redis_url: str, mode: WithoutRedis) -> None:
        """Don't open it yet. It does not poll during the checks."""
        self.database = Database(DatabaseSettings(url=SecretStr(url)), "test")
        poll = 3_000 if mode is WithoutRedis.WAIT else 60_000  # short, because the test waits for the lease
        settings = CacheSettings(url=redis_url, poll=poll, refill=0, without=mode)
        settings = settings.model_copy(update={"timeout": 10_000})
        self.cache = Cache(settings, self.database.connection, str.encode, NAMESPACES)
        self.database.on_move = self.cache.database_moved
        self.shop = Shop(self.cache, self.database)  # type: ignore[arg-type]  # it only lends connections


@pytest.fixture
async def exits() -> AsyncIterator[AsyncExitStack]:
    """Closes everything that a test has started."""
    async with AsyncExitStack() as exits:
        yield exits


async def started(exits: AsyncExitStack, url: str, redis_url: str, mode: WithoutRedis) -> Process:
    """Return a running process that uses the cache."""
    process = Process(url, redis_url, mode)
    exits.push_async_callback(process.database.close)
    await process.database.open()
    exits.push_async_callback(process.cache.close)
    await process.cache.open()
    await until(lambda: process.cache.store.ready)
    return process


def follows_promotion(database: Database) -> bool:
    """Return whether a database uses the promoted standby."""
    return database.available and database.history is not None and database.history.timeline == 2


@pytest.mark.parametrize("mode", MODES)
async def test_a_reply_from_the_old_primary_is_not_a_hit_on_the_new_one(
    both: Pair, redis_url: str, exits: AsyncExitStack, mode: WithoutRedis
) -> None:
    behind = await started(exits, both.primary.dsn, redis_url, mode)  # never sees the promotion
    moved = await started(exits, both.url(), redis_url, mode)
    for process in (behind, moved):
        assert await process.shop.text() == "old"
    both.caught_up()
    both.standby.promote()
    await until(lambda: follows_promotion(moved.database))
    await until(lambda: moved.cache.store.ready)
    await moved.shop.write("new")
    with psycopg.connect(both.primary.dsn, autocommit=True) as conn:
        for _ in range(100):
            conn.execute("SELECT pg_current_xact_id()")
    for _ in range(2):
        assert await behind.shop.text() == "old"
        assert await moved.shop.text() == "new"
