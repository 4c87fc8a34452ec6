"""A primary that fails under load, with writers in one process and readers in another: nothing lost, nothing stale."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.failover.checked_load import DEADLINE_SECONDS, CheckedLoad
from tests.processes import processes, stubs
from tests.stack import rows, running
from tools.postgres_pair import Pair, hang, pair, wake

BACK_SECONDS = 2.0
POLL_SECONDS = 1.0
BUSY_SECONDS = 2.0  # margin for a busy machine
KEPT = "SELECT salon_id, max(content::int), count(*) FROM messages GROUP BY salon_id"


def killed(both: Pair) -> None:
    """Kill the primary's processes."""
    both.primary.kill()


def hung(both: Pair) -> None:
    """Suspend the primary's processes; its port still accepts."""
    hang(both.primary)


def revived(both: Pair) -> None:
    """Suspend the primary's processes; they continue as soon as the standby is promoted."""
    hang(both.primary)


@pytest.mark.parametrize("mode", ["bounded", "wait"])
@pytest.mark.parametrize("fail", [killed, hung, revived])
async def test_a_synchronous_standby_takes_over_without_lost_writes_or_stale_reads(
    tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch, fail: Callable[[Pair], None], mode: str
) -> None:
    monkeypatch.setenv("REDIS_WITHOUT", mode)
    with pair(tmp_path, synchronous=True) as both, processes(both.url(), redis_url, tmp_path) as others:
        async with stubs(others) as reader, running(both.url(), redis_url, cache={"without": mode}) as writer:
            load = CheckedLoad(writer, reader)
            await load.prepare()
            async with load.running():
                await asyncio.sleep(1)
                fail(both)
                await asyncio.sleep(1)
                await asyncio.to_thread(both.standby.promote)
                promoted = time.monotonic()
                if fail is revived:
                    wake(both.primary)  # not fenced
                back = await load.back(promoted)
                if fail is hung:
                    wake(both.primary)
                await asyncio.sleep(2)
            found = load.found
            print(f"{fail.__name__}, {mode}: back after {back:.2f} s, {found}"[:400])
            if mode == "wait":
                assert found.stale == []
            # A process that has noticed the promotion bypasses the cache; the other hits until its next poll.
            assert max(found.stale, default=0) < POLL_SECONDS
            assert found.hits > 0
            kept = {salon_id: (last, count) for salon_id, last, count in rows(both.standby.dsn, KEPT)}
            for chain in load.chains:
                last, count = kept[chain.salon_id]
                assert last >= len(chain.acknowledged)
                assert count == last  # each number once
            assert back < BACK_SECONDS + BUSY_SECONDS
            assert found.longest_seconds < DEADLINE_SECONDS + BUSY_SECONDS
            assert found.failures.keys() <= {"UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED"}
