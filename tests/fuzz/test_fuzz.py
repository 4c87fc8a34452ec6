"""Random requests to every RPC: no INTERNAL, no UNKNOWN, no call that takes too long, no data of others' salons."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.callers import Issuer
from tests.fuzz.callers import settings
from tests.fuzz.driver import fuzzing
from tests.processes import processes
from tests.stack import SECRET

PER_RPC = 250  # `make fuzz` sends more
PER_RPC_WITH_CALLERS = 50
SEED = 1


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the services take the webhooks of the tests."""
    monkeypatch.setenv("WHATSAPP_APP_SECRET", SECRET)


async def test_no_random_request_breaks_a_service(database_url: str, redis_url: str, tmp_path: Path) -> None:
    with processes(database_url, redis_url, tmp_path) as running:
        async with fuzzing(running, SEED) as fuzzer:
            await fuzzer.run(PER_RPC * len(fuzzer.targets), in_flight=16)
    assert "\n".join(map(str, fuzzer.findings[:10])) == ""
    for target in fuzzer.targets:
        assert target.codes.total() == PER_RPC
        assert target.codes["OK"] and target.codes["INVALID_ARGUMENT"], (target.name, target.codes)


async def test_no_random_request_gets_a_caller_beyond_its_rights(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    issuer = Issuer()
    with processes(database_url, redis_url, tmp_path, settings(tmp_path, issuer)) as running:
        async with fuzzing(running, SEED, issuer) as fuzzer:
            await fuzzer.run(PER_RPC_WITH_CALLERS * len(fuzzer.targets), in_flight=16)
    assert "\n".join(map(str, fuzzer.findings[:10])) == ""
    assert fuzzer.callers is not None and fuzzer.callers.marked["admin"]
    assert fuzzer.callers.answered["owner"] and fuzzer.callers.answered["reader"]
