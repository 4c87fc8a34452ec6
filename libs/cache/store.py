"""What the cache does on Redis or Valkey: four commands, each for all that is asked for in a tick.

Any call that fails or takes too long marks the server as lost: from then on nothing is tried until `recover` has
succeeded (`connected`), and no entry is looked for until the watch has found no write left behind (`ready`).
"""

import asyncio
import hashlib
import os
import re
import secrets
from collections.abc import AsyncIterator, Sequence
from functools import cache, partial
from typing import Any

import hiredis
import structlog
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.maint_notifications import MaintNotificationsConfig

from libs.cache import scripts
from libs.cache.entries import Fill, Found, Meta, decode, encode
from libs.cache.gather import Gather
from libs.cache.keys import META, PREFIX, Group, Key
from libs.cache.settings import CacheSettings
from libs.cache.wire import Wire

META_LIFETIME_SECONDS = 7 * 24 * 3600
SCAN_COUNT = 1000
RUN_ID = PREFIX + "run-id"
# Set by the test of `parlor coherence` (docs/decisions/0018), which must find what then goes wrong.
WITHOUT_REGISTRATION = "PARLOR_TEST_WITHOUT_REGISTRATION" in os.environ


class StoreAway(Exception):
    """The server can't be reached, or not in time."""


class Store:
    """The server, as one process sees it."""

    def __init__(self, settings: CacheSettings, gather: Gather) -> None:
        """Prepare the clients; nothing connects before `recover`."""
        self.connected = False
        self.ready = False
        self.errors = 0
        self.wake = asyncio.Event()
        self._timeout = settings.timeout / 1000
        self._gather = gather
        self._looks: list[tuple[Key, asyncio.Future[Found]]] = []
        self._wire: Wire | None = None
        self.open_script, self.register_script, self.fill_script = scripts.OPEN, scripts.REGISTER, scripts.FILL
        # For what is rare: connecting, and walks over all keys.
        self._admin: Redis = Redis.from_url(
            settings.url,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=self._timeout,
            socket_connect_timeout=self._timeout,
            protocol=2,
            driver_info=None,
            maint_notifications_config=MaintNotificationsConfig(enabled=False),
        )

    async def close(self) -> None:
        """Close the connections."""
        if self._wire:
            self._wire.close()
        self.connected = self.ready = False
        await self._admin.aclose()

    def look(self, key: Key) -> "asyncio.Future[Found]":
        """Look for a meta and its entry, together with all that is looked for in this tick."""
        loop = asyncio.get_running_loop()
        if not self._looks:
            loop.call_soon(self._look)
        future: asyncio.Future[Found] = loop.create_future()
        self._looks.append((key, future))
        return future

    def open(self, meta: str) -> "asyncio.Future[Meta]":
        """Create a meta if it is missing, cold; return what it is."""
        return self._gather.ask("open", meta, self._open_all)

    def register(self, meta: str, xact_id: int) -> "asyncio.Future[None]":
        """Give a group a new generation and note the transaction."""
        return self._gather.ask("register", (meta, xact_id), self._register_all)

    def fill(self, fill: Fill) -> "asyncio.Future[bool]":
        """Store an entry if no write may be missing in it; say whether it was stored."""
        return self._gather.ask("fill", fill, self._fill_all)

    def _look(self) -> None:
        looks, self._looks = self._looks, []
        if not self.ready or self._wire is None:  # it was when they asked
            self._looked(looks, StoreAway("not ready"))
            return
        command = ["MGET"]
        for key, _ in looks:
            command += (key.group.meta, key.entry)
        self._wire.send(partial(self._looked, looks), *command)

    def _looked(self, looks: Sequence[tuple[Key, "asyncio.Future[Found]"]], reply: Any) -> None:
        if isinstance(reply, hiredis.ReplyError):
            self.mark_lost(reply)
        for place, (key, future) in enumerate(looks):
            if future.done():
                continue
            try:
                if isinstance(reply, Exception):
                    raise reply
                future.set_result(decode(key.entry, reply[2 * place], reply[2 * place + 1]))
            except Exception as error:  # whatever the server holds, no caller may wait for ever
                future.set_exception(StoreAway(str(error)))

    async def _open_all(self, metas: Sequence[str]) -> list[Meta]:
        reply = await self._run(self.open_script, metas, secrets.token_hex(8), META_LIFETIME_SECONDS)
        return [Meta.parse(meta) for meta in reply]

    async def _register_all(self, writes: Sequence[tuple[str, int]]) -> list[None]:
        if WITHOUT_REGISTRATION:
            return [None] * len(writes)
        highest: dict[str, int] = {}
        for meta, xact_id in writes:
            highest[meta] = max(xact_id, highest.get(meta, 0))
        args: tuple[str | int, ...] = (secrets.token_hex(8), META_LIFETIME_SECONDS, *highest.values())
        await self._run(self.register_script, list(highest), *args)
        return [None] * len(writes)

    async def _fill_all(self, fills: Sequence[Fill]) -> list[bool]:
        names = [name for fill in fills for name in (fill.key.group.meta, fill.key.entry)]
        args: list[Any] = [META_LIFETIME_SECONDS]
        for fill in fills:
            value = encode(fill.key.entry, fill.entry)
            args += (fill.generation, fill.stamp, fill.barrier, fill.ttl_ms, value)
        return [bool(stored) for stored in await self._run(self.fill_script, names, *args)]

    async def _run(self, script: str, keys: Sequence[str], *args: str | bytes | int) -> Any:
        """Run a script, by its hash where the server knows it. Raises: StoreAway, and the server is lost."""
        if not self.connected or self._wire is None:
            raise StoreAway("not connected")
        reply = await self._wire.call("EVALSHA", _sha(script), len(keys), *keys, *args)
        if isinstance(reply, hiredis.ReplyError) and str(reply).startswith("NOSCRIPT"):
            reply = await self._wire.call("EVAL", script, len(keys), *keys, *args)
        if isinstance(reply, Exception):
            if isinstance(reply, hiredis.ReplyError):  # such as a server without memory
                self.mark_lost(reply)
            raise StoreAway(str(reply))
        return reply

    def mark_lost(self, error: Exception) -> None:
        """Stop using the server until it has been recovered."""
        self.errors += 1
        if self.ready:
            structlog.get_logger().warning("redis lost", error=repr(error))
        self.connected = self.ready = False
        self.wake.set()

    async def recover(self) -> None:
        """Connect, and make sure that the server's data are of its own run: drop the cache if not. Raises: StoreAway.

        What happened while there was no connection, to the server and to writes that could not reach it, is for this
        and for the watch to find out: the wire never reconnects by itself.
        Several processes may do so at once: what one has stored after its own drop another may drop again, which does
        no harm, and none is connected before a whole drop of its own or another's.
        """
        try:
            if self._wire:
                self._wire.close()
            pool: Any = self._admin.connection_pool
            connection = pool.make_connection()
            await connection.connect()
            self._wire = Wire(connection, self._timeout, self.mark_lost)
            await self._check_run(self._wire)
            if self._wire.lost:
                raise self._wire.lost
            self.connected = True
        except (RedisError, hiredis.HiredisError, OSError, StoreAway) as error:
            self.errors += 1
            raise StoreAway from error

    async def _check_run(self, wire: Wire) -> None:
        """Drop the cache unless it was made by the server's own run."""
        info, known = await asyncio.gather(wire.call("INFO", "server"), wire.call("GET", RUN_ID))
        for reply in (info, known):
            if isinstance(reply, Exception):
                raise reply
        if known != (run_id := _run_id(info)):
            await self._drop()
            await self._admin.set(RUN_ID, run_id)

    async def _drop(self) -> None:
        """Unlink the whole cache; the server may hold other people's keys."""
        async for names in self.scan(PREFIX + "*"):
            await self.unlink([name for name in names if name != RUN_ID.encode()])

    async def unlink(self, names: Sequence[str | bytes]) -> None:
        """Unlink keys. Raises: RedisError."""
        for first in range(0, len(names), SCAN_COUNT):
            await self._admin.unlink(*names[first : first + SCAN_COUNT])

    async def scan(self, pattern: str) -> AsyncIterator[list[Any]]:
        """Yield the names of all keys that match, by the thousand. Raises: RedisError."""
        cursor = 0
        while True:
            cursor, names = await self._admin.scan(cursor, match=pattern, count=SCAN_COUNT)
            if names:
                yield names
            if not cursor:
                return

    async def metas(self, prefix: str = "") -> list[str]:
        """Return the metas of every group that a key with this prefix could be in. Raises: RedisError."""
        metas = [name.decode() async for names in self.scan(f"{PREFIX}*{META}") for name in names]
        return [meta for meta in metas if meta.startswith(prefix) or prefix.startswith(meta.removesuffix(META))]

    async def unlink_entries(self, group: Group) -> None:
        """Unlink every entry of a group, whatever its generation. Raises: RedisError."""
        literal = re.sub(r"([*?\[\]\\])", r"\\\1", group.name)
        async for names in self.scan(literal + "*"):
            await self.unlink([name for name in names if name != group.meta.encode()])

    async def info(self) -> dict[str, Any]:
        """Return the server's own figures. Raises: RedisError."""
        return dict(await self._admin.info())


def _run_id(info: bytes) -> bytes:
    return next(line[7:].strip() for line in info.splitlines() if line.startswith(b"run_id:"))


@cache
def _sha(script: str) -> str:
    return hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
