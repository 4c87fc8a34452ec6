"""Random requests to every RPC: no INTERNAL, no UNKNOWN, no call that takes too long."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import pytest

from tests.fuzz.driver import OPTIONS, Fuzzer, targets
from tests.hostile import valid_requests
from tests.processes import processes, stubs
from tests.stack import SECRET, salon

PER_RPC = 250  # `make fuzz` sends more


@pytest.fixture
async def fuzzer(
    database_url: str, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Fuzzer]:
    """A fuzzer of the three services, in processes as `make fuzz` starts them."""
    monkeypatch.setenv("WHATSAPP_APP_SECRET", SECRET)
    with processes(database_url, redis_url, tmp_path) as running:
        async with AsyncExitStack() as exits:
            stack = await exits.enter_async_context(stubs(running))
            valid = await valid_requests(stack)
            for other in ("salon-2", "salon-3"):
                await salon(stack, other)
            channels = {
                name: await exits.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{each.port}", OPTIONS))
                for name, each in running.services.items()
            }
            yield Fuzzer(targets(channels, valid), seed=1)


async def test_no_random_request_breaks_a_service(fuzzer: Fuzzer) -> None:
    await fuzzer.run(PER_RPC * len(fuzzer.targets), in_flight=16)
    assert "\n".join(map(str, fuzzer.findings[:10])) == ""
    for target in fuzzer.targets:
        assert target.codes.total() == PER_RPC
        assert target.codes["OK"] and target.codes["INVALID_ARGUMENT"], (target.name, target.codes)
