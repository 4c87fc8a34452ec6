"""A Postgres with nothing of Parlor's in it but `cache_pending`, and processes of a service that uses it."""

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import psycopg
import pytest
from psycopg_pool import AsyncConnectionPool

from ops.migrate import MIGRATIONS
from ops.servers import Postgres
from tests.cache.shop import RESET, SCHEMA, Shop, Start
from tests.conftest import FAST


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """A Postgres where nobody else takes transaction ids: a fill that may be stored is."""
    with Postgres(tmp_path_factory.mktemp("quiet") / "data", settings={**FAST, "autovacuum": "off"}) as server:
        prepare(server.dsn)
        yield server


@pytest.fixture
def database_url(postgres: Postgres) -> str:
    """The database, as it was at first."""
    with psycopg.connect(postgres.dsn, autocommit=True) as conn:
        conn.execute("DELETE FROM cache_pending")
        conn.execute(RESET)
    return postgres.dsn


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[AsyncConnectionPool]:
    """Connections in autocommit, as the cache wants them."""
    async with AsyncConnectionPool(database_url, kwargs={"autocommit": True}, max_size=12, open=False) as pool:
        yield pool


@pytest.fixture
async def start(pool: AsyncConnectionPool, redis_url: str) -> AsyncIterator[Start]:
    """Starts a process of the shop: a Cache of its own, on the test's Valkey unless it is told another."""
    async with AsyncExitStack() as exits:
        yield Start(exits, pool, redis_url)


@pytest.fixture
async def shop(start: Start) -> Shop:
    """One process."""
    return await start()


def prepare(database_url: str) -> None:
    """Create the library's table and the shop's."""
    pending = (MIGRATIONS / "0003.cache.pending.sql").read_text().partition("GRANT")[0]
    with psycopg.connect(database_url, autocommit=True) as conn:
        conn.execute(pending.encode())
        conn.execute(SCHEMA)
