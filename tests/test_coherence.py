"""The coherence check finds nothing in a correct system, and stale reads in one that does not register writes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
WITHOUT_REGISTRATION = ROOT / "tests/without_registration"


def coherence(*options: str, **environment: str) -> tuple[int, Any]:
    """Run the check for 2 s without faults; return its exit code and its report."""
    command = [sys.executable, "-m", "tools.coherence", "--seconds", "2", "--no-faults", "--json", *options]
    ended = subprocess.run(  # noqa: S603 - ours
        command, cwd=ROOT, env=os.environ | environment, stdout=subprocess.PIPE, text=True, timeout=120, check=False
    )
    return ended.returncode, json.loads(ended.stdout)


def test_coherence_finds_no_stale_reads_and_no_lost_writes() -> None:
    code, found = coherence("--mode", "refuse")
    assert (code, found["ok"], found["totals"]["stale"], found["lost"]) == (0, True, 0, [])
    assert all(counts["reads"] for counts in found["rpcs"].values())
    assert any(counts["hit"] for counts in found["rpcs"].values())
    assert found["totals"]["acknowledged"]


def test_coherence_finds_stale_reads_when_writes_do_not_register() -> None:
    code, found = coherence("--mode", "refuse", PYTHONPATH=str(WITHOUT_REGISTRATION))
    assert (code, found["ok"], found["lost"]) == (1, False, [])
    assert found["totals"]["stale"]
    assert all(finding["shown"] < finding["known"] for finding in found["findings"])
