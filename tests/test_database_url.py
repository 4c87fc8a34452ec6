"""Database URLs with Prisma's parameters; unknown parameters are named in the error."""

from typing import Any

import pytest
from psycopg.conninfo import conninfo_to_dict
from pydantic import SecretStr

from libs.db import Database, DatabaseSettings
from parlor.stats.v1 import stats_pb2
from tests.load import FIRST
from tests.stack import SALON, booking_request, running, salon

URL = "postgresql://u:hidden@db:5432/parlor"


def read(query: str) -> DatabaseSettings:
    """Return the settings of a URL with these parameters."""
    return DatabaseSettings.read("DATABASE_URL", environ={"DATABASE_URL": f"{URL}?{query}"})


def conninfo(query: str) -> dict[str, Any]:
    """Return the conninfo for libpq."""
    known = conninfo_to_dict(URL)
    found = conninfo_to_dict(read(query).url.get_secret_value())
    return {name: value for name, value in found.items() if known.get(name) != value}


@pytest.mark.parametrize(
    ("query", "setting", "value"),
    [
        ("socket_timeout=3", "query_timeout", 3000),
        ("socket_timeout=0.5", "query_timeout", 500),
        ("pgbouncer=true", "pgbouncer", True),
        ("pgbouncer=false", "pgbouncer", False),
        ("connection_limit=7&schema=public", "connection_limit", 7),
        ("pool_timeout=8&sslmode=prefer", "pool_timeout", 8),
        ("statement_cache_size=0", "statement_cache_size", 0),
    ],
)
def test_a_parameter_of_the_pool_is_a_setting(query: str, setting: str, value: object) -> None:
    assert getattr(read(query), setting) == value


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("schema=public", {}),
        ("schema=salon_data", {"options": "-csearch_path=salon_data"}),
        ("schema=a&options=-c%20jit%3Doff", {"options": "-c jit=off -csearch_path=a"}),
        ("sslmode=require", {"sslmode": "require"}),
        ("sslmode=require&sslaccept=accept_invalid_certs&sslcert=ca.pem", {"sslmode": "require"}),
        ("sslmode=require&sslaccept=strict", {"sslmode": "verify-full", "sslrootcert": "system"}),
        ("sslaccept=strict&sslcert=ca.pem", {"sslmode": "verify-full", "sslrootcert": "ca.pem"}),
        ("connect_timeout=9&keepalives_idle=3", {"connect_timeout": "9", "keepalives_idle": "3"}),
        ("application_name=a&pgbouncer=true&socket_timeout=3", {"application_name": "a"}),
    ],
)
def test_libpq_gets_its_own_parameters(query: str, expected: dict[str, str]) -> None:
    assert conninfo(query) == expected


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("nonsense=1", "DATABASE_URL: unknown parameter nonsense"),
        ("schema=public&sslidentity=x.p12&sslpassword=hidden&foo=hidden", "unknown parameter foo, sslidentity"),
        ("sslaccept=maybe", "sslaccept is neither strict nor accept_invalid_certs"),
        ("schema=a%20b", "schema is not the name of a schema"),
        ("socket_timeout=soon", "socket_timeout is not a number of seconds"),
        ("socket_timeout=0", "query_timeout"),
        ("pgbouncer=perhaps", "pgbouncer"),
        ("target_session_attrs=standby", "target_session_attrs=standby: the services need the primary"),
        ("target_session_attrs=prefer-standby", "the services need the primary"),
    ],
)
def test_unknown_and_invalid_parameters_are_named_without_values(query: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read(query)
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize("attributes", ["read-write", "primary", "any"])
async def test_every_service_connects_to_the_primary_even_a_read_only_one(
    database_url: str, redis_url: str, attributes: str
) -> None:
    async with running(f"{database_url}?target_session_attrs={attributes}", redis_url) as stack:
        await salon(stack)
        booking = await stack.booking.CreateBooking(booking_request(FIRST))
        period = {"start_time": booking.start_time, "end_time": booking.end_time}
        counted = await stack.stats.GetSalonStats(stats_pb2.GetSalonStatsRequest(salon_id=SALON, **period))
        assert counted.bookings == 1


@pytest.mark.parametrize("size", [0, 100])
async def test_parameters_of_the_url_reach_the_server_and_win(database_url: str, size: int) -> None:
    url = f"{database_url}?schema=other&socket_timeout=3&connect_timeout=7&tcp_user_timeout=5000&keepalives_idle=4"
    settings = DatabaseSettings.read("URL", environ={"URL": f"{url}&statement_cache_size={size}"})
    database = Database(settings, "test")
    await database.open()
    try:
        async with database.connection() as conn:
            [found] = await (
                await conn.execute("SELECT current_setting('search_path'), current_setting('statement_timeout')")
            ).fetchall()
            assert found == ("other", "3s")
            expected = {"connect_timeout": "7", "tcp_user_timeout": "5000", "keepalives_idle": "4"}
            assert conn.info.get_parameters().items() >= expected.items()
    finally:
        await database.close()


async def test_hosts_that_differ_only_by_port_are_all_probed(database_url: str) -> None:
    port = database_url.rpartition(":")[2].partition("/")[0]
    url = database_url.replace(f"127.0.0.1:{port}", f"127.0.0.1:1,127.0.0.1:{port}")
    database = Database(DatabaseSettings(url=SecretStr(url)), "test")
    await database.open()
    assert database.available
    await database.close()
