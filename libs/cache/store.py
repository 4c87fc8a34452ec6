"""What the cache does on Redis or Valkey: four commands, each for all that is asked for in a tick.

In a cluster it is one command for all of a hash slot. The servers of a cluster are used all or none.

Any call that fails or takes too long marks the server as lost: from then on nothing is tried until it is connected
again and in force (`connected`), and no entry is looked for until the watch has found no write left behind (`ready`).
"""

import asyncio
import secrets
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Any, TypeAlias

import hiredis
import structlog
from redis.exceptions import RedisError

from libs.cache import scripts
from libs.cache.batcher import LARGEST_CALL, Batcher
from libs.cache.codec import Codec, Fill, Found, Meta
from libs.cache.epoch import NotInForceError
from libs.cache.keys import META, Key, whole
from libs.cache.keyspace import Walk
from libs.cache.lease import now
from libs.cache.near import Near
from libs.cache.probe import find_files, try_commands
from libs.cache.resp import OnReply, RespConnection
from libs.cache.settings import CacheSettings, WithoutRedis
from libs.cache.topology import Slot, Topology, ask, only_slot

META_LIFETIME_SECONDS = 7 * 24 * 3600
UNVERIFIED_SECONDS = 60  # lifetime of a meta until its first entry is stored: nobody knows yet if its salon exists

Looks: TypeAlias = list[tuple[Key, "asyncio.Future[Found]"]]


class StoreAway(Exception):
    """The server can't be reached, or not in time."""


