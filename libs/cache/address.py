"""What REDIS_URL names: a server, or several of which the first that answers is used.

    redis://[user:password@]host[:port][,host[:port]...][/database]

They are masters, or nodes of one cluster. `rediss` instead of `redis` is TLS; unix:// names a socket.
"""

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from redis.asyncio.connection import parse_url


def parse_hosts(url: str) -> Sequence[Mapping[str, Any]]:
    """Return the keyword arguments of redis-py's connections to each host. Raises: ValueError."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return [dict(parse_url(url))]
    credentials, at, names = parts.netloc.rpartition("@")
    return [dict(parse_url(parts._replace(netloc=f"{credentials}{at}{name}").geturl())) for name in names.split(",")]
