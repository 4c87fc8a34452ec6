"""Input that is not HTTP/2, that breaks its rules, or that follows them and only costs CPU."""

import asyncio
import random
import struct

import pytest

from tests.http2_abuse import attacker as http2
from tests.http2_abuse.attacker import MAGIC, Peer, call, data, frame, headers, message, reset, settings, streams
from tests.http2_abuse.conftest import Target, until

FLOOD_SECONDS = 0.7
BEGIN = MAGIC + settings()
PROTOCOL_ERRORS = [http2.PROTOCOL_ERROR]


async def test_random_bytes_and_other_protocols_end_their_connections(target: Target) -> None:
    rng = random.Random(1)
    others = [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /abuse/Echo HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(200),
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"\0" * 100,
        MAGIC + b"GET / HTTP/1.1\r\n\r\n",
        MAGIC + frame(http2.HEADERS, 5, 1, http2.ECHO),
    ]
    before = (await target.state())["protocol_errors"]

    async def attack() -> None:
        for first in [*others, *(rng.randbytes(rng.randrange(24, 20_000)) for _ in range(100))]:
            async with await Peer.connect(target.port, first) as peer:
                await peer.closed(1)
        mixed = [BEGIN + rng.randbytes(rng.randrange(9, 20_000)) for _ in range(200)]
        for first in mixed:
            await Peer.connect(target.port, first)
        await asyncio.sleep(0.2)

    state = await target.endures(attack)
    assert state["protocol_errors"] >= before + len(others) + 100


WRONG = {
    "DATA before HEADERS": data(1, message(b"x")),
    "DATA on stream 0": data(0, b"x"),
    "HEADERS on an even stream": headers(2),
    "HEADERS on stream 0": headers(0),
    "HEADERS that depend on themselves": frame(
        http2.HEADERS, 4 | http2.PRIORITIZED, 1, struct.pack(">IB", 1, 0) + http2.ECHO
    ),
    "CONTINUATION without HEADERS": frame(http2.CONTINUATION, 4, 1, http2.ECHO),
    "another frame between HEADERS and CONTINUATION": frame(http2.HEADERS, 0, 1, http2.ECHO)
    + frame(http2.PING, payload=b"12345678"),
    "DATA after the end": call(1, http2.SLOW, b"200") + data(1, b"x"),
    "HPACK that ends in the middle": frame(http2.HEADERS, 4, 1, http2.ECHO[:-3]),
    "an index that HPACK's table lacks": frame(http2.HEADERS, 4, 1, b"\xff\xff\xff\x0f"),
    "a table larger than allowed": frame(http2.HEADERS, 4, 1, b"\x3f\xff\xff\x0f" + http2.ECHO),
    "SETTINGS of five bytes": frame(http2.SETTINGS, payload=b"12345"),
    "SETTINGS on a stream": frame(http2.SETTINGS, 0, 1),
    "an unsolicited SETTINGS acknowledgement": 3 * frame(http2.SETTINGS, http2.ACK),
    "SETTINGS acknowledged with a payload": frame(http2.SETTINGS, http2.ACK, payload=b"123456"),
    "a window that is too large": settings((http2.INITIAL_WINDOW_SIZE, 2**32 - 1)),
    "frames that are too small": settings((5, 1)),
    "push by a client": settings((2, 7)),
    "a window that overflows": http2.window_update(0, 2**31 - 1),
    "a window that grows by nothing": http2.window_update(0, 0),
    "WINDOW_UPDATE of three bytes": frame(http2.WINDOW_UPDATE, payload=b"123"),
    "WINDOW_UPDATE of an idle stream": http2.window_update(7, 1),
    "RST_STREAM of an idle stream": reset(9),
    "RST_STREAM on stream 0": reset(0),
    "a window of a stream that overflows": headers(1) + http2.window_update(1, 2**31 - 1),
    "a window of a stream that grows by nothing": headers(1) + http2.window_update(1, 0),
    "PING of seven bytes": frame(http2.PING, payload=b"1234567"),
    "PING on a stream": frame(http2.PING, 0, 1, b"12345678"),
    "PUSH_PROMISE": headers(1) + frame(http2.PUSH_PROMISE, 4, 1, struct.pack(">I", 2) + http2.ECHO),
    "GOAWAY on a stream": frame(http2.GOAWAY, 0, 1, bytes(8)),
    "padding longer than DATA": headers(1) + frame(http2.DATA, http2.PADDED, 1, b"\xff" + b"x" * 10),
    "padding longer than HEADERS": frame(http2.HEADERS, 4 | http2.PADDED, 1, b"\xff" + http2.ECHO),
    "a frame longer than allowed": headers(1) + data(1, b"x" * (http2.LARGEST_FRAME + 1)),
}


