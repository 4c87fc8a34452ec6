"""How REDIS_URL is parsed."""

import pytest
from redis.asyncio.connection import SSLConnection

from libs.cache.address import parse_address

ONE = {"host": "h1", "port": 26379}


def test_hosts_share_credentials_and_database() -> None:
    address = parse_address("redis://me:a%40b@h1:1,h2/3")
    both = {"username": "me", "password": "a@b", "db": 3}
    assert address.name == ""
    assert address.hosts == [{"host": "h1", "port": 1, **both}, {"host": "h2", **both}]


@pytest.mark.parametrize(
    ("url", "hosts", "name", "master"),
    [
        ("redis+sentinel://h1/cache", [ONE], "cache", {}),
        ("redis+sentinel://h1,h2:7/cache/", [ONE, {"host": "h2", "port": 7}], "cache", {}),
        ("redis+sentinel://h1/a%2Fb/5", [ONE], "a/b", {"db": 5}),
        ("redis+sentinel://me:x@h1/cache", [ONE], "cache", {"username": "me", "password": "x"}),
        ("redis+sentinel://h1/c?sentinel_password=a%40b", [{**ONE, "password": "a@b"}], "c", {}),
        (
            "redis+sentinel://:x@h1/c/1?sentinel_username=me&sentinel_password=y",
            [{**ONE, "username": "me", "password": "y"}],
            "c",
            {"password": "x", "db": 1},
        ),
    ],
)
def test_sentinels_have_no_database_and_credentials_apart_from_the_masters(
    url: str, hosts: list[dict[str, object]], name: str, master: dict[str, object]
) -> None:
    address = parse_address(url)
    assert (address.hosts, address.name, address.master) == (hosts, name, master)


def test_tls_is_for_sentinels_and_master() -> None:
    address = parse_address("rediss+sentinel://h1/cache?ssl_ca_certs=ca.pem")
    tls = {"connection_class": SSLConnection, "ssl_ca_certs": "ca.pem"}
    assert (address.hosts, address.master) == ([{**ONE, **tls}], tls)


@pytest.mark.parametrize("url", ["redis+sentinel://h1", "redis+sentinel://h1,h2/", "redis+other://h1/name", "h1:6379"])
def test_an_invalid_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError):
        parse_address(url)
