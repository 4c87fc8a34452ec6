"""What REDIS_URL names: servers, or the Sentinels that know where the master is.

    redis://[user:password@]host[:port][,host[:port]...][/database]
    redis+sentinel://[user:password@]host[:port][,host[:port]...]/name[/database]

Several hosts are masters, or nodes of one cluster; the first that answers is used. Sentinels are asked in turn for the
master of a name. User and password are the master's; the parameters `sentinel_username` and `sentinel_password` are the
Sentinels'. `rediss` instead of `redis` is TLS, to the Sentinels too; unix:// names a socket.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias
from urllib.parse import unquote, urlsplit

from redis.asyncio.connection import parse_url

SENTINEL = "+sentinel"
SENTINEL_PORT = 26379

# The keyword arguments of redis-py's connections to a host.
Host: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Address:
    """The hosts of a URL. With a `name` they are Sentinels, and `master` is how to connect to the host they name."""

    hosts: Sequence[Host]
    name: str = ""
    master: Host = field(default_factory=dict)


def parse_address(url: str) -> Address:
    """Return what a URL names. Raises: ValueError."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return Address([dict(parse_url(url))])
    name, path = "", parts.path
    if parts.scheme.endswith(SENTINEL):
        name, _, path = path.strip("/").partition("/")
        if not name:
            raise ValueError("no name of a master: redis+sentinel://host,host/name")
    credentials, at, names = parts.netloc.rpartition("@")
    server = parts._replace(scheme=parts.scheme.removesuffix(SENTINEL), path=path)
    hosts = [dict(parse_url(server._replace(netloc=f"{credentials}{at}{host}").geturl())) for host in names.split(",")]
    if not name:
        return Address(hosts)
    return Address([_sentinel(host) for host in hosts], unquote(name), _master(hosts[0]))


def _sentinel(host: Host) -> Host:
    """Return how to connect to a Sentinel: with its own credentials, if any, and without a database number."""
    own = {name: host[f"sentinel_{name}"] for name in ("username", "password") if f"sentinel_{name}" in host}
    return {"port": SENTINEL_PORT, **_without(host, "username", "password", "db"), **own}


def _master(host: Host) -> Host:
    """Return how to connect to a master, but for its host and port."""
    return _without(host, "host", "port")


def _without(host: Host, *names: str) -> Host:
    return {name: value for name, value in host.items() if not name.startswith("sentinel_") and name not in names}
