"""Ways for Valkey to be away, and to see what a process makes of it."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import redis
from psycopg_pool import AsyncConnectionPool

from ops.process import free_port
from ops.servers import Valkey
from tests.cache.shop import Shop, until

NOWHERE = f"redis://127.0.0.1:{free_port()}"


@contextmanager
def hanging(valkey: Valkey) -> Iterator[None]:
    """Let a server hang: it accepts connections and keeps its data, but answers nothing."""
    assert valkey._process
    os.kill(valkey._process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(valkey._process.pid, signal.SIGCONT)


def restart_with_its_old_data(valkey: Valkey, snapshot: dict[bytes, bytes]) -> None:
    """Kill the server and start it from a snapshot, as one that keeps its data on disk would."""
    valkey.kill()
    valkey.start()
    with redis.Redis.from_url(valkey.url) as client:
        for key, value in snapshot.items():
            client.restore(key, 0, value)


def take_snapshot(valkey: Valkey) -> dict[bytes, bytes]:
    """Return all keys of a server."""
    with redis.Redis.from_url(valkey.url) as client:
        return {key: bytes(client.dump(key)) for key in client.scan_iter("*")}


def disconnect_all(valkey: Valkey) -> None:
    """Close every connection to the server."""
    with redis.Redis.from_url(valkey.url) as client:
        client.execute_command("CLIENT", "KILL", "TYPE", "normal")


async def rows(pool: AsyncConnectionPool) -> int:
    """Return the number of rows left by writes without Valkey."""
    async with pool.connection() as conn:
        [(count,)] = await (await conn.execute("SELECT count(*) FROM cache_pending")).fetchall()
    return int(count)


async def ready(*shops: Shop) -> None:
    """Wait until the processes serve hits."""
    await until(lambda: all(shop.cache.store.ready for shop in shops))
