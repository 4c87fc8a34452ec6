"""What a run found, for people and as JSON."""

import json
from dataclasses import dataclass, field
from typing import Any

from rich.box import SIMPLE
from rich.console import Group
from rich.table import Column, Table
from rich.text import Text

from tools.coherence.ledger import COUNTS, SOURCES
from tools.coherence.system import NEAR_MS, POLL_MS

NS = 1_000_000  # of a ms
MOST_SHOWN = 10


@dataclass
class Report:
    """What a run found. `rpcs` has the counts of each RPC; `faults` are pairs of s since the start and what it was."""

    mode: str
    seed: int
    seconds: float
    faults: list[tuple[float, str]] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    rpcs: dict[str, dict[str, int]] = field(default_factory=dict)
    acknowledged: int = 0
    retried: int = 0
    unexpected: int = 0
    findings: list[dict[str, Any]] = field(default_factory=list)

    def total(self, what: str) -> int:
        """Return a sum over all RPCs."""
        return sum(counts[what] for counts in self.rpcs.values())

    @property
    def ok(self) -> bool:
        """Whether nothing was stale, lost or unexpected, and each kind of read was checked."""
        checked = self.acknowledged and all(counts["reads"] for counts in self.rpcs.values())
        return bool(checked) and not (self.lost or self.unexpected or self.total("stale"))

    @property
    def oldest_ms(self) -> float:
        """Return the largest age of what a reply still showed, in ms."""
        return max(counts["oldest"] for counts in self.rpcs.values()) / NS

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "ok": self.ok,
            "mode": self.mode,
            "seed": self.seed,
            "seconds": round(self.seconds, 1),
            "reads_checked": self.total("reads"),
            "rpcs": self.total("rpcs"),
            "writes_acknowledged": self.acknowledged,
            "writes_retried": self.retried,
            "faults": [{"at_seconds": round(at, 1), "what": what} for at, what in self.faults],
            "split_replies": self.total("split"),
            "stale_replies": self.total("stale"),
            "oldest_ms": round(self.oldest_ms, 1),
            "lost_writes": self.lost,
            "unexpected_errors": self.unexpected,
            "by_rpc": self.rpcs,
            "findings": self.findings,
        }


def tables(report: Report) -> Group:
    """Return the report for people."""
    numbers = (Column(title, justify="right") for title in (*COUNTS[:-1], "oldest ms"))
    by_rpc = Table("", *numbers, box=SIMPLE, padding=(0, 1, 0, 0))
    for rpc, counts in report.rpcs.items():
        by_rpc.add_row(rpc, *(f"{counts[what]:,}" for what in COUNTS[:-1]), f"{counts['oldest'] / NS:.0f}")
    answered = sum(map(report.total, SOURCES))
    cached = (report.total("hit") + report.total("near")) / max(1, answered)
    if report.mode == "bounded":
        allowed = f"{POLL_MS} ms allowed, of the near cache {POLL_MS + NEAR_MS}"
    else:
        allowed = f"none allowed but of the near cache, {NEAR_MS} ms"
    verdict = Table("", "", show_header=False, box=None)
    verdict.add_row("reads checked", f"{report.total('reads'):,}, in {report.total('rpcs'):,} RPCs")
    verdict.add_row("replies from the cache", f"{cached:.1%}")
    verdict.add_row(
        "writes acknowledged", f"{report.acknowledged:,}; {report.retried:,} attempts failed and were repeated"
    )
    verdict.add_row("faults", f"{len(report.faults)}")
    verdict.add_row("split replies", f"{report.total('split'):,}; behind what another saw of a write under way")
    verdict.add_row("stale replies", f"{report.total('stale'):,}")
    verdict.add_row("largest age seen", f"{report.oldest_ms:.0f} ms; {allowed}")
    verdict.add_row("lost writes", f"{len(report.lost)}")
    verdict.add_row("unexpected errors", f"{report.unexpected}")
    found = [json.dumps(each) for each in report.findings[:MOST_SHOWN]] + report.lost[:MOST_SHOWN]
    result = Text("ok", "bold green") if report.ok else Text("FAILED", "bold red")
    return Group(by_rpc, verdict, *map(Text, found), result)
