"""Connections that are many, silent, half-open or dropped."""

import asyncio
import random
import socket
import ssl
from pathlib import Path

import pytest
import trustme

from tests.http2_abuse.attacker import MAGIC, SLOW, TALK, Peer, call, data, headers, message, settings, streams
from tests.http2_abuse.conftest import Target, Targets, until

BEGIN = MAGIC + settings()
STOPS = {
    "silent": b"",
    "half a preface": MAGIC[:10],
    "no SETTINGS": MAGIC,
    "half a frame": BEGIN + headers(1)[:20],
    "half a message": BEGIN + headers(1) + data(1, message(b"x" * 100)[:50]),
    "half a frame's payload": BEGIN + headers(1) + data(1, message(b"x" * 16_000))[:8000],
}


@pytest.mark.parametrize("name", list(STOPS)[:3])
async def test_a_connection_without_a_preface_is_closed(target: Target, name: str) -> None:
    async def attack() -> None:
        peers = [await Peer.connect(target.port, STOPS[name]) for _ in range(300)]
        for peer in peers:
            await peer.closed(5)

    before = await target.state()
    state = await target.endures(attack)
    assert state["connections_timed_out"] >= before["connections_timed_out"] + 300


@pytest.mark.parametrize("name", list(STOPS)[3:])
async def test_connections_that_stop_in_the_middle_cost_little(target: Target, name: str) -> None:
    async def attack() -> None:
        for _ in range(300):
            await Peer.connect(target.port, STOPS[name])
        await asyncio.sleep(0.3)

    await target.endures(attack)


async def test_more_connections_than_allowed_are_closed_and_the_rest_is_served(target: Target) -> None:
    async def attack() -> None:
        peers = [await Peer.connect(target.port, BEGIN + call(1)) for _ in range(900)]
        more = [await Peer.connect(target.port, BEGIN + call(1)) for _ in range(300)]
        await until(lambda: sum(peer.is_closed for peer in more) >= 200)
        assert not any(peer.is_closed for peer in peers)

    before = await target.state()
    # 900 connections stay open, so that there is room for the one that reads the state.
    state = await target.endures(attack)
    assert state["connections_refused"] >= before["connections_refused"] + 200


async def test_1000_connections_at_once_delay_no_other_call(target: Target) -> None:
    async def attack() -> None:
        sockets = []
        for _ in range(900):
            one = socket.socket()
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", target.port))
            sockets.append(one)
        await asyncio.sleep(0.3)
        for one in sockets:
            one.send(BEGIN + call(1))
        await asyncio.sleep(0.3)
        for one in sockets:
            one.close()

    await target.endures(attack)


UNDER_WAY = {"unary": lambda stream: call(stream, SLOW, b"60000"), "streams": lambda stream: headers(stream, TALK)}


@pytest.mark.parametrize("kind", UNDER_WAY)
async def test_connections_dropped_with_their_calls_leave_nothing(target: Target, kind: str) -> None:
    async def attack() -> None:
        calls = b"".join(map(UNDER_WAY[kind], streams(1000)))
        for _ in range(2):
            await Peer.connect(target.port, BEGIN + calls)
        await until(lambda: target.is_so(lambda state: state["tasks"] > 1900))

    await target.endures(attack)


async def test_a_half_closed_connection_ends_its_calls(target: Target) -> None:
    async def attack() -> None:
        for _ in range(20):
            calls = b"".join(call(stream, SLOW, b"60000") for stream in streams(50))
            async with await Peer.connect(target.port, BEGIN + calls) as peer:
                await asyncio.sleep(0.02)
                peer.transport.write_eof()
                await peer.closed(2)

    await target.endures(attack)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A certificate for localhost, its key, and its CA."""
    folder, authority = tmp_path_factory.mktemp("tls"), trustme.CA()
    issued = authority.issue_cert("localhost", "127.0.0.1")
    files = folder / "cert.pem", folder / "key.pem", folder / "ca.pem"
    issued.cert_chain_pems[0].write_to_path(files[0])
    issued.private_key_pem.write_to_path(files[1])
    authority.cert_pem.write_to_path(files[2])
    return files


async def test_tls_survives_bytes_that_are_not_tls(targets: Targets, certificate: tuple[Path, Path, Path]) -> None:
    target = targets(certificate, handshake_timeout=2)
    context = ssl.create_default_context(cafile=certificate[2])
    context.set_alpn_protocols(["h2"])
    old = ssl.create_default_context(cafile=certificate[2])
    old.set_alpn_protocols(["http/1.1"])
    rng = random.Random(1)

    async def attack() -> None:
        hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
        silent = [await Peer.connect(target.port, b"") for _ in range(200)]
        stalled = [await Peer.connect(target.port, hello + rng.randbytes(20)) for _ in range(200)]
        plain = [await Peer.connect(target.port, BEGIN + call(1)) for _ in range(100)]
        garbage = [await Peer.connect(target.port, hello + rng.randbytes(3000)) for _ in range(100)]
        other = [await Peer.connect(target.port, b"", tls=old) for _ in range(20)]
        for peer in [*plain, *garbage, *other, *silent, *stalled]:
            await peer.closed(5)
        for _ in range(20):
            async with await Peer.connect(target.port, BEGIN + call(1), tls=context) as peer:
                raw = peer.transport.get_extra_info("socket")
                await asyncio.sleep(0.01)
                sent = socket.socket(fileno=socket.dup(raw.fileno()))
                sent.send(b"\x16\x03\x03\x00\x04\0\0\0\0" + rng.randbytes(100))
                sent.close()
                await peer.closed(2)

    await target.endures(attack)
