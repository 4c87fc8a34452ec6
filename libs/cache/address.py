"""What REDIS_URL names: a server, several of which one is to be asked, or the Sentinels that know the server.

    redis://[user:password@]host[:port][,host[:port]...][/database]      servers, or nodes of a cluster
    redis+sentinel://[user:password@]host[:port],.../name[/database]    Sentinels, and the name of the master

`rediss` instead of `redis` is TLS, to Sentinels as well. User and password are the server's; those of the Sentinels are
the parameters sentinel_username and sentinel_password. unix:// names a socket.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlencode, urlsplit

from redis.asyncio.connection import parse_url

SENTINEL = "+sentinel"
SENTINEL_PORT = 26379
SENTINEL_PARAMETERS = {"sentinel_username": "username", "sentinel_password": "password"}


class Address(NamedTuple):
    """Whom to ask, as keyword arguments of redis-py's connections.

    `hosts` has each server's own. With a `master` they are of Sentinels, and `options` of the server that they name.
    """

    hosts: Sequence[Mapping[str, Any]]
    options: Mapping[str, Any]
    master: str = ""

    @classmethod
    def parse(cls, url: str) -> "Address":
        """Read a URL. Raises: ValueError."""
        parts = urlsplit(url)
        if parts.scheme == "unix":
            return cls([{}], parse_url(url))
        scheme, _, kind = parts.scheme.partition("+")
        if kind not in ("", "sentinel"):
            raise ValueError("the scheme is redis, rediss, unix, redis+sentinel or rediss+sentinel")
        credentials, at, names = parts.netloc.rpartition("@")
        path, master = parts.path, ""
        if kind:
            master, _, path = parts.path.removeprefix("/").partition("/")
            if not master:
                raise ValueError("the URL of Sentinels ends with the name of the master: redis+sentinel://h1,h2/name")
        query = parse_qsl(parts.query, keep_blank_values=True)
        of_sentinels = {SENTINEL_PARAMETERS[name]: value for name, value in query if name in SENTINEL_PARAMETERS}
        rest = urlencode([(name, value) for name, value in query if name not in SENTINEL_PARAMETERS])
        hosts = []
        options: dict[str, Any] = {}
        for name in names.split(","):
            options = dict(parse_url(f"{scheme}://{credentials}{at}{name}/{path.strip('/')}?{rest}"))
            host = {
                "host": options.pop("host", "localhost"),
                "port": options.pop("port", SENTINEL_PORT if kind else 6379),
            }
            hosts.append({**host, **of_sentinels})
        return cls(hosts, options, master)
