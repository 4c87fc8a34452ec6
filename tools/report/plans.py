"""What each of the 15 indexes gains, and how Postgres runs the statements they are for."""

from collections.abc import Callable, Iterator, Mapping
from statistics import median
from typing import Any

import psycopg

from libs.db import split_pool_parameters
from ops.indexes import IndexState, index_states
from tools.report.figures import IndexGain, Plan
from tools.report.index_statements import INDEX_STATEMENTS
from tools.report.seed_figures import EXPECTED_GAINS
from tools.report.system import System, without

LITTLE_GAIN = 10.0  # %: less may be noise


def explained(database_url: str) -> list[Plan]:
    """Run the statement of each index with EXPLAIN (ANALYZE, BUFFERS)."""
    with psycopg.connect(split_pool_parameters(database_url)[0]) as conn:
        return [_explain(conn, index, *statement) for index, statement in INDEX_STATEMENTS.items()]


def _explain(conn: psycopg.Connection, index: str, serves: str, sql: str) -> Plan:
    conn.execute(sql.encode()).fetchall()  # into the buffers
    text = "\n".join(line for (line,) in conn.execute(f"EXPLAIN (ANALYZE, BUFFERS) {sql}".encode()))
    run = _analyzed(conn, sql, "ANALYZE")
    read = sum(_rows_read(node) for node in _nodes(run["Plan"]))
    returned = round(run["Plan"]["Actual Rows"])
    figures = run["Execution Time"], read, returned, round(read / max(returned, 1), 1)
    ok = f" {index} " in text and "Seq Scan" not in text
    verdict = "on its index, no sequential scan" if ok else f"does not use {index}, or reads a whole table"
    return Plan(serves, index, sql, text, *figures, ok, verdict)


def gains(system: System, rounds: int, advance: Callable[[], None]) -> list[IndexGain]:
    """Time each index's statement on the database and on the copy without the index, in turn; medians."""
    with psycopg.connect(system.database_url) as conn:
        states = index_states(conn)
    measured = []
    for index in states:
        measured.append(_gain(system, index, *INDEX_STATEMENTS[index.name], rounds))
        advance()
    return measured


def _gain(system: System, index: IndexState, serves: str, sql: str, rounds: int) -> IndexGain:
    with (
        psycopg.connect(system.database_url, autocommit=True) as whole,
        psycopg.connect(system.copy_url, autocommit=True) as lacking,
        without(system.copy_url, index.name),
    ):
        for conn in (whole, lacking):
            conn.execute(sql.encode()).fetchall()
        taken = [(_execution_ms(whole, sql), _execution_ms(lacking, sql)) for _ in range(rounds)]
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
        serves,
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
