"""A Postgres with nothing of Parlor's in it but `cache_outbox`, and processes of a service that uses it."""

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg_pool import AsyncConnectionPool

from ops.migrate import MIGRATIONS
from ops.servers import Postgres, Valkey
from tests.cache.nearby import Single
from tests.cache.outside import CacheServer, each, reaching
from tests.cache.shop import NOTHING_IN_FORCE, RESET, SCHEMA, Shop, Start
from tests.conftest import FAST, valkey_binary
from tools.cluster import Cluster
from tools.proxy import proxy


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test on the server that is asked for; without one, on Valkey, and on a cluster if it kills nobody."""
    wanted = metafunc.config.getoption("cache_server")
    if "cache_server" in metafunc.fixturenames:
        metafunc.parametrize("cache_server", [wanted] if wanted else ["valkey", "cluster"], indirect=True)
    if "single" in metafunc.fixturenames:
        metafunc.parametrize("single", [wanted if wanted and wanted != "cluster" else "valkey"], indirect=True)
    if "own_valkey" in metafunc.fixturenames:
        metafunc.parametrize("own_valkey", [wanted or "valkey"], indirect=True)


@pytest.fixture(scope="session")
def redis_server(request: pytest.FixtureRequest) -> Iterator[Valkey]:
    """The server whose path was given."""
    with Valkey(binary=Path(request.config.getoption("cache_server"))) as server:
        yield server


@pytest.fixture
def cache_server(request: pytest.FixtureRequest) -> CacheServer:
    """The server that the test runs on; it leaves it running."""
    fixtures = {"valkey": "valkey_server", "cluster": "cluster"}
    server: CacheServer = request.getfixturevalue(fixtures.get(request.param, "redis_server"))
    return server


@pytest.fixture
def redis_url(cache_server: CacheServer) -> str:
    """The URL of the server, which is empty."""
    for client in each(cache_server.url):
        client.flushall()
    return cache_server.url


@pytest.fixture
async def single(request: pytest.FixtureRequest, pool: AsyncConnectionPool) -> AsyncIterator[Single]:
    """Processes of the shop on one server, whose connections the test may harm; nobody proxies a whole cluster."""
    name = "valkey_server" if request.param == "valkey" else "redis_server"
    server: Valkey = request.getfixturevalue(name)
    for client in each(server.url):
        client.flushall()
    async with AsyncExitStack() as exits, proxy(server.port) as between:
        yield Single(Start(exits, pool, server.url), between)


@pytest.fixture(scope="session")
def mortal_cluster() -> Iterator[Cluster]:
    """A cluster for all tests that kill it: to start takes it long."""
    with Cluster(binary=valkey_binary()) as cluster:
        yield cluster


@pytest.fixture
def own_cluster(mortal_cluster: Cluster) -> Cluster:
    """The same, running and empty; it knows no script and no client."""
    mortal_cluster.start()
    for client in each(mortal_cluster.url):
        client.flushall()
        client.script_flush()
        client.client_kill_filter(_type="normal", skipme=True)
    return mortal_cluster


@pytest.fixture
def own_valkey(request: pytest.FixtureRequest) -> Iterator[CacheServer]:
    """A server for a test that kills it."""
    if request.param == "cluster":
        yield request.getfixturevalue("own_cluster")
    else:
        with Valkey(binary=valkey_binary() if request.param == "valkey" else Path(request.param)) as server:
            yield server


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
        conn.execute("DELETE FROM cache_outbox")
        conn.execute(NOTHING_IN_FORCE)
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
    with psycopg.connect(database_url, autocommit=True) as conn:
        for migration in sorted(MIGRATIONS.glob("*.cache.*.sql")):
            conn.execute(migration.read_text().partition("GRANT")[0].encode())
        conn.execute(SCHEMA)


@pytest.fixture
def valkey(redis_url: str) -> Iterator[Any]:
    """A client of the server under test."""
    with reaching(redis_url) as client:
        yield client
