"""The seed's targets, and whether the figures meet them."""

from collections.abc import Sequence

from tools.report.figures import Check, IndexGain, Plan, Pools, Row, Workload
from tools.report.seed_figures import BOOKINGS, SALONS, SEED, STATS

BUFFERS = SEED.buffer_hit_rate_target


def targets(rows: Sequence[Row]) -> list[Check]:
    """Judge the kinds of queries, each by its worst row; the first call of the stats, which is not cached, apart."""
    checks = []
    for name, target, first, seed in (
        ("Booking queries", BOOKINGS, False, "100 to 18 ms: 0.18"),
        ("Stats queries", STATS, False, "300 to 5 ms: 0.02"),
        ("Stats queries, first call", STATS, True, "300 to 75 ms: 0.25"),
        ("Salon look-ups", SALONS, False, "50 to 3 ms: 0.06"),
    ):
        of_kind = [row for row in rows if (row.target, row.first) == (target, first)]
        if of_kind:
            worst = max(of_kind, key=lambda row: row.ratio)
            figure = f"{worst.ratio:.3f} ({worst.name})"
            checks.append(Check(name, figure, f"at most {target:.2f}", seed, worst.ok))
    return checks


def others(
    workload: Workload, pools: Pools, plans: Sequence[Plan], indexes: Sequence[IndexGain], buffer_hit_rate: float
) -> list[Check]:
    """Judge what else the seed names."""
    saved, hits, on_index = workload.statements_saved, workload.hit_rate, sum(plan.ok for plan in plans)
    used = sum(index.state == "present" and index.scans > 0 for index in indexes)
    held = pools.after.answered == pools.after.reads.calls and pools.rpc_errors == 0
    failed = pools.after.exhaustions + pools.rpc_exhaustions + pools.after.connection_errors
    failed += pools.rpc_connection_errors
    judged = (
        ("Database load saved", f"{saved:.1f} %", f"at least {SEED.saved_target:.0f} %", saved >= SEED.saved_target),
        ("Cache hit rate", f"{hits:.1f} %", f"above {SEED.hit_rate_target:.0f} %", hits > SEED.hit_rate_target),
        ("Callers at once", f"{pools.callers} {'answered' if held else 'not all answered'}", "all answered", held),
        ("Exhaustions and connection errors", str(failed), "none", failed == 0),
        ("Indexes present and used", f"{used} of {len(indexes)}", "all", used == len(indexes)),
        ("Plans on their indexes", f"{on_index} of {len(plans)}", "all", on_index == len(plans)),
        ("Buffer hit ratio", f"{buffer_hit_rate:.2f} %", f"above {BUFFERS:.0f} %", buffer_hit_rate > BUFFERS),
    )
    seed = (
        f"{SEED.saved:.0f} %",
        f"{SEED.hit_rate:.0f} %",
        SEED.callers[1],
        "0/day",
        "13",
        "4",
        f"above {BUFFERS:.0f} %",
    )
    return [
        Check(name, figure, target, said, ok) for (name, figure, target, ok), said in zip(judged, seed, strict=True)
    ]


def passed(checks: Sequence[Check]) -> bool:
    """Return what `--check` answers."""
    return all(check.ok for check in checks)


def headline(checks: Sequence[Check]) -> str:
    """Return how many targets are met, and which are not."""
    missed = [check.name for check in checks if not check.ok]
    met = f"{len(checks) - len(missed)} of {len(checks)} targets are met"
    return f"{met}. NOT met: {'; '.join(missed)}." if missed else f"{met}."
