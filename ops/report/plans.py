"""What each of the 15 indexes gains, and how Postgres runs the statements they are for."""

from collections.abc import Callable, Iterator, Mapping
from statistics import median
from typing import Any

import psycopg

from libs.db import split_pool_parameters
from ops.indexes import IndexState, PlanCheck, verify
from ops.report.figures import IndexGain, Plan
from ops.report.seed_figures import EXPECTED_GAINS
from ops.report.system import System, without
from ops.statements import PROOFS, Statement

LITTLE_GAIN = 10.0  # %: less may be noise


def explained(database_url: str) -> list[Plan]:
    """Run each statement that `parlor verify-indexes` knows, with EXPLAIN (ANALYZE, BUFFERS)."""
    checks = verify(database_url).plans
    with psycopg.connect(split_pool_parameters(database_url)[0]) as conn:
        plans = [_explain(conn, check) for check in checks]
        conn.rollback()  # some lock rows
    return plans


def _explain(conn: psycopg.Connection, check: PlanCheck) -> Plan:
    conn.execute(check.sql.encode()).fetchall()  # into the buffers
    rows = conn.execute(f"EXPLAIN (ANALYZE, BUFFERS) {check.sql}".encode()).fetchall()
    run = _analyzed(conn, check.sql, "ANALYZE")
    read = sum(_rows_read(node) for node in _nodes(run["Plan"]))
    text = "\n".join(line for (line,) in rows)
    verdict = f"{check.verdict}, no sequential scan" if "Seq Scan" not in text else check.verdict
    returned = round(run["Plan"]["Actual Rows"])
    read_a_row = round(read / max(returned, 1), 1)
    figures = run["Execution Time"], read, returned, read_a_row
    return Plan(check.serves, check.proves or "", check.sql, text, *figures, check.ok, verdict)


def gains(system: System, rounds: int, advance: Callable[[], None]) -> list[IndexGain]:
    """Time each index's statement on the database and on the copy without the index, in turn; medians."""
    state = {index.name: index for index in verify(system.database_url).indexes}
    measured = []
    for proof in PROOFS:
        name = proof.indexes[0]
        measured.append(_gain(system, proof, state[name], rounds))
        advance()
    return measured


def _gain(system: System, proof: Statement, index: IndexState, rounds: int) -> IndexGain:
    with (
        psycopg.connect(system.database_url, autocommit=True) as whole,
        psycopg.connect(system.copy_url, autocommit=True) as lacking,
        without(system.copy_url, index.name),
    ):
        for conn in (whole, lacking):
            conn.execute(proof.sql.encode()).fetchall()
        taken = [(_execution_ms(whole, proof.sql), _execution_ms(lacking, proof.sql)) for _ in range(rounds)]
    with_ms, without_ms = (round(median(side), 4) for side in zip(*taken, strict=True))
    gain = round(100 * (1 - with_ms / without_ms), 1)
    expected = EXPECTED_GAINS.get(index.name)
    if expected is None:
        verdict = "no figure in the seed"
    else:
        verdict = "as expected or more" if gain >= expected else "less than expected"
    if gain < LITTLE_GAIN:
        verdict += ": another index serves as well at this size"
    return IndexGain(
        index.name,
        index.table,
        ", ".join(index.columns),
        index.size_bytes,
        index.scans,
        index.state,
        proof.serves,
        with_ms,
        without_ms,
        gain,
        expected,
        verdict,
    )


def _analyzed(conn: psycopg.Connection, query: str, options: str) -> Mapping[str, Any]:
    row = conn.execute(f"EXPLAIN ({options}, FORMAT JSON) {query}".encode()).fetchone()
    plan: Mapping[str, Any] = row[0][0] if row else {}
    return plan


def _execution_ms(conn: psycopg.Connection, query: str) -> float:
    """Return Postgres's own time, without planning and without a clock read a row."""
    taken: float = _analyzed(conn, query, "ANALYZE, TIMING OFF, BUFFERS OFF")["Execution Time"]
    return taken


def _nodes(plan: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from _nodes(child)


def _rows_read(node: Mapping[str, Any]) -> int:
    """Return the rows that a scan of a table or an index looked at; 0 for what is no scan."""
    if "Relation Name" not in node:
        return 0
    dropped = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
    rows: float = (node["Actual Rows"] + dropped) * node["Actual Loops"]
    return round(rows)
