"""A server that stops: calls under way end, new calls are refused, and nothing waits forever."""

import asyncio
import time
from contextlib import suppress
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from libs.http2 import Limits, Server
from libs.server.health import HealthServicer
from libs.server.settings import ServerSettings
from libs.server.transport import make_transport
from tests.http2.conftest import TRANSPORTS, Serve, Served, method
from tests.http2.raw import Answer, Raw, Request, headers, message
from tests.http2.servicer import SERVICE, Servicer
from tests.load import until

LAST_STREAM = 2**31 - 1
SECONDS = 20


def request(name: str) -> Request:
    return Request(headers(f"/{SERVICE}/{name}".encode()), (message(b"hi"),))


async def begun(served: Served, raw: Raw) -> "asyncio.Task[Answer]":
    """Call a method that waits for `proceed`; return once its handler runs."""
    call = asyncio.create_task(raw.call(request("Slow")))
    await served.servicer.begun.wait()
    return call


async def goaways(raw: Raw, count: int) -> list[tuple[int, int]]:
    async with asyncio.timeout(SECONDS):
        while len(raw.goaways) < count:
            await raw.change()
    return raw.goaways


async def test_goaway_is_sent_twice_and_running_calls_are_answered(served: Served) -> None:
    raw = await served.raw()
    call = await begun(served, raw)
    stop = asyncio.create_task(served.server.stop(SECONDS))
    assert await goaways(raw, 2) == [(LAST_STREAM, 0), (1, 0)]
    assert not raw.lost.is_set()
    served.servicer.proceed.set()
    async with asyncio.timeout(SECONDS):
        assert (await call).body == message(b"hi")
        await raw.lost.wait()
        await stop


async def test_a_call_sent_before_the_client_got_goaway_is_answered(serve: Serve) -> None:
    served = await serve("http2")  # grpcio's server refuses it, and clients retry
    raw = await served.raw()
    raw.answers_pings = False
    call = await begun(served, raw)
    stop = asyncio.create_task(served.server.stop(SECONDS))
    assert await goaways(raw, 1) == [(LAST_STREAM, 0)]
    async with asyncio.timeout(SECONDS):
        assert (await raw.call(request("Echo"))).body == message(b"hi")
    assert len(raw.goaways) == 1
    raw.answer_pings()
    assert await goaways(raw, 2) == [(LAST_STREAM, 0), (3, 0)]
    served.servicer.proceed.set()
    async with asyncio.timeout(SECONDS):
        assert (await call).status == 0
        await stop


async def test_a_client_that_answers_no_ping_still_gets_the_second_goaway(serve: Serve) -> None:
    served = await serve("http2")
    raw = await served.raw()
    raw.answers_pings = False
    call = await begun(served, raw)
    stop = asyncio.create_task(served.server.stop(SECONDS))
    assert await goaways(raw, 2) == [(LAST_STREAM, 0), (1, 0)]
    served.servicer.proceed.set()
    async with asyncio.timeout(SECONDS):
        assert (await call).status == 0
        await stop


async def test_a_call_after_the_final_goaway_does_not_begin(served: Served) -> None:
    raw = await served.raw()
    call = await begun(served, raw)
    stop = asyncio.create_task(served.server.stop(SECONDS))
    await goaways(raw, 2)
    late = asyncio.create_task(raw.call(request("Report")))
    served.servicer.proceed.set()
    async with asyncio.timeout(SECONDS):
        assert (await call).status == 0
        assert (await late).status is None
        await stop


async def test_a_call_beyond_the_grace_is_unavailable(served: Served) -> None:
    call = method(await served.channel(), "Slow")(b"")
    await served.servicer.begun.wait()
    began = time.monotonic()
    stop = asyncio.create_task(served.server.stop(0.5))
    async with asyncio.timeout(SECONDS):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call
        assert await served.servicer.ended.get() == "canceled"
        await stop
    assert raised.value.code() == grpc.StatusCode.UNAVAILABLE
    assert 0.4 < time.monotonic() - began < 5


async def test_an_idle_client_does_not_delay_the_stop(served: Served) -> None:
    channel = await served.channel()
    await method(channel, "Echo")(b"")
    raw = await served.raw()
    await raw.call(request("Echo"))
    began = time.monotonic()
    await served.server.stop(SECONDS)
    assert time.monotonic() - began < 5
    with pytest.raises(ConnectionRefusedError):
        await Raw.connect(served.port)


async def test_running_streams_end_or_are_unavailable(served: Served) -> None:
    call = method(await served.channel(), "Chat")()
    await call.write(b"a")
    assert await call.read() == b"a"
    stop = asyncio.create_task(served.server.stop(0.5))
    async with asyncio.timeout(SECONDS):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call.read()
        await stop
    assert raised.value.code() == grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_every_watch_of_the_health_ends_with_not_serving(transport: str) -> None:
    healths = HealthServicer()
    server: Any = make_transport(ServerSettings(server_transport=transport), [], share_port=False)
    health_pb2_grpc.add_HealthServicer_to_server(healths, server)
    port = server.listen("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        watches = [stub.Watch(health_pb2.HealthCheckRequest()) for _ in range(3)]
        for watch in watches:
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        began = time.monotonic()
        async with asyncio.timeout(SECONDS):
            await healths.drain()
            stop = asyncio.create_task(server.stop(SECONDS))
            for watch in watches:
                assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
                assert await watch.read() is grpc.aio.EOF
            await stop
        assert time.monotonic() - began < 5


@pytest.mark.parametrize("limit", ["max_connection_age", "max_connection_idle"])
async def test_an_old_or_idle_connection_is_closed_without_a_failed_call(limit: str) -> None:
    servicer = Servicer()
    server = Server([servicer.handler()], Limits(**{limit: 1.0}))  # type: ignore[arg-type]
    port = server.listen("127.0.0.1:0")
    await server.start()
    calls = 0
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            async with asyncio.timeout(20):
                while server.counters.connections_retired < 2:
                    retired = server.counters.connections_retired
                    assert await method(channel, "Echo")(b"hi") == b"hi"
                    calls += 1
                    if limit == "max_connection_idle":
                        await until(lambda: server.counters.connections_retired > retired)  # noqa: B023 - it is awaited
        assert server.counters.connections_opened >= server.counters.connections_retired
    finally:
        await server.stop(0)
    assert calls >= 2


async def test_calls_beyond_the_grace_of_an_old_connection_are_unavailable() -> None:
    servicer = Servicer()
    server = Server([servicer.handler()], Limits(max_connection_age=0.5, max_connection_age_grace=1))
    port = server.listen("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await method(channel, "Slow")(b"", timeout=SECONDS)
        assert raised.value.code() == grpc.StatusCode.UNAVAILABLE
    finally:
        with suppress(TimeoutError):
            await server.stop(0)
