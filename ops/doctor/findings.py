"""What `parlor doctor` reports, and the limits from which it does."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Limits:
    """From where on something is reported. deploy/prometheus alerts at the same limits.

    Units: shares from 0 to 1; times in s; sizes in bytes.
    """

    dead_rows: float = 0.10
    fewest_dead_rows: int = 1_000
    changed_rows: float = 0.20  # since the last ANALYZE
    bloat: float = 0.50
    smallest_bloat: int = 10 * 1024 * 1024
    fewest_reads_of_table: int = 1_000  # before an index of it can count as unused
    hit_rate: float = 0.70
    fewest_cached_reads: int = 1_000
    pool_use: float = 0.80
    connections: float = 0.80
    slow_statement: float = 0.1
    fewest_calls: int = 100
    replica_lag: float = 10.0
    transaction_age: float = 300.0
    outbox_rows: int = 1_000
    unsealed: float = 3 * 3600.0
    transaction_ids: float = 0.25  # of the 2^31 that Postgres has before it must freeze


@dataclass(frozen=True)
class Finding:
    """Something wrong: the check that found it, where, what was seen, and the command or setting that mends it."""

    check: str
    subject: str
    seen: str
    remedy: str


@dataclass(frozen=True)
class Diagnosis:
    """The result of `parlor doctor`; `unchecked` says what could not be looked at, and why."""

    findings: list[Finding]
    unchecked: list[str]

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    def as_dict(self) -> dict[str, Any]:
        """Return the diagnosis for JSON."""
        return {"ok": self.ok} | asdict(self)
