"""`parlor coherence` finds nothing where nothing is wrong, and what is wrong where something is."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

PARLOR = Path(sys.executable).with_name("parlor")
WITHOUT_REGISTRATION = Path(__file__).parent / "without_registration"


def coherence(*options: str, **environment: str) -> tuple[int, Any]:
    """Run it for a moment; return its exit code and what it found."""
    command = [str(PARLOR), "coherence", "--seconds", "2", "--no-faults", "--json", *options]
    ended = subprocess.run(  # noqa: S603 - ours
        command, env=os.environ | environment, stdout=subprocess.PIPE, text=True, timeout=120, check=False
    )
    return ended.returncode, json.loads(ended.stdout)


def test_coherence_finds_nothing_stale_and_nothing_lost() -> None:
    code, found = coherence("--mode", "refuse")
    assert (code, found["ok"], found["stale_replies"], found["lost_writes"]) == (0, True, 0, [])
    assert all(counts["reads"] for counts in found["by_rpc"].values())
    assert any(counts["hit"] for counts in found["by_rpc"].values())
    assert found["writes_acknowledged"]


def test_coherence_finds_stale_reads_when_writes_do_not_register() -> None:
    code, found = coherence("--mode", "refuse", PYTHONPATH=str(WITHOUT_REGISTRATION))
    assert (code, found["ok"], found["lost_writes"]) == (1, False, [])
    assert found["stale_replies"]
    assert all(finding["shown"] < finding["known"] for finding in found["findings"])
