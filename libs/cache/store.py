"""What the cache does on Redis or Valkey: four commands, each for all that is asked for in a tick.

A meta is `generation | cold | highest`: 29 characters made by the server, `1` while the group's past is unknown, and
the highest transaction id registered, in decimal digits (below 2^53, since Lua counts in doubles). An entry is
`generation | check of its key | loaded at, in ms | found | bytes`.

Any call that fails or takes too long marks the server as lost: from then on nothing is tried until `recover` has
succeeded (`connected`), and no entry is looked for until the watch has found no write left behind (`ready`).
"""

import asyncio
import secrets
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NamedTuple, TypeVar

import structlog
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from libs.cache.gather import Gather
from libs.cache.keys import META, PREFIX, Key
from libs.cache.settings import CacheSettings

T = TypeVar("T")

META_LIFETIME_SECONDS = 7 * 24 * 3600
GENERATION = 29
SCAN_COUNT = 1000
RUN_ID = PREFIX + "run-id"

_HEADER = struct.Struct(">8sQ?")

_GENERATION_LUA = """
local time = redis.call('TIME')
local generation = string.format('%08x%05x', time[1], time[2]) .. ARGV[1]
"""

_OPEN_LUA = (
    _GENERATION_LUA
    + """
local metas = {}
for i, key in ipairs(KEYS) do
  metas[i] = redis.call('GET', key)
  if not metas[i] then
    metas[i] = generation .. '10'
    redis.call('SET', key, metas[i], 'EX', ARGV[2])
  end
end
return metas
"""
)

_REGISTER_LUA = (
    _GENERATION_LUA
    + """
for i, key in ipairs(KEYS) do
  local meta, cold, highest = redis.call('GET', key), '1', ARGV[i + 2]
  if meta then
    cold = string.sub(meta, 30, 30)
    if tonumber(string.sub(meta, 31)) > tonumber(highest) then highest = string.sub(meta, 31) end
  end
  redis.call('SET', key, generation .. cold .. highest, 'EX', ARGV[2])
end
return ARGV[1]
"""
)

_FILL_LUA = """
local stored = {}
for i = 1, #KEYS, 2 do
  local first = (i - 1) / 2 * 5 + 2
  local generation, stamp, barrier = ARGV[first], tonumber(ARGV[first + 1]), tonumber(ARGV[first + 2])
  local meta = redis.call('GET', KEYS[i])
  stored[#stored + 1] = 0
  if meta and string.sub(meta, 1, 29) == generation and stamp > tonumber(string.sub(meta, 31)) then
    local warm = string.sub(meta, 30, 30) == '0'
    if not warm and barrier > 0 and stamp > barrier then
      local highest = string.sub(meta, 31)
      if barrier > tonumber(highest) then highest = ARGV[first + 2] end
      redis.call('SET', KEYS[i], generation .. '0' .. highest, 'EX', ARGV[1])
      warm = true
    end
    if warm then
      redis.call('SET', KEYS[i + 1], generation .. ARGV[first + 4], 'PX', ARGV[first + 3])
      stored[#stored] = 1
    end
  end
end
return stored
"""


class StoreAway(Exception):
    """The server can't be reached, or not in time."""


class Meta(NamedTuple):
    """What a group's meta says."""

    generation: bytes
    cold: bool
    highest: int

    @classmethod
    def parse(cls, meta: bytes) -> "Meta":
        """Read a meta as the scripts write it."""
        return cls(meta[:GENERATION], meta[GENERATION] == ord("1"), int(meta[GENERATION + 1 :]))


class Entry(NamedTuple):
    """One cached reply: None where there is nothing, and when it was loaded, in ms since 1970."""

    body: bytes | None
    loaded_ms: int


@dataclass(eq=False, slots=True)
class Fill:
    """What a FILL needs to know of a load."""

    key: Key
    generation: bytes
    stamp: int
    barrier: int
    ttl_ms: int
    entry: Entry


class Found(NamedTuple):
    """What a look found: the group's meta, and the entry if it is of the meta's generation."""

    meta: Meta | None
    entry: Entry | None


def check(key: str) -> bytes:
    """Return what an entry says of its key, so that a reply meant for another is never taken for it."""
    return blake2b(key.encode(), digest_size=8).digest()


def _decode(key: str, meta: bytes | None, entry: bytes | None) -> Found:
    if meta is None:
        return Found(None, None)
    parsed = Meta.parse(meta)
    if entry is None or entry[:GENERATION] != parsed.generation:
        return Found(parsed, None)
    named, loaded_ms, found = _HEADER.unpack_from(entry, GENERATION)
    if named != check(key):
        return Found(parsed, None)
    return Found(parsed, Entry(entry[GENERATION + _HEADER.size :] if found else None, loaded_ms))


