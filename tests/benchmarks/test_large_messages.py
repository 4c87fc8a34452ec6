"""The time of messages of 4 MB, up and down, on our transport and on grpcio's, with grpcio's client."""

import asyncio
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import grpc
import pytest
import uvloop

from libs.server.settings import LARGEST_MESSAGE_BYTES
from ops.process import Server, is_free, spawn
from tests.benchmarks.bulk import SERVICE
from tests.benchmarks.conftest import Report

MESSAGE_BYTES = 4 * 1024 * 1024
MOST = 1.5  # as a multiple of grpcio's time
TURNS = 41
TITLE = "Messages of 4 MB, in ms"
OPTIONS = (
    ("grpc.max_receive_message_length", LARGEST_MESSAGE_BYTES),
    ("grpc.max_send_message_length", LARGEST_MESSAGE_BYTES),
)


class Bulk(Server):
    """The server, on a transport."""

    def __init__(self, transport: str, log: Path) -> None:
        """Don't start it yet."""
        super().__init__(transport, None, log)

    def spawn(self) -> subprocess.Popen[bytes]:
        """Start it with this Python."""
        command = [sys.executable, "-m", "tests.benchmarks.bulk", str(self.port), self.name]
        return spawn(command, self.log, self.stop_signal)

    def is_ready(self) -> bool:
        """Return whether it listens."""
        return not is_free(self.port)


@pytest.mark.parametrize("in_flight", [1, 4])
@pytest.mark.parametrize("way", ["Upload", "Download"])
def test_messages_of_4_mb_take_at_most_1_5_times_as_long_as_with_grpcio(
    tmp_path: Path, report: Report, way: str, in_flight: int
) -> None:
    request = bytes(MESSAGE_BYTES) if way == "Upload" else str(MESSAGE_BYTES).encode()
    with ExitStack() as stack:
        servers = [stack.enter_context(Bulk(name, tmp_path / name)) for name in ("http2", "grpcio")]

        async def measure() -> dict[str, list[float]]:
            took = defaultdict(list)
            async with AsyncExitStack() as channels:
                calls: dict[str, Any] = {}
                for server in servers:
                    channel = grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", options=OPTIONS)
                    await channels.enter_async_context(channel)
                    calls[server.name] = channel.unary_unary(f"/{SERVICE}/{way}")
                for turn in range(TURNS):
                    for name, call in calls.items():
                        began = time.perf_counter()
                        await asyncio.gather(*(call(request, timeout=30) for _ in range(in_flight)))
                        if turn:  # the first round opens the windows
                            took[name].append(1000 * (time.perf_counter() - began))
            return took

        took = {name: median(times) for name, times in uvloop.run(measure()).items()}
    ratio = took["http2"] / took["grpcio"]
    print(f"{way}, {in_flight} in flight: {took['http2']:.1f} ms, grpcio {took['grpcio']:.1f} ms: {ratio:.2f}")
    cells = {name: f"{milliseconds:.1f}" for name, milliseconds in took.items()}
    report.add(TITLE, f"{way.lower()}, {in_flight} in flight", **cells, ratio=f"{ratio:.2f}")
    assert ratio <= MOST
