"""The connection to Valkey: lost while connecting, read late by a busy process, closed with the cache."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack

import pytest
import uvloop
from psycopg_pool import AsyncConnectionPool

from libs.cache.epoch import Epochs
from libs.cache.recovery import RETRY_SECONDS
from tests.cache.outages import disconnect_all, ready
from tests.cache.servers import CacheServer, each
from tests.cache.shop import Shop, Start, until


@pytest.fixture
async def start(pool: AsyncConnectionPool, own_valkey: CacheServer) -> AsyncIterator[Start]:
    """Starts processes on a Valkey that the test may kill."""
    async with AsyncExitStack() as exits:
        yield Start(exits, pool, own_valkey.url)


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_a_busy_process_does_not_time_out_a_reply_that_has_arrived(
    database_url: str, redis_url: str, loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    async def main() -> None:
        pool = AsyncConnectionPool(database_url, kwargs={"autocommit": True}, open=False)
        async with pool, AsyncExitStack() as exits:
            shop = await Start(exits, pool, redis_url, timeout=100)()
            await shop.text()
            connection, (here, there) = next(iter(shop.cache.store._connections.values())), socket.socketpair()
            answers: list[asyncio.Future[bytes]] = []

            def work() -> None:
                here.recv(1)
                answers.append(connection.call("PING"))
                time.sleep(0.15)  # longer than the timeout of the reply

            asyncio.get_running_loop().add_reader(here, work)
            for _ in range(5):
                there.send(b"x")
                await until(lambda: answers)
                assert await answers.pop() == b"PONG"
            asyncio.get_running_loop().remove_reader(here)
            here.close()
            there.close()
            assert shop.cache.store.errors == 0

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(main())


async def test_a_connection_lost_while_connecting_is_opened_again(
    own_valkey: CacheServer, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop, join, times = await start(), Epochs.join, 0

    async def join_and_lose(self: Epochs, servers: str) -> str:
        nonlocal times
        epoch = await join(self, servers)
        if (times := times + 1) <= 3:
            disconnect_all(own_valkey)
            await until(lambda: all(node.connection.lost for node in shop.cache.store.topology.nodes))
        return epoch

    monkeypatch.setattr(Epochs, "join", join_and_lose)
    disconnect_all(own_valkey)
    await until(lambda: times > 3)
    await ready(shop)
    assert (await shop.text(), (await shop.read()).source) == ("old", "hit")


async def test_reconnecting_to_a_server_that_hangs_up_is_delayed(start: Start) -> None:
    calls: list[float] = []

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        calls.append(time.monotonic())
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        shop = await start(redis_url=f"redis://127.0.0.1:{port}")
        await until(lambda: len(calls) >= 6)
        assert (await shop.read())[:2] == (b"old", "bypass")
        await shop.cache.close()
    assert calls[5] - calls[1] > RETRY_SECONDS * 2


async def test_replies_match_their_calls_after_other_calls_were_canceled(start: Start) -> None:
    shop = await start()
    labels = {f"item {number}": f"{number}" for number in range(20)}
    for name, label in labels.items():
        await shop.write(label, name)
    await asyncio.gather(*(shop.text(name) for name in labels))
    for round_ in range(20):
        reads = []
        for number, name in enumerate(labels):
            reads.append(asyncio.create_task(shop.read(name)))
            await asyncio.sleep(0)
            if (number + round_) % 3 == 0:
                reads[-1].cancel()
        replies = await asyncio.gather(*reads, return_exceptions=True)
        for label, reply in zip(labels.values(), replies, strict=True):
            if not isinstance(reply, BaseException):
                assert reply[:2] == (label.encode(), "hit")


async def test_the_connection_is_closed_with_the_cache(own_valkey: CacheServer, start: Start) -> None:
    shop: Shop = await start()
    await shop.text()
    await shop.cache.close()
    for client in each(own_valkey.url):
        await until(lambda one=client: len(one.client_list()) == 1)  # type: ignore[misc]