class Store:
    """The server, as one process sees it."""

    def __init__(self, settings: CacheSettings, gather: Batcher) -> None:
        """Prepare the clients; nothing connects before `recover`."""
        self.connected = False
        self.ready = False
        self.errors = 0
        self.wake = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop
        self.near = Near(settings.near_lease / 1000, settings.near_size * 2**20)
        self._tracked = [space.prefix for space in map(settings.namespace, settings.near) if space.near]
        self._url = settings.url
        self._timeout = settings.timeout / 1000
        self._codec = Codec(settings.key.get_secret_value())
        self._batcher = gather
        self._looks: Looks = []
        self._slot: Slot = only_slot
        self._wires: dict[int, RespConnection] = {}  # by slot
        self._histories: dict[RespConnection, bytes] = {}  # the line of INFO that says a master has the data it had
        # With `wait` no read may be behind for a poll: each has to know that the server's data were not replaced since.
        self._is_strict = settings.without is WithoutRedis.WAIT
        self.epoch = ""
        self.open_script, self.register_script, self.fill_script = scripts.OPEN, scripts.REGISTER, scripts.FILL
        self.servers = Topology(settings, self.mark_lost, self._pushed)
        self.walk = Walk(self.servers, gather, self.unlink)

    async def close(self) -> None:
        """Close the connections."""
        self.servers.disconnect()
        self.connected = self.ready = False

    def look(self, key: Key) -> "asyncio.Future[Found]":
        """Look for a meta and its entry, together with all that is looked for in this tick."""
        future: asyncio.Future[Found] = self._loop.create_future()
        self._looks.append((key, future))
        if len(self._looks) == 1:
            self._loop.call_soon(self._look)
        return future

    async def look_many(self, keys: Sequence[Key]) -> list[Found]:
        """Look for the metas and entries of several keys, by an MGET of their own. Raises: StoreAway."""
        if not self.ready:
            raise StoreAway("not ready")
        if len(self._wires) > 1:
            return await asyncio.gather(*map(self.look, keys))
        metas = list(dict.fromkeys([key.tag.meta for key in keys]))
        future: asyncio.Future[Any] = self._loop.create_future()
        answer = partial(_answer, future)
        self._send(self._wires[0], answer, "MGET", *metas, *[key.entry for key in keys])
        reply = await future
        if isinstance(reply, hiredis.ReplyError):
            self.mark_lost(reply)
        if isinstance(reply, Exception):
            raise StoreAway(str(reply))
        of_name = dict(zip(metas, reply, strict=False))
        found = zip(keys, reply[len(metas) :], strict=True)
        return [self._codec.decode(key.entry, of_name[key.tag.meta], entry) for key, entry in found]

    def open(self, meta: str) -> "asyncio.Future[Meta]":
        """Create a meta if it is missing, cold; return what it is."""
        return self._batcher.ask(("open", self._slot(meta)), meta, self._open_all)

    def register(self, metas: Sequence[str], xact_id: int) -> "asyncio.Future[Any]":
        """Give tags new generations and note the transaction."""
        lots: dict[int, list[str]] = defaultdict(list)
        for meta in metas:
            lots[self._slot(meta)].append(meta)
        answers = [
            self._batcher.ask(("register", slot), (tuple(lot), xact_id), self._register_all)
            for slot, lot in lots.items()
        ]
        return answers[0] if len(answers) == 1 else asyncio.gather(*answers)

    async def register_pending(self, pending: Sequence[tuple[str, int]]) -> None:
        """Register metas with the ids that others have left, beside the calls of this process's own writers.

        Raises: StoreAway.
        """
        for first in range(0, len(pending), LARGEST_CALL):
            lots: dict[int, list[tuple[list[str], int]]] = defaultdict(list)
            for meta, xact_id in pending[first : first + LARGEST_CALL]:
                lots[self._slot(meta)].append(([meta], xact_id))
            await asyncio.gather(*map(self._register_all, lots.values()))

    async def drop(self) -> None:
        """Drop the whole cache. Raises: RedisError, OSError."""
        await self.servers.unlink_metas()
        self.near.clear()

    async def unlink(self, names: Sequence[bytes]) -> None:
        """Unlink keys. Raises: StoreAway."""
        lots: dict[int, list[bytes]] = defaultdict(list)
        for name in names:
            lots[self._slot(name)].append(name)
        if not self.connected:
            raise StoreAway("not connected")
        for reply in await asyncio.gather(*(self._wires[slot].call("UNLINK", *lot) for slot, lot in lots.items())):
            if isinstance(reply, Exception):
                raise StoreAway(str(reply)) from reply

    async def fill(self, fills: Sequence[Fill]) -> int:
        """Store the entries in which no write may be missing; return how many that were. Raises: StoreAway."""
        if len(self._wires) == 1:
            return await self._fill_slot(fills)
        lots: dict[int, list[Fill]] = defaultdict(list)
        for fill in fills:
            lots[self._slot(fill.key.tag.meta)].append(fill)
        return sum(await asyncio.gather(*map(self._fill_slot, lots.values())))

    def _look(self) -> None:
        looks, self._looks = self._looks, []
        if not self.ready:  # it was when they asked
            self._looked(looks, 0, StoreAway("not ready"))
            return
        if len(self._wires) == 1:
            self._get(self._wires[0], looks)
            return
        lots: dict[int, Looks] = defaultdict(list)
        for look in looks:
            lots[self._slot(look[0].tag.meta)].append(look)
        for slot, lot in lots.items():
            self._get(self._wires[slot], lot)

    def _get(self, wire: RespConnection, looks: Looks) -> None:
        command = ["MGET"]
        for key, _ in looks:
            command += (key.tag.meta, key.entry)
        self._send(wire, partial(self._looked, looks, now()), *command)

    def _send(self, wire: RespConnection, on_reply: OnReply, *command: str) -> None:
        """Send a read; if nothing older may be shown, with a check behind it of what has answered it."""
        if not self._is_strict:
            wire.send(on_reply, *command)
            return
        replies: list[Any] = []

        def checked(info: Any) -> None:
            if isinstance(info, Exception):
                on_reply(info)
            elif b"role:master" in info and self._histories.get(wire, b"lost") in info:
                on_reply(replies[0])
            else:
                self.mark_lost(error := StoreAway("the server's data were replaced"))
                on_reply(error)

        wire.send(replies.append, *command)
        wire.send(checked, "INFO", "replication")

    def _looked(self, looks: Looks, sent: float, reply: Any) -> None:
        if isinstance(reply, hiredis.ReplyError):
            self.mark_lost(reply)
        for place, (key, future) in enumerate(looks):
            if future.done():
                continue
            try:
                if isinstance(reply, Exception):
                    raise reply
                found = self._codec.decode(key.entry, reply[2 * place], reply[2 * place + 1])
                future.set_result(found)
                if found.entry and key.tag.namespace.near:
                    self.near.put(key, found.entry, sent)
            except Exception as error:  # whatever the server holds, no caller may wait for ever
                future.set_exception(StoreAway(str(error)))

    def _nonce(self) -> str:
        return self.epoch + secrets.token_hex(4)

    async def _open_all(self, metas: Sequence[str]) -> list[Meta]:
        names = [name for meta in metas for name in (meta, whole(meta))]
        reply = await self._run(self.open_script, names, self._nonce(), UNVERIFIED_SECONDS)
        opened = list(map(Meta.parse, metas, reply))
        return [meta for meta in opened if meta is not None]

    async def _register_all(self, writes: Sequence[tuple[Sequence[str], int]]) -> list[None]:
        highest: dict[str, int] = {}
        for metas, xact_id in writes:
            for meta in metas:
                highest[meta] = max(xact_id, highest.get(meta, 0))
        names = list(highest)
        for first in range(0, len(names), LARGEST_CALL):
            lot = names[first : first + LARGEST_CALL]
            ids = [highest[meta] for meta in lot]
            await self._run(self.register_script, lot, self._nonce(), UNVERIFIED_SECONDS, *ids)
        for meta in names:  # what looks before this one have found has been put there by now
            self.near.drop(meta.removesuffix(META))
        return [None] * len(writes)

    async def _fill_slot(self, fills: Sequence[Fill]) -> int:
        names = [name for fill in fills for name in (fill.key.tag.meta, fill.key.entry)]
        args: list[Any] = []
        for fill in fills:
            value = self._codec.encode(fill.key.entry, fill.generation, fill.entry)
            args += (fill.generation, fill.xmin, fill.barrier, _meta_lifetime_ms(fill), fill.ttl_ms, value)
        return sum(await self._run(self.fill_script, names, *args))

    async def _run(self, script: str, keys: Sequence[str], *args: str | bytes | int) -> Any:
        """Run a script on keys of one slot, by its hash where the server knows it.

        Raises: StoreAway, and the server is lost.
        """
        if not self.connected:
            raise StoreAway("not connected")
        wire = self._wires[self._slot(keys[0])]
        reply = await wire.call("EVALSHA", scripts.sha(script), len(keys), *keys, *args)
        if isinstance(reply, hiredis.ReplyError) and str(reply).startswith("NOSCRIPT"):
            reply = await wire.call("EVAL", script, len(keys), *keys, *args)
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
        self.near.clear()
        self.wake.set()

    async def connect(self) -> str:
        """Connect to all servers; return which they are, and which data they have. Raises: StoreAway.

        What happened while there was no connection, to the servers and to writes that could not reach them, is for the
        watch to find out: a connection never comes back by itself.
        """
        # Kept: on Python 3.11 each question for the running loop is a system call, 6 % of a warm read.
        self._loop = asyncio.get_running_loop()
        self._wires, self._histories = {}, {}
        try:
            find_files(self._url)
            for node in await self.servers.connect():
                self._slot = node.slot
                self._wires.update(dict.fromkeys(node.slots, node.wire))
                self._histories[node.wire] = f"master_replid:{node.history}".encode()
                tried = self.open_script, self.register_script, self.fill_script
                await try_commands(node.wire, node.slot, node.slots, tried)
                await self._track(node.wire)
        except (RedisError, hiredis.HiredisError, OSError) as error:
            self.errors += 1
            raise StoreAway from error
        return ",".join(sorted(f"{node.run_id}/{node.history}" for node in self.servers.nodes))

    def join(self, epoch: str) -> None:
        """Use the servers under an epoch. Raises: StoreAway if one was lost meanwhile."""
        for node in self.servers.nodes:
            if node.wire.lost:
                raise StoreAway from node.wire.lost
        self.epoch = epoch
        self._codec.epoch = epoch.encode()
        self.connected = True

    async def check(self) -> None:
        """Return if the servers are the masters that they were, with the same data; else they are lost.

        Raises: StoreAway.
        """
        try:
            await self.servers.check()
        except (RedisError, OSError) as error:
            self.mark_lost(error)
            raise StoreAway(str(error)) from error

    def compare(self, epoch: str) -> None:
        """Mark the servers as lost if another epoch is in force."""
        if self.connected and epoch != self.epoch:
            self.mark_lost(NotInForceError("another cache is in force"))

    async def _track(self, wire: RespConnection) -> None:
        """Have the server tell whatever others change in the namespaces of the near cache.

        Of this connection's own commands fills change no generation, and a registration drops its tags itself; but
        Valkey tells what scripts have changed all the same, after their replies.
        """
        if not self._tracked:
            return
        prefixes = [word for prefix in self._tracked for word in ("PREFIX", prefix)]
        await ask(wire, "HELLO", 3)
        await ask(wire, "CLIENT", "TRACKING", "ON", "BCAST", "NOLOOP", *prefixes)

    def _pushed(self, message: list[Any]) -> None:
        """Drop what has changed; that is everything where no key is named."""
        if message[0] != b"invalidate":
            return
        if message[1] is None:
            self.near.clear()
        else:
            for name in message[1]:
                self.near.drop(name.decode(errors="replace").removesuffix(META))


def _answer(future: "asyncio.Future[Any]", reply: Any) -> None:
    if not future.done():
        future.set_result(reply)


def _meta_lifetime_ms(fill: Fill) -> int:
    """Return how long the meta of a stored entry lives at least.

    A reply without content is also what look-ups of salons that don't exist get.
    """
    tag = fill.key.tag
    is_lasting = fill.entry.body and tag.meta == whole(tag.name)
    return META_LIFETIME_SECONDS * 1000 if is_lasting else 2 * fill.ttl_ms