async def test_frames_that_break_a_rule_end_their_connection(target: Target) -> None:
    async def attack() -> None:
        for name, frames in WRONG.items():
            async with await Peer.connect(target.port, BEGIN + frames, keeps=True) as peer:
                await peer.closed(2)
            assert any(peer.goaways()), name

    await target.endures(attack)


ODD = {
    "HEADERS twice": headers(1) + headers(1),
    "HEADERS on an old stream": call(5) + call(3),
    "a call on a stream that was reset": headers(1) + reset(1) + data(1, message(b"x"), end=True),
    "headers without a path": headers(1, http2.literal(b":method", b"POST")),
    "a name in capitals": headers(1, http2.ECHO + http2.literal(b"X-Name", b"1")),
    "a pseudo-header after the others": headers(1, http2.ECHO + http2.literal(b":path", b"/")),
    "connection: close": headers(1, http2.ECHO + http2.literal(b"connection", b"close")),
    "a value with a line's end": headers(1, http2.ECHO + http2.literal(b"x", b"a\r\nb")),
    "CONNECT": headers(1, http2.literal(b":method", b"CONNECT") + http2.literal(b":authority", b"x")),
    "a length that is wrong": headers(1, http2.head("Echo", (b"content-length", b"3")))
    + data(1, message(b"x"), end=True),
    "trailers that are no end": headers(1) + headers(1, http2.literal(b"x", b"y")),
    "a frame of an unknown kind": frame(0xFA, 0xFF, 1, b"x" * 100),
    "an unsolicited PING acknowledgement": frame(http2.PING, http2.ACK, payload=b"shutdown"),
    "only padding": headers(1) + frame(http2.DATA, http2.PADDED, 1, b"\x09" + b"x" * 9),
}


def ends(peer: Peer, stream: int) -> bool:
    """Return whether the server has answered on a stream."""
    return any(found.stream == stream and found.flags & http2.END_STREAM for found in peer.frames())


async def test_a_stream_error_does_not_affect_other_calls_of_the_connection(target: Target) -> None:
    async def attack() -> None:
        for name, frames in ODD.items():
            async with await Peer.connect(target.port, BEGIN + frames, keeps=True) as peer:
                await peer.send(call(99))
                await until(lambda: ends(peer, 99) or peer.is_closed)
                assert ends(peer, 99), name

    await target.endures(attack)


FLOODS = {
    "PING": frame(http2.PING, payload=b"12345678"),
    "PING acknowledged": frame(http2.PING, http2.ACK, payload=b"shutdown"),
    "SETTINGS": settings(),
    "SETTINGS with windows": settings(*[(http2.INITIAL_WINDOW_SIZE, 65_535 + n % 2) for n in range(30)]),
    "PRIORITY": frame(http2.PRIORITY, 0, 1, struct.pack(">IB", 0, 1)),
    "PRIORITY_UPDATE": frame(0x10, 0, 0, struct.pack(">I", 1) + b"u=1"),
    "empty DATA": data(1, b""),
    "padding": frame(http2.DATA, http2.PADDED, 1, b"\xff" + bytes(255)),
    "WINDOW_UPDATE": http2.window_update(0, 1),
    "WINDOW_UPDATE of a stream": http2.window_update(1, 1),
    "WINDOW_UPDATE of a closed stream": http2.window_update(1, 1),
    "RST_STREAM of a closed stream": reset(1),
    "unknown frames": frame(0xFA, 0, 0, b""),
}


@pytest.mark.parametrize("name", FLOODS)
async def test_a_flood_of_control_frames_costs_little(target: Target, name: str) -> None:
    one = FLOODS[name]
    opened = b"".join(headers(stream, http2.TALK) for stream in streams(900))
    opened += reset(1) if "closed" in name else b""
    flood = one * (64 * 1024 // len(one))

    async def attack() -> None:
        end = asyncio.get_running_loop().time() + FLOOD_SECONDS
        while asyncio.get_running_loop().time() < end:
            async with await Peer.connect(target.port, BEGIN + opened) as peer:
                while await peer.send(flood, seconds=FLOOD_SECONDS) and asyncio.get_running_loop().time() < end:
                    pass

    await target.endures(attack)


async def test_unread_acknowledgements_end_their_connection(target: Target) -> None:
    ping, update = frame(http2.PING, payload=b"12345678"), settings()

    async def attack() -> None:
        async with await Peer.connect(target.port, reads=False) as peer:
            await peer.send(*[(ping + update) * 2000] * 40, seconds=3)

    await target.endures(attack)
