"""Outages of Valkey, and helpers that observe how a process reacts to them."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import redis
from psycopg_pool import AsyncConnectionPool

from ops.process import free_port
from tests.cache.servers import CacheServer, each, nodes
from tests.cache.shop import Shop, until

NOWHERE = f"redis://127.0.0.1:{free_port()}"


@contextmanager
def hanging(valkey: CacheServer) -> Iterator[None]:
    """Make a server hang: it accepts connections and keeps its data, but answers nothing."""
    for node in nodes(valkey):
        os.kill(node.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for node in nodes(valkey):
            os.kill(node.pid, signal.SIGCONT)


def restart_with_its_old_data(valkey: CacheServer, snapshot: list[dict[bytes, bytes]]) -> None:
    """Kill the server and start it from a snapshot, like a server that keeps its data on disk."""
    valkey.kill()
    valkey.start()
    for client, kept in zip(each(valkey.url), snapshot, strict=True):
        for key, value in kept.items():
            client.restore(key, 0, value)


def take_snapshot(valkey: CacheServer) -> list[dict[bytes, bytes]]:
    """Return all keys of each server."""
    return [{key: bytes(client.dump(key)) for key in client.scan_iter("*")} for client in each(valkey.url)]


def disconnect_all(valkey: CacheServer) -> None:
    """Close every connection to the server."""
    for node in nodes(valkey):
        with redis.Redis.from_url(node.url) as client:
            client.execute_command("CLIENT", "KILL", "TYPE", "normal")


async def rows(pool: AsyncConnectionPool) -> int:
    """Return the number of rows in the outbox."""
    async with pool.connection() as conn:
        [(count,)] = await (await conn.execute("SELECT count(*) FROM cache_outbox")).fetchall()
    return int(count)


async def ready(*shops: Shop) -> None:
    """Wait until the processes serve hits."""
    await until(lambda: all(shop.cache.store.ready for shop in shops))
