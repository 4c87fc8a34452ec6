"""Every kind of method, with messages one by one and faster than the other side reads them."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from tests.http2.conftest import Served, method
from tests.http2.raw import Raw, headers, message
from tests.http2.servicer import SERVICE

MESSAGE_BYTES = 32 * 1024
HELD_BYTES = 2 * 1024 * 1024  # upper bound of what may be buffered for a stream that the other side does not read


async def several(*messages: bytes) -> AsyncIterator[bytes]:
    for each in messages:
        yield each


@pytest.mark.parametrize("name", ["Stream", "Write"])
async def test_server_streaming_sends_each_message(served: Served, name: str) -> None:
    call = method(await served.channel(), name)(b"3 2")
    assert [reply async for reply in call] == [b"\0\0", b"\1\1", b"\2\2"]
    assert await call.code() == grpc.StatusCode.OK


@pytest.mark.parametrize("name", ["Stream", "Write"])
async def test_a_stream_of_no_messages_is_ok(served: Served, name: str) -> None:
    call = method(await served.channel(), name)(b"0")
    assert [reply async for reply in call] == []
    assert await call.code() == grpc.StatusCode.OK


async def test_client_streaming_takes_each_message(served: Served) -> None:
    channel = await served.channel()
    assert await method(channel, "Collect")(several(b"a", b"", b"bc")) == b"3 abc"
    assert await method(channel, "Collect")(several()) == b"0 "


@pytest.mark.parametrize("name", ["Chat", "Talk"])
async def test_bidi_answers_each_message_before_the_next_is_sent(served: Served, name: str) -> None:
    call = method(await served.channel(), name)()
    async with asyncio.timeout(20):
        for text in (b"a", b"", b"b" * 100_000):
            await call.write(text)
            assert await call.read() == text
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
    assert await call.code() == grpc.StatusCode.OK


@pytest.mark.parametrize("name", ["Chat", "Talk"])
async def test_a_canceled_bidi_call_ends_its_handler(served: Served, name: str) -> None:
    call = method(await served.channel(), name)()
    await call.write(b"a")
    assert await call.read() == b"a"
    ended = asyncio.Event()
    served.servicer.context.add_done_callback(lambda context: ended.set())
    call.cancel()
    async with asyncio.timeout(10):
        await ended.wait()


async def test_a_stream_can_be_answered_before_it_has_ended(served: Served) -> None:
    async def behavior(request: Any, context: Any) -> None:
        await context.read()
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "enough")

    served.servicer.talking = behavior
    call = method(await served.channel(), "Discuss")()
    await call.write(b"a")
    async with asyncio.timeout(10):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call.read()
    assert (raised.value.code(), raised.value.details()) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "enough")


@pytest.mark.parametrize("name", ["Stream", "Write"])
async def test_a_slow_reader_pauses_the_handler_and_gets_all_messages(served: Served, name: str) -> None:
    count = 1000
    raw = await Raw.connect(served.port, window=2**16 - 1)
    served.exits.callback(raw.close)
    stream, answer = raw.begin(headers(f"/{SERVICE}/{name}".encode()), end=False)
    raw.data(stream, message(b"%d %d" % (count, MESSAGE_BYTES)), end=True)
    written = await settled(lambda: served.servicer.written)
    assert 0 < written * MESSAGE_BYTES < HELD_BYTES
    if served.transport == "http2":
        assert served.server.counters.sending < HELD_BYTES
    raw.open_windows()
    async with asyncio.timeout(60):
        await answer.done.wait()
    assert len(answer.body) == count * (MESSAGE_BYTES + 5)
    assert answer.status == 0
    if served.transport == "http2":
        assert served.server.counters.sending == 0


async def test_a_handler_that_does_not_read_stops_its_client(served: Served) -> None:
    taken: list[int] = []

    async def behavior(request: Any, context: Any) -> None:
        await served.servicer.proceed.wait()
        while (read := await context.read()) is not grpc.aio.EOF:
            taken.append(len(read))

    served.servicer.talking = behavior
    call = method(await served.channel(), "Discuss")()
    sent = 0

    async def send() -> None:
        nonlocal sent
        for _ in range(1000):
            await call.write(bytes(MESSAGE_BYTES))
            sent += 1
        await call.done_writing()

    sending = asyncio.create_task(send())
    # The client itself may buffer one window.
    assert 0 < await settled(lambda: sent) * MESSAGE_BYTES < 4 * HELD_BYTES
    served.servicer.proceed.set()
    async with asyncio.timeout(60):
        await sending
        assert await call.read() is grpc.aio.EOF
    assert taken == [MESSAGE_BYTES] * 1000
    if served.transport == "http2":
        assert served.server.counters.receiving == 0


async def settled(count: Any) -> int:
    """Return a number once it has stayed the same for a while."""
    before = -1
    async with asyncio.timeout(60):
        while (now := count()) != before or not now:
            before = now
            await asyncio.sleep(0.3)
    return int(now)
