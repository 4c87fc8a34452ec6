"""grpcio's clients, sync and aio, against each transport: features and limits."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc
import pytest

from libs.server.client import RETRY_POLICY
from libs.server.settings import LARGEST_MESSAGE_BYTES
from tests.http2.conftest import LARGE, Serve, Served, method
from tests.http2.servicer import SERVICE

RETRIES = (
    "grpc.service_config",
    json.dumps({"methodConfig": [{"name": [{"service": SERVICE}], "retryPolicy": RETRY_POLICY}]}),
)
ALGORITHMS = [grpc.Compression.Gzip, grpc.Compression.Deflate]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path is short enough for a socket."""
    with TemporaryDirectory() as name:
        yield Path(name)


async def sync(served: Served, use: Callable[[grpc.Channel], Any]) -> Any:
    """Use the sync client on a thread."""

    def run() -> Any:
        with grpc.insecure_channel(served.address, options=LARGE) as channel:
            return use(channel)

    async with asyncio.timeout(60):
        return await asyncio.to_thread(run)


async def failure(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return raised.value.code(), raised.value.details() or ""


async def test_the_sync_client_calls_every_kind(served: Served) -> None:
    def use(channel: grpc.Channel) -> list[Any]:
        return [
            method(channel, "Echo")(b"hi", timeout=20),
            list(method(channel, "Stream")(b"2 1", timeout=20)),
            method(channel, "Collect")(iter([b"a", b"b"]), timeout=20),
            list(method(channel, "Chat")(iter([b"a", b"b"]), timeout=20)),
        ]

    assert await sync(served, use) == [b"hi", [b"\0", b"\1"], b"2 ab", [b"a", b"b"]]


async def test_the_sync_clients_deadline_ends_the_handler(served: Served) -> None:
    def use(channel: grpc.Channel) -> Any:
        method(channel, "Echo")(b"", timeout=20)  # connects: the next deadline must end in the handler
        with pytest.raises(grpc.RpcError) as raised:
            method(channel, "Slow")(b"", timeout=0.3)
        return raised.value.code()

    assert await sync(served, use) == grpc.StatusCode.DEADLINE_EXCEEDED
    async with asyncio.timeout(10):
        assert await served.servicer.ended.get() == "canceled"


async def test_the_aio_clients_deadline_ends_the_handler(served: Served) -> None:
    channel = await served.channel()
    await method(channel, "Echo")(b"", timeout=20)  # connects: the next deadline must end in the handler
    code, _ = await failure(method(channel, "Slow")(b"", timeout=0.3))
    assert code == grpc.StatusCode.DEADLINE_EXCEEDED
    async with asyncio.timeout(10):
        assert await served.servicer.ended.get() == "canceled"


async def test_the_handler_sees_the_deadline_that_the_client_set(served: Served) -> None:
    remaining: list[float] = []

    async def behavior(request: bytes, context: Any) -> bytes:
        remaining.append(context.time_remaining())
        return request

    served.servicer.behavior = behavior
    await method(await served.channel(), "Run")(b"", timeout=100)
    assert 90 < remaining[0] <= 101  # the client rounds up to three digits


async def test_the_sync_clients_cancellation_ends_the_handler(served: Served) -> None:
    loop = asyncio.get_running_loop()

    def use(channel: grpc.Channel) -> bool:
        call = method(channel, "Slow").future(b"", timeout=20)
        asyncio.run_coroutine_threadsafe(served.servicer.begun.wait(), loop).result(20)
        return bool(call.cancel())

    assert await sync(served, use)
    async with asyncio.timeout(10):
        assert await served.servicer.ended.get() == "canceled"


async def test_unavailable_is_retried_according_to_the_service_config(served: Served) -> None:
    flaky = method(await served.channel(RETRIES), "Flaky")
    assert await flaky(b"3") == b"3"
    assert served.servicer.attempts == 4
    code, details = await failure(flaky(b"100"))
    assert (code, details) == (grpc.StatusCode.UNAVAILABLE, "not now")
    assert served.servicer.attempts == 8


async def test_a_retry_waits_as_long_as_the_server_pushes_back(served: Served) -> None:
    flaky = method(await served.channel(RETRIES), "Flaky")
    began = time.monotonic()
    assert await flaky(b"2 400") == b"2 400"
    assert time.monotonic() - began > 0.8
    assert served.servicer.attempts == 3


async def test_a_negative_pushback_forbids_the_retry(served: Served) -> None:
    code, _ = await failure(method(await served.channel(RETRIES), "Flaky")(b"2 -1"))
    assert code == grpc.StatusCode.UNAVAILABLE
    assert served.servicer.attempts == 1


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_compressed_requests_are_inflated(served: Served, algorithm: grpc.Compression) -> None:
    text = b"text " * 10_000

    async def several() -> Any:
        for each in (text, b"", text[:100]):
            yield each

    channel = await served.channel()
    assert await method(channel, "Echo")(text, compression=algorithm) == text
    assert await method(channel, "Echo")(b"", compression=algorithm) == b""
    assert await method(channel, "Collect")(several(), compression=algorithm) == b"3 " + text + text[:100]

    def use(channel: grpc.Channel) -> Any:
        return method(channel, "Echo")(text, compression=algorithm, timeout=20)

    assert await sync(served, use) == text


async def test_messages_of_at_most_16_mib_pass_both_ways(served: Served) -> None:
    largest = bytes(LARGEST_MESSAGE_BYTES)
    channel = await served.channel()
    async with asyncio.timeout(60):
        assert await method(channel, "Echo")(largest) == largest
        code, details = await failure(method(channel, "Echo")(largest + b"\0"))
    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert details == f"SERVER: Received message larger than max ({len(largest) + 1} vs. {len(largest)})"

    def use(channel: grpc.Channel) -> Any:
        return method(channel, "Echo")(largest, timeout=50) == largest

    assert await sync(served, use)


async def test_a_compressed_message_may_not_inflate_beyond_the_limit(served: Served) -> None:
    bomb = bytes(LARGEST_MESSAGE_BYTES + 1)
    code, details = await failure(method(await served.channel(), "Echo")(bomb, compression=grpc.Compression.Gzip))
    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "message larger than max" in details


async def test_pings_of_a_client_are_answered_with_and_without_waiting_calls(serve: Serve) -> None:
    served = await serve("http2")  # grpcio's server accepts one ping per second, and only while a call waits
    channel = await served.channel(
        ("grpc.keepalive_time_ms", 1000),
        ("grpc.keepalive_timeout_ms", 1000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    )
    call = method(channel, "Slow")(b"hi")
    await asyncio.sleep(3.5)
    served.servicer.proceed.set()
    assert await call == b"hi"
    await asyncio.sleep(3.5)
    assert await method(channel, "Echo")(b"hi") == b"hi"
    counters = served.server.counters
    assert (counters.connections_opened, counters.connections, counters.floods) == (1, 1, 0)


async def test_a_unix_socket_is_served(serve: Serve, folder: Path) -> None:
    for transport in ("http2", "grpcio"):
        address = f"unix:{folder / transport}"
        served = await serve(transport, address)

        async def peer(request: bytes, context: Any) -> bytes:  # grpcio's context must not be used after the call
            return bytes(context.peer(), "ascii")

        served.servicer.behavior = peer
        async with grpc.aio.insecure_channel(address) as channel:
            assert (await method(channel, "Run")(b"hi", timeout=20)).startswith(b"unix:")


async def test_ipv6_is_served(serve: Serve) -> None:
    for transport in ("http2", "grpcio"):
        served = await serve(transport, "[::1]:0")
        peers = []

        async def behavior(request: bytes, context: Any) -> bytes:
            peers.append(context.peer())  # noqa: B023
            return request

        served.servicer.behavior = behavior
        async with grpc.aio.insecure_channel(f"[::1]:{served.port}") as channel:
            assert await method(channel, "Run")(b"hi", timeout=20) == b"hi"
        assert peers[0].startswith("ipv6:%5B::1%5D:")


async def test_all_addresses_of_both_families_are_served(serve: Serve) -> None:
    served = await serve("http2", "[::]:0")
    for address in ("127.0.0.1", "[::1]"):
        async with grpc.aio.insecure_channel(f"{address}:{served.port}") as channel:
            assert await method(channel, "Echo")(b"hi", timeout=20) == b"hi"
