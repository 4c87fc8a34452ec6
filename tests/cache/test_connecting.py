"""Connecting under the ACL of the README and with TLS, and what the log shows when it fails."""

import asyncio
import re
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme
from psycopg_pool import AsyncConnectionPool
from redis.exceptions import NoPermissionError
from structlog.testing import capture_logs
from typer.testing import CliRunner

from libs.cache import acl_rules
from ops.cli import app
from ops.process import free_port
from tests.cache import garbage
from tests.cache.outages import disconnect_all, ready
from tests.cache.servers import CacheServer, each, reaching
from tests.cache.shop import Start

README = Path(__file__).parents[2] / "README.md"
TO_USE = ("mget", "get", "set", "pexpire", "time", "unlink", "eval", "evalsha", "scan", "info")
LOGIN = "an-acl-user"  # its password


def documented() -> list[str]:
    """Return the ACL rules that `parlor redis-acl` prints."""
    printed = CliRunner().invoke(app, ["redis-acl"]).output
    command, user = "ACL SETUSER parlor on '>PASSWORD' ".split(), printed.split()
    assert user[: len(command)] == command
    return user[len(command) :]


def test_the_readme_has_the_rules_that_are_printed() -> None:
    [rules] = re.findall(r"ACL SETUSER parlor on '>PASSWORD' (.*?)\n *\n", README.read_text(), re.DOTALL)
    assert sorted(rules.split()) == sorted(documented()) == sorted(acl_rules())


def make_user(url: str, *rules: str) -> str:
    """Make the user on each server; return the URL by which it connects."""
    for client in each(url):
        client.execute_command("ACL", "SETUSER", "parlor", "reset", "on", f">{LOGIN}", *rules)
        client.execute_command("ACL", "LOG", "RESET")
    return url.replace("redis://", f"redis://parlor:{LOGIN}@")


@pytest.fixture
async def start(pool: AsyncConnectionPool, own_valkey: CacheServer) -> AsyncIterator[Start]:
    """Starts processes on a Valkey with users."""
    async with AsyncExitStack() as exits:
        yield Start(exits, pool, own_valkey.url)


def denied(url: str) -> list[Any]:
    return [line for client in each(url) for line in client.execute_command("ACL", "LOG")]


async def test_the_documented_acl_allows_every_operation_of_the_cache(own_valkey: CacheServer, start: Start) -> None:
    url = make_user(own_valkey.url, *documented())
    with reaching(own_valkey.url) as client:
        client.set("session:1", "somebody else's")
    shop = await start(redis_url=url, near=("shop",))
    await ready(shop)
    await shop.text()
    garbage.write_to(own_valkey.url, shop.shelf().version_key)
    await shop.write("new")
    assert (await shop.text(), (await shop.read()).source) == ("new", "hit")
    await shop.cache.invalidate(shop.shelf())
    await shop.cache.invalidate_pattern("query:*")
    await shop.cache.erase(shop.shelf())
    await shop.cache.store.drop()
    disconnect_all(own_valkey)
    assert await shop.text() == "new"
    await ready(shop)
    assert (await shop.text(), denied(own_valkey.url)) == ("new", [])


async def test_the_documented_acl_denies_other_keys(own_valkey: CacheServer) -> None:
    with reaching(make_user(own_valkey.url, *documented())) as client:
        for command in (("MGET", "session:1"), ("EVAL", "return 1", 1, "session:1"), ("FLUSHALL",), ("KEYS", "*")):
            with pytest.raises(NoPermissionError):
                client.execute_command(*command)


@pytest.mark.parametrize("command", TO_USE)
async def test_a_denied_command_is_named_in_the_log_and_calls_succeed(
    own_valkey: CacheServer, start: Start, command: str
) -> None:
    url = make_user(own_valkey.url, *documented(), f"-{command}")
    with capture_logs() as logs:
        shop = await start(redis_url=url)
        assert (await shop.read())[:2] == (b"old", "bypass")
        await asyncio.sleep(0.3)  # three more attempts
    [line] = [log for log in logs if log["event"] == "redis away"]
    assert command in line["reason"].lower()
    make_user(own_valkey.url, *documented())
    await ready(shop)
    assert (await shop.text(), (await shop.read()).source) == ("old", "hit")


class Encrypted:
    """A TLS port in front of a server, and certificates; `plain` counts connections without TLS."""

    def __init__(self, folder: Path, port: int) -> None:
        """Issue the certificates."""
        self.folder = folder
        self.port = free_port()
        self.connections = 0
        self._behind = port
        authority, other = trustme.CA(), trustme.CA()
        self._issued = authority.issue_cert("localhost")
        for name, issuer in (("ours", authority), ("other", other)):
            issuer.cert_pem.write_to_path(str(folder / f"{name}.pem"))

    def url(self, host: str = "localhost", authority: str = "ours") -> str:
        """Return a URL that trusts an authority."""
        return f"rediss://parlor:{LOGIN}@{host}:{self.port}/0?ssl_ca_certs={self.folder / authority}.pem"

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Serve."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._issued.configure_cert(context)
        async with await asyncio.start_server(self._pass_on, "127.0.0.1", self.port, ssl=context):
            yield
            await asyncio.sleep(0.2)  # a handshake that the client gave up ends, too

    async def _pass_on(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        self.connections += 1
        server, to_server = await asyncio.open_connection("127.0.0.1", self._behind)
        await asyncio.gather(_copy(client, to_server), _copy(server, to_client))


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(65_536):
            target.write(data)
    except OSError:
        pass
    finally:
        target.close()


@pytest.fixture
def encrypted(own_valkey: CacheServer, tmp_path: Path) -> Iterator[Encrypted]:
    """TLS in front of the server, and the documented user behind it."""
    make_user(own_valkey.url, *documented())
    yield Encrypted(tmp_path, own_valkey.port)  # type: ignore[union-attr]


async def test_everything_works_over_tls_with_an_acl_user(encrypted: Encrypted, start: Start) -> None:
    async with encrypted.serving():
        shop = await start(redis_url=encrypted.url())
        await ready(shop)
        await shop.write("new")
        assert (await shop.text(), (await shop.read()).source) == ("new", "hit")
        await shop.cache.invalidate_pattern("query:*")
        await shop.cache.close()
    assert encrypted.connections > 0


WRONG: dict[str, tuple[Callable[[Encrypted], str], str]] = {
    "an unknown authority": (lambda at: at.url(authority="other"), "certificate verify failed"),
    "another host": (lambda at: at.url(host="127.0.0.1"), "certificate is not valid for '127.0.0.1'"),
    "a missing file": (lambda at: at.url(authority="missing"), "missing.pem"),
    "no TLS": (lambda at: f"redis://localhost:{at.port}", "closed"),
    "a wrong password": (lambda at: at.url().replace(LOGIN, "wrong"), "invalid username-password"),
    "no server": (lambda at: f"rediss://localhost:{free_port()}", "Connect call failed"),
    "no such host": (lambda at: f"redis://nowhere.invalid:{at.port}", "not known"),
}


@pytest.mark.parametrize("wrong", WRONG)
async def test_a_failed_connection_is_one_line_of_the_log_with_its_cause(
    encrypted: Encrypted, start: Start, wrong: str
) -> None:
    url, text = WRONG[wrong]
    async with encrypted.serving():
        with capture_logs() as logs:
            shop = await start(redis_url=url(encrypted))
            assert (await shop.read())[:2] == (b"old", "bypass")
            await asyncio.sleep(0.3)
        await shop.cache.close()
    [line] = [log for log in logs if log["event"] == "redis away"]
    assert text in line["reason"]
    assert LOGIN not in str(logs)
