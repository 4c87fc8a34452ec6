"""The commands that the cache sends to Redis or Valkey, batched by tick of the event loop.

In a cluster each hash slot gets separate commands. If one server of a cluster is lost, none is used.

A call that fails or takes too long marks the server as lost. It is `connected` again when it has been reached and its
epoch is in force, and `ready`, so that hits may be served, when the invalidation outbox has been registered.
"""

import asyncio
import secrets
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, TypeAlias, TypeVar

import hiredis
import structlog
from redis.exceptions import RedisError

from libs.cache import scripts
from libs.cache.batcher import MAX_BATCH, Batcher
from libs.cache.codec import Codec, Fill, Lookup, TagVersion
from libs.cache.epoch import NotInForceError
from libs.cache.keys import VERSION_SUFFIX, Key, Namespace, parent_key
from libs.cache.keyspace import KeyspaceScan
from libs.cache.lease import now
from libs.cache.near import Near
from libs.cache.probe import find_files, try_commands
from libs.cache.resp import OnReply, RespConnection, ask
from libs.cache.settings import CacheSettings, WithoutRedis
from libs.cache.topology import Slot, Topology, only_slot

VERSION_LIFETIME_SECONDS = 7 * 24 * 3600
UNVERIFIED_SECONDS = 60  # lifetime of a record until its first fill: names that callers make up leave nothing longer

T = TypeVar("T")
Gets: TypeAlias = list[tuple[Key, "asyncio.Future[Lookup]"]]


class StoreAway(Exception):
    """The server can't be reached, or not in time."""


