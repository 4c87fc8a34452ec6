"""What a run found, for people and as JSON."""

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.box import SIMPLE
from rich.console import Group
from rich.table import Column, Table
from rich.text import Text

from tools.coherence.state import COUNTS, RPCS, SOURCES, State
from tools.coherence.system import NEAR_MS, POLL_MS

MOST_SHOWN = 10


@dataclass
class Report:
    """What a run found. `faults` are pairs of s since the start and a name; `rpcs` has counts by RPC."""

    mode: str
    seed: int
    seconds: float
    faults: list[tuple[float, str]] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    findings: list[dict[str, Any]] = field(default_factory=list)
    rpcs: dict[str, dict[str, int]] = field(default_factory=dict)
    totals: dict[str, int] = field(default_factory=dict)
    oldest_ms: float = 0.0
    ok: bool = False

    def finish(self, state: State) -> None:
        """Take over the counters, and judge: nothing stale, lost or unexpected, and reads of each kind checked."""
        self.rpcs = {rpc: {what: state.total((rpc, what)) for what in COUNTS} for rpc in RPCS}
        self.totals = {name: state.total(name) for name in ("acknowledged", "retried", "unexpected", *COUNTS)}
        self.oldest_ms = state.oldest_ms
        is_checked = self.totals["acknowledged"] > 0 and all(counts["reads"] for counts in self.rpcs.values())
        self.ok = is_checked and not (self.lost or self.totals["unexpected"] or self.totals["stale"])

    def as_json(self) -> str:
        """Return it as a JSON document."""
        return json.dumps(asdict(self), indent=2)

    def tables(self) -> Group:
        """Return it for people."""
        by_rpc = Table("", *(Column(what, justify="right") for what in COUNTS), box=SIMPLE, padding=(0, 1, 0, 0))
        for rpc, counts in self.rpcs.items():
            by_rpc.add_row(rpc, *(f"{counts[what]:,}" for what in COUNTS))
        faults = Counter(what for _, what in self.faults)
        total = self.totals
        cached = (total["hit"] + total["near"]) / max(1, sum(total[source] for source in SOURCES))
        allowed = POLL_MS if self.mode == "bounded" else 0
        summary = Table("", "", show_header=False, box=None)
        for name, text in (
            ("reads checked", f"{total['reads']:,}, in {total['rpcs']:,} RPCs; {cached:.1%} from the cache"),
            ("writes acknowledged", f"{total['acknowledged']:,}; {total['retried']:,} attempts failed"),
            ("faults", f"{len(self.faults)}"),
            *((f"  {what}", str(times)) for what, times in sorted(faults.items())),
            ("split replies", f"{total['split']:,}; older than what another reader saw of a write under way"),
            ("stale replies", f"{total['stale']:,}"),
            ("oldest reply", f"{self.oldest_ms:.0f} ms; allowed {allowed} ms, of the near cache {allowed + NEAR_MS}"),
            ("lost writes", f"{len(self.lost)}"),
            ("unexpected errors", f"{total['unexpected']}"),
        ):
            summary.add_row(name, text)
        found = [*map(json.dumps, self.findings), *self.lost]
        result = Text("ok", "bold green") if self.ok else Text("FAILED", "bold red")
        return Group(by_rpc, summary, *map(Text, found[:MOST_SHOWN]), result)
