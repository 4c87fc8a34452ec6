"""Many, large, slow and deceptive calls."""

import asyncio
import gzip
import zlib
from typing import Any

import grpc
import pytest

from tests.http2_abuse import attacker as http2
from tests.http2_abuse.attacker import (
    LARGE,
    MAGIC,
    SLOW,
    STREAM,
    TALK,
    Peer,
    Uploader,
    call,
    data,
    frame,
    head,
    headers,
    literal,
    message,
    reset,
    settings,
    streams,
    window_update,
)
from tests.http2_abuse.conftest import MIB, Target, until

BEGIN = MAGIC + settings()
NO_WINDOW = MAGIC + settings((http2.INITIAL_WINDOW_SIZE, 0))
WIDE = MAGIC + settings((http2.INITIAL_WINDOW_SIZE, http2.LARGEST_WINDOW)) + window_update(0, 2**31 - 2**16)
GZIP = (b"grpc-encoding", b"gzip")


def large_calls(count: int, size: int) -> bytes:
    return b"".join(call(stream, LARGE, b"%d" % size) for stream in streams(count))


@pytest.mark.parametrize("begin", [NO_WINDOW, WIDE], ids=["no window", "no reads"])
async def test_unread_replies_are_bounded_and_their_client_is_disconnected(target: Target, begin: bytes) -> None:
    async def attack() -> None:
        for _ in range(20):
            await Peer.connect(target.port, begin + large_calls(200, MIB // 4), reads=begin == NO_WINDOW)
        for _ in range(10):
            await asyncio.sleep(0.1)
            assert (await target.state())["sending"] <= 48 * MIB
        await until(lambda: target.is_so(lambda state: not state["sending"]), 6)

    before = await target.state()
    state = await target.endures(attack)
    assert state["connections_timed_out"] > before["connections_timed_out"]
    assert state["replies_refused"] > before["replies_refused"]


async def test_a_reader_that_takes_a_byte_at_a_time_is_disconnected(target: Target) -> None:
    async def attack() -> None:
        peers = [await Peer.connect(target.port, NO_WINDOW + large_calls(3, MIB)) for _ in range(8)]
        while not all(peer.is_closed for peer in peers):
            for peer in peers:
                if not peer.is_closed:
                    peer.transport.write(window_update(1, 1))
            await asyncio.sleep(0.05)

    await target.endures(attack)


async def test_streams_that_are_not_read_wait(target: Target) -> None:
    async def attack() -> None:
        calls = b"".join(call(stream, STREAM, b"1000 20000") for stream in streams(100))
        for _ in range(10):
            await Peer.connect(target.port, NO_WINDOW + calls)
        for _ in range(10):
            await asyncio.sleep(0.1)
            assert (await target.state())["sending"] <= 48 * MIB

    await target.endures(attack)


async def test_a_reader_that_cancels_its_calls_is_not_stalled(target: Target) -> None:
    async def attack() -> None:
        async with await Peer.connect(target.port, NO_WINDOW + large_calls(10, MIB)) as peer:
            await until(lambda: target.is_so(lambda state: state["sending"] > 9 * MIB))
            await peer.send(b"".join(reset(stream) for stream in streams(10)))
            await until(lambda: target.is_so(lambda state: not state["sending"]))
            await asyncio.sleep(4)
            assert not peer.is_closed

    await target.endures(attack)


async def test_rapid_resets_end_their_connections(target: Target) -> None:
    codes: list[int] = []

    async def attack() -> None:
        begin = BEGIN

        async def one(count: int) -> None:
            async with await Peer.connect(target.port, begin, keeps=True) as peer:
                sent = 0
                while sent < count and not peer.is_closed:
                    some = [call(stream, SLOW, b"1000") + reset(stream) for stream in streams(500, 2 * sent + 1)]
                    await peer.send(b"".join(some), seconds=2)
                    sent += 500
                await peer.closed(5)
                codes.extend(peer.goaways())

        await asyncio.gather(*(one(10_000) for _ in range(10)))

    before = await target.state()
    state = await target.endures(attack)
    assert state["floods"] >= before["floods"] + 10
    assert state["streams"] - before["streams"] < 3 * 100_000
    assert any(codes)


async def test_resets_provoked_by_a_client_end_its_connection(target: Target) -> None:
    """MadeYouReset, CVE-2025-8671: the client makes the server reset streams, and opens more."""

    async def attack() -> None:
        async with await Peer.connect(target.port) as peer:
            for first in range(0, 20_000, 500):
                some = (
                    headers(stream, SLOW)
                    + data(stream, message(b"1000"), end=False)
                    + frame(http2.HEADERS, 4, stream, literal(b"x", b"y"))
                    for stream in streams(500, 2 * first + 1)
                )
                if not await peer.send(b"".join(some), seconds=2):
                    break
            await peer.closed(5)

    before = await target.state()
    state = await target.endures(attack)
    assert state["floods"] > before["floods"]


def bomb(size: int, times: int = 1) -> bytes:
    """Return gzipped zeros."""
    packed = bytes(size)
    for _ in range(times):
        packed = gzip.compress(packed, 9)
    return packed


@pytest.mark.parametrize("size", [15 * MIB, 256 * MIB], ids=["just allowed", "too large"])
async def test_gzip_bombs_take_little_memory(target: Target, size: int) -> None:
    packing = zlib.compressobj(9, wbits=31)
    packed = b"".join([packing.compress(bytes(MIB)) for _ in range(size // MIB)]) + packing.flush()
    body = message(packed[: 15 * MIB], compressed=True)
    block = head("Sink", GZIP)

    async def attack() -> None:
        calls = []
        for stream in streams(100):
            parts = [body[place : place + 16384] for place in range(0, min(len(body), 64 * 1024), 16384)]
            calls.append(headers(stream, block))
            calls += [data(stream, part, end=part is parts[-1] and len(body) <= 64 * 1024) for part in parts]
        for _ in range(2):
            await Peer.connect(target.port, BEGIN + b"".join(calls))
        await asyncio.sleep(2)

    await target.endures(attack)


async def test_many_small_compressed_messages_are_answered(target: Target) -> None:
    block, body = head("Echo", GZIP), message(bomb(1000), compressed=True)

    async def attack() -> None:
        calls = b"".join(headers(stream, block) + data(stream, body, end=True) for stream in streams(900))
        peers = [await Peer.connect(target.port, WIDE + calls) for _ in range(5)]
        await until(lambda: all(peer.received >= 900 * 1000 for peer in peers))

    await target.endures(attack)


async def upload(target: Target, connections: int, each: int) -> None:
    """Send requests of 15 MB without their last bytes, as fast as the server reads."""
    body = (b"\0" + (15 * MIB).to_bytes(4, "big")).ljust(15 * MIB, b"x")
    peers = [await Uploader.connect(target.port, b"") for _ in range(connections)]
    for peer in peers:
        for _ in range(each):
            peer.upload("/abuse/Sink", body)
    await until(lambda: not any(peer.unsent for peer in peers), 10)


async def test_unfinished_uploads_are_bounded(target: Target) -> None:
    async def attack() -> None:
        await upload(target, 10, 6)
        assert (await target.state())["receiving"] <= 48 * MIB
        await asyncio.sleep(0.5)

    before = await target.state()
    state = await target.endures(attack)
    assert state["requests_refused"] >= before["requests_refused"] + 56


async def test_an_upload_has_room_beside_unfinished_ones(target: Target) -> None:
    async def attack() -> None:
        await upload(target, 2, 3)
        async with target.channel() as channel:
            sink: Any = channel.unary_unary("/abuse/Sink")
            for size in (2_000, 20_000, 100_000, MIB, 3 * MIB):
                assert await sink(bytes(size), timeout=5) == b"%d" % size

    await target.endures(attack)


async def test_a_prefix_that_announces_too_much_is_refused_at_once(target: Target) -> None:
    async def attack() -> None:
        async with await Peer.connect(target.port, keeps=True) as peer:
            await peer.send(
                b"".join(headers(stream) + data(stream, b"\0\xff\xff\xff\xff" + b"x") for stream in streams(900))
            )
            await until(lambda: peer.resets() == 900)

    await target.endures(attack)


async def test_a_request_sent_byte_by_byte_times_out(target: Target) -> None:
    async def attack() -> None:
        async with await Peer.connect(target.port, keeps=True) as peer:
            await peer.send(b"".join(headers(stream) for stream in streams(900)))
            body, place = message(bytes(10_000)), 0
            async with asyncio.timeout(8):
                while peer.resets() < 900:
                    await peer.send(b"".join(data(stream, body[place : place + 1]) for stream in streams(900)))
                    place += 1
                    await asyncio.sleep(0.2)

    await target.endures(attack)


async def test_empty_messages_of_a_stream_are_bounded(target: Target) -> None:
    async def attack() -> None:
        empty = message(b"") * 3000
        async with await Peer.connect(target.port) as peer:
            await peer.send(headers(1, TALK), *[data(1, empty)] * 5000, seconds=2)

    await target.endures(attack)


async def test_thousands_of_requests_in_one_write_delay_no_other_call(target: Target) -> None:
    calls = b"".join(call(stream) for stream in streams(50_000))

    async def attack() -> None:
        async with await Peer.connect(target.port, BEGIN) as peer:
            for place in range(0, len(calls), MIB):
                await peer.send(calls[place : place + MIB], seconds=5)
            await asyncio.sleep(0.2)

    await target.endures(attack)


async def test_streams_that_never_end_are_bounded(target: Target) -> None:
    big = http2.ECHO + b"".join(literal(b"x-%d" % number, b"y" * 3000) for number in range(4))

    async def attack() -> None:
        for _ in range(10):
            peer = await Peer.connect(target.port)
            for first in range(1, 6000, 200):
                await peer.send(b"".join(headers(stream, big) for stream in streams(100, first)), seconds=1)
        state = await target.state()
        assert state["receiving"] <= 48 * MIB
        assert state["calls"] <= 4000

    await target.endures(attack)


async def test_deadlines_of_any_length_are_kept(target: Target) -> None:
    async def attack() -> None:
        for timeout in (b"1n", b"0n", b"99999999H", b"3599S", b"1u"):
            block = head("Slow", (b"grpc-timeout", timeout))
            calls = b"".join(call(stream, block, b"100") for stream in streams(900))
            for _ in range(10):
                await Peer.connect(target.port, BEGIN + calls)
            await asyncio.sleep(0.3)
            Peer.drop_all()

    before = await target.state()
    state = await target.endures(attack)
    assert state["deadlines_exceeded"] > before["deadlines_exceeded"] + 1000


BLOCKS = {
    "larger than a block may be": literal(b"x", b"y" * 16_000) * 5,
    "many that are tiny": literal(b"x", b"") * 5000,
    "one that is named often": literal(b"x", b"y" * 4000, 0x40) + b"\xbe" * 16_000,
}


def header_frames(block: bytes) -> bytes:
    parts = [block[place : place + http2.LARGEST_FRAME] for place in range(0, len(block), http2.LARGEST_FRAME)]
    ends = [0] * (len(parts) - 1) + [http2.END_HEADERS]
    more = [frame(http2.CONTINUATION, end, 1, part) for end, part in zip(ends[1:], parts[1:], strict=True)]
    return frame(http2.HEADERS, http2.END_STREAM | ends[0], 1, parts[0]) + b"".join(more)


@pytest.mark.parametrize("kind", [*BLOCKS, "without end"])
async def test_header_blocks_are_bounded(target: Target, kind: str) -> None:
    endless = frame(http2.HEADERS, 0, 1, http2.ECHO) + frame(http2.CONTINUATION, 0, 1, b"") * 1000
    sent = header_frames(http2.ECHO + BLOCKS[kind]) if kind in BLOCKS else endless

    async def attack() -> None:
        for _ in range(100):
            async with await Peer.connect(target.port) as peer:
                await peer.send(sent, seconds=2)
                await peer.closed(2)

    before = await target.state()
    state = await target.endures(attack)
    assert state["floods"] >= before["floods"] + 100


async def test_metadata_that_is_too_large_ends_only_its_call(target: Target) -> None:
    async with target.channel() as channel:
        echo: Any = channel.unary_unary("/abuse/Echo")
        for _ in range(3):
            call = echo(b"x", metadata=[("x", "y" * 20_000)], timeout=5)
            assert await call.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert await echo(b"x", metadata=[("x", "y" * 16_000)], timeout=5) == b"x"


async def test_metadata_held_by_calls_is_bounded(target: Target) -> None:
    """A few bytes name 16 KB that HPACK's table holds; a header besides makes the metadata of each call different."""
    body = data(1, message(b"3000"), end=True)[9:]

    def one(stream: int) -> bytes:
        block = SLOW + literal(b"n", b"%d" % stream) + b"\xbe" * 4
        return headers(stream, block) + frame(http2.DATA, 1, stream, body)

    async def attack() -> None:
        first = call(1, SLOW + literal(b"x", b"y" * 3900, 0x40), b"3000")
        for _ in range(10):
            await Peer.connect(target.port, BEGIN + first + b"".join(one(stream) for stream in streams(900, 3)))
        await asyncio.sleep(1)
        assert (await target.state())["receiving"] <= 48 * MIB

    await target.endures(attack)


async def test_largest_messages_both_ways_delay_no_other_call(target: Target) -> None:
    body = bytes(16 * MIB - 1)

    async def attack() -> None:
        options = [("grpc.max_receive_message_length", -1)]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{target.port}", options) as channel:
            echo: Any = channel.unary_unary("/abuse/Echo")
            for _ in range(5):
                assert len(await echo(body, timeout=5)) == len(body)

    await target.endures(attack)
