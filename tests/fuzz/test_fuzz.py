"""Random requests to every RPC: no INTERNAL, no UNKNOWN, no call that takes too long, no data of others' salons."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from random import Random

import grpc
import pytest

from tests.callers import Issuer, bearer
from tests.fuzz import callers as limited
from tests.fuzz.driver import OPTIONS, Fuzzer, targets
from tests.hostile import valid_requests
from tests.processes import Processes, processes, stubs
from tests.stack import SECRET, Connect

PER_RPC = 250  # `make fuzz` sends more
PER_RPC_WITH_CALLERS = 50
SEED = 1


@asynccontextmanager
async def fuzzing(
    running: Processes, connect: Connect = grpc.aio.insecure_channel, callers: limited.Callers | None = None
) -> AsyncIterator[Fuzzer]:
    """Fill the database, and yield a fuzzer of the three services."""
    async with AsyncExitStack() as exits:
        stack = await exits.enter_async_context(stubs(running, connect))
        valid = await valid_requests(stack)
        await limited.plant(stack)
        channels = {
            name: await exits.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{each.port}", OPTIONS))
            for name, each in running.services.items()
        }
        yield Fuzzer(targets(channels, valid), SEED, callers)


async def test_no_random_request_breaks_a_service(
    database_url: str, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHATSAPP_APP_SECRET", SECRET)
    with processes(database_url, redis_url, tmp_path) as running:
        async with fuzzing(running) as fuzzer:
            await fuzzer.run(PER_RPC * len(fuzzer.targets), in_flight=16)
    assert "\n".join(map(str, fuzzer.findings[:10])) == ""
    for target in fuzzer.targets:
        assert target.codes.total() == PER_RPC
        assert target.codes["OK"] and target.codes["INVALID_ARGUMENT"], (target.name, target.codes)


async def test_no_random_request_gets_a_caller_beyond_its_rights(
    database_url: str, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHATSAPP_APP_SECRET", SECRET)
    issuer = Issuer()
    callers = limited.Callers(issuer, Random(SEED))
    with processes(database_url, redis_url, tmp_path, limited.settings(tmp_path, issuer)) as running:
        async with fuzzing(running, bearer(issuer.token()), callers) as fuzzer:
            await fuzzer.run(PER_RPC_WITH_CALLERS * len(fuzzer.targets), in_flight=16)
    assert "\n".join(map(str, fuzzer.findings[:10])) == ""
    assert callers.marked["admin"]
    assert callers.answered["owner"] and callers.answered["reader"]