class Store:
    """The server or cluster, as one process sees it."""

    def __init__(self, settings: CacheSettings, namespaces: Iterable[Namespace], batcher: Batcher) -> None:
        """Prepare; nothing connects yet."""
        self.connected = False
        self.ready = False
        self.errors = 0
        self.wake = asyncio.Event()
        self.epoch = ""
        self.near = Near(settings.near_lease / 1000, settings.near_size * 2**20)
        self.open_script, self.register_script, self.fill_script = scripts.OPEN, scripts.REGISTER, scripts.FILL
        self.topology = Topology(settings, self.mark_lost, self._pushed)
        self.keyspace = KeyspaceScan(self.topology, batcher, self.unlink)
        self._loop: asyncio.AbstractEventLoop
        self._tracked = [namespace.prefix for namespace in namespaces if namespace.near]
        self._url = settings.url
        self._codec = Codec(settings.key.get_secret_value())
        self._batcher = batcher
        self._gets: Gets = []
        self._slot: Slot = only_slot
        self._connections: dict[int, RespConnection] = {}  # by slot
        self._histories: dict[RespConnection, bytes] = {}  # the line of INFO that says a master has the data it had
        # With `wait` and `refuse` each read checks that the server's data were not replaced; otherwise each poll does.
        self._is_strict = settings.without is not WithoutRedis.BOUNDED

    async def close(self) -> None:
        """Close the connections."""
        self.topology.disconnect()
        self.connected = self.ready = False

    # Commands

    def get(self, key: Key) -> "asyncio.Future[Lookup]":
        """Return the future record and entry of a key; all gets of a tick share an MGET. It may raise StoreAway."""
        future: asyncio.Future[Lookup] = self._loop.create_future()
        self._gets.append((key, future))
        if len(self._gets) == 1:
            self._loop.call_soon(self._send_gets)
        return future

    async def get_many(self, keys: Sequence[Key]) -> list[Lookup]:
        """Return the records and entries of several keys, by a separate MGET. Raises: StoreAway."""
        if not self.ready:
            raise StoreAway("not ready")
        if len(self._connections) > 1:
            return await asyncio.gather(*map(self.get, keys))
        records = list(dict.fromkeys([key.tag.version_key for key in keys]))
        future: asyncio.Future[Any] = self._loop.create_future()
        command = ["MGET", *records, *[key.entry for key in keys]]
        self._send_read(self._connections[0], partial(_set_result, future), command)
        reply = await future
        if isinstance(reply, hiredis.ReplyError):
            self.mark_lost(reply)
        if isinstance(reply, Exception):
            raise StoreAway(str(reply))
        record_of = dict(zip(records, reply, strict=False))
        entries = zip(keys, reply[len(records) :], strict=True)
        return [self._codec.decode(key.entry, record_of[key.tag.version_key], entry) for key, entry in entries]

    def open(self, version_key: str) -> "asyncio.Future[TagVersion]":
        """Return the future record of a tag; a missing one is created, unverified."""
        return self._batcher.ask(("open", self._slot(version_key)), version_key, self._open_slot)

    def register(self, version_keys: Sequence[str], xact_id: int) -> "asyncio.Future[Any]":
        """Give tags new versions and note the transaction."""
        if len(self._connections) == 1:
            return self._batcher.ask(("register", 0), (tuple(version_keys), xact_id), self._register_slot)
        registrations = [
            self._batcher.ask(("register", slot), (tuple(group), xact_id), self._register_slot)
            for slot, group in self._by_slot(version_keys, str).items()
        ]
        return registrations[0] if len(registrations) == 1 else asyncio.gather(*registrations)

    async def register_outbox(self, rows: Sequence[tuple[str, int]]) -> None:
        """Register tags with the transactions in the outbox. Its calls run beside those of this process's writers.

        Raises: StoreAway.
        """
        for first in range(0, len(rows), MAX_BATCH):
            writes = [((version_key,), xact_id) for version_key, xact_id in rows[first : first + MAX_BATCH]]
            by_slot = self._by_slot(writes, lambda write: write[0][0])
            await asyncio.gather(*map(self._register_slot, by_slot.values()))

    async def fill(self, fills: Sequence[Fill]) -> int:
        """Store the entries in which no write can be missing; return how many those were. Raises: StoreAway."""
        if len(self._connections) == 1:
            return await self._fill_slot(fills)
        by_slot = self._by_slot(fills, lambda fill: fill.key.tag.version_key)
        return sum(await asyncio.gather(*map(self._fill_slot, by_slot.values())))

    async def unlink(self, names: Sequence[bytes]) -> None:
        """Unlink keys. Raises: StoreAway."""
        if not self.connected:
            raise StoreAway("not connected")
        by_slot = self._by_slot(names, bytes)
        calls = [self._connections[slot].call("UNLINK", *group) for slot, group in by_slot.items()]
        for reply in await asyncio.gather(*calls):
            if isinstance(reply, Exception):
                raise StoreAway(str(reply)) from reply

    async def drop(self) -> None:
        """Drop the whole cache. Raises: RedisError, OSError."""
        await self.topology.drop()
        self.near.clear()

    def _by_slot(self, items: Sequence[T], key: Callable[[T], str | bytes]) -> dict[int, list[T]]:
        by_slot: dict[int, list[T]] = defaultdict(list)
        for item in items:
            by_slot[self._slot(key(item))].append(item)
        return by_slot

    # Reads

    def _send_gets(self) -> None:
        gets, self._gets = self._gets, []
        if not self.ready:  # it was when they were made
            self._resolve_gets(gets, 0, StoreAway("not ready"))
            return
        by_slot = {0: gets} if len(self._connections) == 1 else self._by_slot(gets, lambda get: get[0].tag.version_key)
        for slot, group in by_slot.items():
            command = ["MGET"]
            for key, _ in group:
                command += (key.tag.version_key, key.entry)
            resolve = partial(self._resolve_gets, group, now())
            if self._is_strict:
                self._send_read(self._connections[slot], resolve, command)
            else:
                self._connections[slot].send(resolve, *command)

    def _send_read(self, connection: RespConnection, on_reply: OnReply, command: Sequence[str]) -> None:
        """Send a read. In strict mode an INFO behind it checks that the server that has answered has its old data."""
        if not self._is_strict:
            connection.send(on_reply, *command)
            return
        replies: list[Any] = []

        def check(info: Any) -> None:
            if isinstance(info, Exception):
                on_reply(info)
            elif b"role:master" in info and self._histories.get(connection, b"lost") in info:
                on_reply(replies[0])
            else:
                self.mark_lost(error := StoreAway("the server's data were replaced"))
                on_reply(error)

        connection.send(replies.append, *command)
        connection.send(check, "INFO", "replication")

    def _resolve_gets(self, gets: Gets, sent: float, reply: Any) -> None:
        if isinstance(reply, hiredis.ReplyError):
            self.mark_lost(reply)
        for place, (key, future) in enumerate(gets):
            if future.done():
                continue
            try:
                if isinstance(reply, Exception):
                    raise reply
                found = self._codec.decode(key.entry, reply[2 * place], reply[2 * place + 1])
                future.set_result(found)
                if found.entry and key.tag.namespace.near:
                    self.near.put(key, found.entry, sent)
            except Exception as error:  # no garbage on the server may leave a caller waiting
                future.set_exception(StoreAway(str(error)))

    # Scripts

    async def _open_slot(self, version_keys: Sequence[str]) -> list[TagVersion | None]:
        keys: list[str] = []
        for version_key in version_keys:
            keys += (version_key, parent_key(version_key))
        records = await self._run(self.open_script, keys, self.epoch + secrets.token_hex(4), UNVERIFIED_SECONDS)
        return list(map(TagVersion.parse, version_keys, records))

    async def _register_slot(self, writes: Sequence[tuple[Sequence[str], int]]) -> list[None]:
        last_xids: dict[str, int] = {}
        for version_keys, xact_id in writes:
            for key in version_keys:
                last_xids[key] = max(xact_id, last_xids.get(key, 0))
        keys = list(last_xids)
        for first in range(0, len(keys), MAX_BATCH):
            batch = keys[first : first + MAX_BATCH]
            nonce = self.epoch + secrets.token_hex(4)
            xact_ids = map(last_xids.__getitem__, batch)
            await self._run(self.register_script, batch, nonce, UNVERIFIED_SECONDS, *xact_ids)
        for key in keys:  # the gets sent before this command were answered before it, and can't put it back
            self.near.drop(key.removesuffix(VERSION_SUFFIX))
        return [None] * len(writes)

    async def _fill_slot(self, fills: Sequence[Fill]) -> int:
        keys: list[str] = []
        args: list[Any] = []
        for fill in fills:
            tag = fill.key.tag
            keys += (tag.version_key, fill.key.entry)
            # Sub-tags and answers that there is nothing may be of names that callers make up.
            is_lasting = fill.entry.body and tag.version_key == parent_key(tag.name)
            lifetime_ms = VERSION_LIFETIME_SECONDS * 1000 if is_lasting else 2 * fill.ttl_ms
            value = self._codec.encode(fill.key.entry, fill.version, fill.entry)
            args += (fill.version, fill.xmin, fill.barrier, lifetime_ms, fill.ttl_ms, value)
        return sum(await self._run(self.fill_script, keys, *args))

    async def _run(self, script: str, keys: Sequence[str], *args: str | bytes | int) -> Any:
        """Run a script on keys of one slot, by its SHA-1 if the server knows it. Raises: StoreAway."""
        if not self.connected:
            raise StoreAway("not connected")
        connection = self._connections[self._slot(keys[0])]
        reply = await connection.call("EVALSHA", scripts.sha(script), len(keys), *keys, *args)
        if isinstance(reply, hiredis.ReplyError) and str(reply).startswith("NOSCRIPT"):
            reply = await connection.call("EVAL", script, len(keys), *keys, *args)
        if isinstance(reply, Exception):
            if isinstance(reply, hiredis.ReplyError):  # such as a server without memory
                self.mark_lost(reply)
            raise StoreAway(str(reply))
        return reply

    # State

    async def connect(self) -> str:
        """Connect to all servers; return their IDs and histories as one text. Raises: StoreAway.

        It does not find out what happened in between, to the servers' data and to writes: Recovery does.
        """
        # Kept: on Python 3.11 each call of get_running_loop is a system call, 6 % of a warm read.
        self._loop = asyncio.get_running_loop()
        self._connections, self._histories = {}, {}
        try:
            find_files(self._url)
            for node in await self.topology.connect():
                self._slot = node.slot
                self._connections.update(dict.fromkeys(node.slots, node.connection))
                self._histories[node.connection] = f"master_replid:{node.history}".encode()
                await try_commands(node, (self.open_script, self.register_script, self.fill_script))
                await self._track(node.connection)
        except (RedisError, hiredis.HiredisError, OSError) as error:
            self.errors += 1
            raise StoreAway from error
        return ",".join(sorted(f"{node.run_id}/{node.history}" for node in self.topology.nodes))

    def join(self, epoch: str) -> None:
        """Use the servers under an epoch. Raises: StoreAway if one was lost meanwhile."""
        for node in self.topology.nodes:
            if node.connection.lost:
                raise StoreAway from node.connection.lost
        self.epoch = epoch
        self._codec.epoch = epoch.encode()
        self.connected = True

    def compare(self, epoch: str) -> None:
        """Mark the servers as lost if another epoch is in force."""
        if self.connected and epoch != self.epoch:
            self.mark_lost(NotInForceError("another cache is in force"))

    async def check(self) -> None:
        """Return if the servers are still masters with the same data; otherwise they are lost. Raises: StoreAway."""
        try:
            await self.topology.check()
        except (RedisError, OSError) as error:
            self.mark_lost(error)
            raise StoreAway(str(error)) from error

    def mark_lost(self, error: Exception) -> None:
        """Stop using the servers until Recovery has them back."""
        self.errors += 1
        if self.ready:
            structlog.get_logger().warning("redis lost", error=repr(error))
        self.connected = self.ready = False
        self.near.clear()
        self.wake.set()

    # Invalidations pushed by the server

    async def _track(self, connection: RespConnection) -> None:
        """Ask for pushes about the tags of the near namespaces.

        NOLOOP: fills of this connection change no version, and a registration drops its tags itself. Valkey pushes what
        scripts have changed all the same.
        """
        if not self._tracked:
            return
        prefixes = [word for prefix in self._tracked for word in ("PREFIX", prefix)]
        await ask(connection, "HELLO", 3)
        await ask(connection, "CLIENT", "TRACKING", "ON", "BCAST", "NOLOOP", *prefixes)

    def _pushed(self, message: list[Any]) -> None:
        """Drop the tags that have changed: all, if the message names none."""
        if message[0] != b"invalidate":
            return
        if message[1] is None:
            self.near.clear()
        else:
            for name in message[1]:
                self.near.drop(name.decode(errors="replace").removesuffix(VERSION_SUFFIX))


def _set_result(future: "asyncio.Future[Any]", reply: Any) -> None:
    if not future.done():
        future.set_result(reply)