def _encode(key: str, entry: Entry) -> bytes:
    return _HEADER.pack(check(key), entry.loaded_ms, entry.body is not None) + (entry.body or b"")


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
        options: dict[str, Any] = {"retry": Retry(NoBackoff(), 0), "socket_connect_timeout": self._timeout}
        self._redis: Redis = Redis.from_url(settings.url, redis_connect_func=self._on_connect, **options)
        self._admin: Redis = Redis.from_url(settings.url, **options)
        self._open = self._redis.register_script(_OPEN_LUA)
        self._register = self._redis.register_script(_REGISTER_LUA)
        self._fill = self._redis.register_script(_FILL_LUA)

    async def close(self) -> None:
        """Close the connections."""
        self.connected = self.ready = False
        await self._redis.aclose()
        await self._admin.aclose()

    def look(self, key: Key) -> "asyncio.Future[Found]":
        """Look for a meta and its entry."""
        return self._gather.ask("look", key, self._look_all)

    def open(self, meta: str) -> "asyncio.Future[Meta]":
        """Create a meta if it is missing, cold; return what it is."""
        return self._gather.ask("open", meta, self._open_all)

    def register(self, meta: str, xact_id: int) -> "asyncio.Future[None]":
        """Give a group a new generation and note the transaction."""
        return self._gather.ask("register", (meta, xact_id), self._register_all)

    def fill(self, fill: Fill) -> "asyncio.Future[bool]":
        """Store an entry if no write may be missing in it; say whether it was stored."""
        return self._gather.ask("fill", fill, self._fill_all)

    async def _look_all(self, keys: Sequence[Key]) -> list[Found]:
        names = [name for key in keys for name in (key.group.meta, key.entry)]
        values: list[Any] = await self._call(lambda: self._redis.mget(names))
        return [_decode(key.entry, values[2 * i], values[2 * i + 1]) for i, key in enumerate(keys)]

    async def _open_all(self, metas: Sequence[str]) -> list[Meta]:
        args: list[Any] = [secrets.token_hex(8), META_LIFETIME_SECONDS]
        return [Meta.parse(meta) for meta in await self._call(lambda: self._open(keys=metas, args=args))]

    async def _register_all(self, writes: Sequence[tuple[str, int]]) -> list[None]:
        highest: dict[str, int] = {}
        for meta, xact_id in writes:
            highest[meta] = max(xact_id, highest.get(meta, 0))
        nonce = secrets.token_hex(8)
        args: list[Any] = [nonce, META_LIFETIME_SECONDS, *highest.values()]
        answer = await self._call(lambda: self._register(keys=list(highest), args=args))
        if answer != nonce.encode():
            raise StoreAway("the reply is another call's")
        return [None] * len(writes)

    async def _fill_all(self, fills: Sequence[Fill]) -> list[bool]:
        names = [name for fill in fills for name in (fill.key.group.meta, fill.key.entry)]
        args: list[Any] = [META_LIFETIME_SECONDS]
        for fill in fills:
            value = _encode(fill.key.entry, fill.entry)
            args += [fill.generation, fill.stamp, fill.barrier, fill.ttl_ms, value]
        return [bool(stored) for stored in await self._call(lambda: self._fill(keys=names, args=args))]

    async def _call(self, call: Callable[[], Awaitable[T]]) -> T:
        """Make one call, in time; else the server is lost."""
        if not self.connected:
            raise StoreAway
        try:
            async with asyncio.timeout(self._timeout):
                return await call()
        except (RedisError, OSError, TimeoutError) as error:
            self.mark_lost(error)
            raise StoreAway from error

    def mark_lost(self, error: Exception) -> None:
        """Stop using the server until it has been recovered."""
        self.errors += 1
        if self.ready:
            structlog.get_logger().warning("redis lost", error=repr(error))
        self.connected = self.ready = False
        self.wake.set()

    async def _on_connect(self, connection: AbstractConnection) -> None:
        """Refuse a connection to a server that is not the one whose metas were last known to be good.

        The client reconnects by itself when a connection was closed between two commands: without this a server that
        came back with older data would go unnoticed.
        """
        await connection.on_connect()
        await connection.send_command("INFO", "server")
        info = await connection.read_response()
        await connection.send_command("GET", RUN_ID)
        if await connection.read_response() != _run_id(info):
            raise RedisConnectionError("the server has another run id")

    async def recover(self) -> None:
        """Make sure that the server's data are of its own run: drop the cache if not. Raises: StoreAway."""
        try:
            async with asyncio.timeout(self._timeout):
                run_id = (await self._admin.info("server"))["run_id"].encode()
                known = await self._admin.get(RUN_ID)
            if known != run_id:
                await self.drop(PREFIX + "*")
                await self._admin.set(RUN_ID, run_id)
            await self._redis.connection_pool.disconnect()
            self.connected = True
        except (RedisError, OSError, TimeoutError) as error:
            self.errors += 1
            raise StoreAway from error

    async def drop(self, pattern: str) -> None:
        """Unlink all keys that match. Raises: RedisError."""
        async for names in self.scan(pattern):
            await self._admin.unlink(*names)

    async def unlink(self, names: Sequence[str]) -> None:
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

    async def metas(self) -> list[str]:
        """Return the names of all metas. Raises: RedisError."""
        return [name.decode() async for names in self.scan(f"{PREFIX}*{META}") for name in names]

    async def info(self) -> dict[str, Any]:
        """Return the server's own figures. Raises: RedisError."""
        return dict(await self._admin.info())


def _run_id(info: Any) -> bytes:
    lines = info if isinstance(info, bytes) else info.encode()
    return next(line[7:].strip() for line in lines.splitlines() if line.startswith(b"run_id:"))
