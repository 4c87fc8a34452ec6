"""URLs that a predecessor's operators have: Prisma's parameters, a pooler, two hosts."""

import pytest

from libs.db import DatabaseSettings, split_pool_parameters

BASE = "postgresql://u@db/parlor"


@pytest.mark.parametrize(
    ("parameters", "kept", "taken"),
    [
        ("schema=public", "", {}),
        ("schema=salons", "?options=-csearch_path%3Dsalons", {}),
        ("sslaccept=strict", "?sslmode=verify-full&sslrootcert=system", {}),
        ("sslaccept=accept_invalid_certs", "?sslmode=require", {}),
        ("socket_timeout=2.5", "", {"query_timeout": "2500"}),
        ("pgbouncer=true", "", {"pgbouncer": "true"}),
        ("connect_timeout=3&keepalives_idle=4", "?connect_timeout=3&keepalives_idle=4", {}),
    ],
)
def test_prismas_parameters_mean_what_they_meant(parameters: str, kept: str, taken: dict[str, str]) -> None:
    assert split_pool_parameters(f"{BASE}?{parameters}") == (BASE + kept, taken)


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ("colour=blue", "colour"),
        ("sslaccept=perhaps", "sslaccept"),
        ("schema=a%20b", "schema"),
        ("socket_timeout=soon", "socket_timeout"),
        ("target_session_attrs=standby", "target_session_attrs"),
    ],
)
def test_a_parameter_that_means_nothing_is_named(parameters: str, named: str) -> None:
    with pytest.raises(ValueError, match=rf"DATABASE_URL: .*{named}"):
        DatabaseSettings.read("DATABASE_URL", environ={"DATABASE_URL": f"{BASE}?{parameters}"})


@pytest.mark.parametrize("wanted", ["any", "primary", "read-write"])
def test_a_service_finds_the_primary_whichever_way_its_url_asks_for_it(wanted: str) -> None:
    url = f"postgresql://u@a:1,b:2/parlor?target_session_attrs={wanted}"
    assert DatabaseSettings.read("DATABASE_URL", environ={"DATABASE_URL": url}).url.get_secret_value() == url
