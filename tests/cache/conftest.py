"""A Postgres with only `cache_outbox` of Parlor's tables, and processes of a service that uses it."""

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg_pool import AsyncConnectionPool

from ops.migrate import MIGRATIONS
from ops.servers import Postgres, Valkey
from tests.cache.near_cache import Single
from tests.cache.servers import CacheServer, each, reaching
from tests.cache.shop import NOTHING_IN_FORCE, RESET, SCHEMA, Shop, Start
from tests.conftest import FAST, WITH_USER, valkey_binary
from tools.cluster import Cluster
from tools.proxy import proxy


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test on the server of --cache-server; without it, on Valkey, and on a cluster unless it kills servers."""
    wanted = metafunc.config.getoption("cache_server")
    if "cache_server" in metafunc.fixturenames:
        metafunc.parametrize("cache_server", [wanted] if wanted else ["valkey", "cluster"], indirect=True)
    if "single" in metafunc.fixturenames:
        metafunc.parametrize("single", [wanted if wanted and wanted != "cluster" else "valkey"], indirect=True)
    if "own_valkey" in metafunc.fixturenames:
        metafunc.parametrize("own_valkey", [wanted or "valkey"], indirect=True)


@pytest.fixture(scope="session")
def redis_server(request: pytest.FixtureRequest) -> Iterator[Valkey]:
    """The program given by --cache-server."""
    with Valkey(binary=Path(request.config.getoption("cache_server")), options=WITH_USER) as server:
        yield server


@pytest.fixture
def cache_server(request: pytest.FixtureRequest) -> CacheServer:
    """The server for tests that leave it running."""
    fixtures = {"valkey": "valkey_server", "cluster": "cluster"}
    server: CacheServer = request.getfixturevalue(fixtures.get(request.param, "redis_server"))
    return server


@pytest.fixture
def redis_url(cache_server: CacheServer) -> str:
    """The URL of the server, emptied."""
    for client in each(cache_server.url):
        client.flushall()
    return cache_server.url


@pytest.fixture
async def single(request: pytest.FixtureRequest, pool: AsyncConnectionPool) -> AsyncIterator[Single]:
    """Processes of the shop on a single server, behind a proxy that the test controls. A cluster cannot be proxied."""
    name = "valkey_server" if request.param == "valkey" else "redis_server"
    server: Valkey = request.getfixturevalue(name)
    for client in each(server.url):
        client.flushall()
    async with AsyncExitStack() as exits, proxy(server.port) as between:
        yield Single(Start(exits, pool, server.url), between)


@pytest.fixture(scope="session")
def mortal_cluster() -> Iterator[Cluster]:
    """A cluster shared by all tests that kill its servers, because its start is slow."""
    with Cluster(binary=valkey_binary(), options=WITH_USER) as cluster:
        yield cluster


@pytest.fixture
def own_cluster(mortal_cluster: Cluster) -> Cluster:
    """That cluster, running and empty, without scripts and clients."""
    mortal_cluster.start()
    for client in each(mortal_cluster.url):
        client.flushall()
        client.script_flush()
        client.client_kill_filter(_type="normal", skipme=True)
    return mortal_cluster


@pytest.fixture
def own_valkey(request: pytest.FixtureRequest) -> Iterator[CacheServer]:
    """A server that the test may kill."""
    if request.param == "cluster":
        yield request.getfixturevalue("own_cluster")
    else:
        binary = valkey_binary() if request.param == "valkey" else Path(request.param)
        with Valkey(binary=binary, options=WITH_USER) as server:
            yield server


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """A Postgres without other users: foreign transactions would prevent fills."""
    with Postgres(tmp_path_factory.mktemp("quiet") / "data", settings={**FAST, "autovacuum": "off"}) as server:
        prepare(server.dsn)
        yield server


@pytest.fixture
def database_url(postgres: Postgres) -> str:
    """The database, reset."""
    with psycopg.connect(postgres.dsn, autocommit=True) as conn:
        conn.execute("DELETE FROM cache_outbox")
        conn.execute(NOTHING_IN_FORCE)
        conn.execute(RESET)
    return postgres.dsn


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[AsyncConnectionPool]:
    """Connections in autocommit mode, as the cache requires."""
    async with AsyncConnectionPool(database_url, kwargs={"autocommit": True}, max_size=12, open=False) as pool:
        yield pool


@pytest.fixture
async def start(pool: AsyncConnectionPool, redis_url: str) -> AsyncIterator[Start]:
    """Starts processes of the shop, each with its own Cache, by default on the test's Valkey."""
    async with AsyncExitStack() as exits:
        yield Start(exits, pool, redis_url)


@pytest.fixture
async def shop(start: Start) -> Shop:
    """One process."""
    return await start()


def prepare(database_url: str) -> None:
    """Create the tables of the library and of the shop."""
    with psycopg.connect(database_url, autocommit=True) as conn:
        for migration in sorted(MIGRATIONS.glob("*.cache.*.sql")):
            conn.execute(migration.read_text().partition("GRANT")[0].encode())
        conn.execute(SCHEMA)


@pytest.fixture
def valkey(redis_url: str) -> Iterator[Any]:
    """A client of the server under test."""
    with reaching(redis_url) as client:
        yield client
