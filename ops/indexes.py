"""Checks that the database has its 15 indexes, and that the services' statements are planned well with them.

The statements are recorded (see recording.py) and planned without their values, as in the services. The
rules for a plan are general, so a new statement needs no entry here:

- No table of more than MOST_ROWS_READ rows is read as a whole; of a partition, MOST_ROWS_READ_OF_PARTITION.
- No page is cut from a sort of more than MOST_ROWS_SORTED rows: an index gives the order.
- No scan costs more than MOST_COST_PER_ROW for each row that it returns: it would read many rows to drop them.
- Each of the 15 indexes is used by a plan, but for those in UNUSED.

The rules mean little for a database with few rows, or one that was never analyzed.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from inspect import cleandoc
from typing import Any

import psycopg
from psycopg.rows import class_row
from rich.console import Group
from rich.markup import escape
from rich.table import Column, Table

from libs.db import split_pool_parameters
from ops.recording import Statement

MOST_ROWS_READ = 1_000
MOST_ROWS_READ_OF_PARTITION = 5_000  # an index gains little where a partition has few of the rows of a conversation
MOST_ROWS_SORTED = 100
MOST_COST_PER_ROW = 70  # in the planner's units, in which reading one row by a unique index costs about 8


@dataclass(frozen=True)
class Index:
    """An index as the migrations create it."""

    name: str
    table: str
    columns: tuple[str, ...]
    unique: bool = False


INDEXES = (
    Index("idx_bookings_salon_start", "bookings", ("salon_id", "start_ts")),
    Index("idx_bookings_salon_status_start", "bookings", ("salon_id", "status", "start_ts")),
    Index("idx_bookings_customer_salon", "bookings", ("customer_phone", "salon_id")),
    Index("idx_bookings_created", "bookings", ("created_at",)),
    Index("idx_messages_salon_created", "messages", ("salon_id", "created_at")),
    Index("idx_messages_phone_salon", "messages", ("phone_number", "salon_id")),
    Index("idx_messages_conversation_created", "messages", ("conversation_id", "created_at")),
    Index("idx_messages_direction_salon", "messages", ("direction", "salon_id")),
    Index("idx_conversations_salon_status_last", "conversations", ("salon_id", "status", "last_message_at")),
    Index("idx_conversations_salon_started", "conversations", ("salon_id", "started_at")),
    Index("idx_ai_messages_conversation_created", "ai_messages", ("conversation_id", "created_at")),
    Index("idx_ai_messages_salon_created", "ai_messages", ("salon_id", "created_at")),
    Index("booking_code_salon_id", "bookings", ("booking_code", "salon_id"), unique=True),
    Index("salon_id_phone_number", "conversations", ("salon_id", "phone_number"), unique=True),
    Index("whatsapp_id", "messages", ("salon_id", "whatsapp_id"), unique=True),
)
TABLES = frozenset(index.table for index in INDEXES)
# Indexes that no statement uses, and the reason.
UNUSED = {
    "idx_messages_direction_salon": "none: it counts a salon's messages by direction over all time, and the RPCs read a"
    " period or the newest messages, which idx_messages_salon_created serves better",
}
# Exceptions: a part of the statement, the start of its problem, and the reason why it is accepted.
ACCEPTED = (
    ("OFFSET 0) AS bookings", "sorts ", "what changed since a time is taken first, by its index"),
    ("ts_rank(", "sorts ", "no index has the order of relevance"),
    ("m.salon_id || ''", "reads much of messages ", "the planner can't know that a conversation has one salon"),
)


@dataclass(frozen=True)
class IndexState:
    """An index as it is in the database.

    `state` is `present`, `missing` or `differs` (not as the migrations create it); in a report also `not used`, and
    `rpcs` are those whose plans use it.
    Units:  size_bytes of its main file; scans since the server's statistics were last reset.
    """

    name: str
    table: str
    columns: tuple[str, ...]
    size_bytes: int
    scans: int
    state: str
    rpcs: tuple[str, ...] = ()


@dataclass(frozen=True)
class PlanCheck:
    """The plan of a statement sent by `rpcs`: its scans of tables, and the rules that it breaks."""

    rpcs: tuple[str, ...]
    sql: str
    scans: tuple[str, ...]
    indexes: tuple[str, ...]
    ok: bool
    verdict: str


@dataclass(frozen=True)
class IndexReport:
    """The result of `parlor verify-indexes`."""

    server: str
    indexes: list[IndexState]
    plans: list[PlanCheck]

    @property
    def ok(self) -> bool:
        """Whether every index is present and used, and no plan breaks a rule."""
        return all(index.state == "present" for index in self.indexes) and all(plan.ok for plan in self.plans)

    def as_dict(self) -> dict[str, Any]:
        """Return the report for JSON."""
        return {"ok": self.ok} | asdict(self)


@dataclass(frozen=True)
class _Found:
    name: str
    table: str
    columns: list[str]
    unique: bool
    size_bytes: int
    scans: int


def verify(database_url: str, statements: Iterable[Statement]) -> IndexReport:
    """Return the state of the 15 indexes and the plans of the statements. Only reads; runs none of the statements."""
    with psycopg.connect(split_pool_parameters(database_url)[0]) as conn:
        conn.read_only = True
        plans = check_plans(conn, statements)
        states = [_with_users(state, plans) for state in index_states(conn)]
        version = conn.info.server_version
    return IndexReport(f"PostgreSQL {version // 10000}.{version % 10000}", states, plans)


def check_plans(conn: psycopg.Connection, statements: Iterable[Statement]) -> list[PlanCheck]:
    """Return the plan of each statement, with the indexes visible to the connection's transaction."""
    conn.execute("SET LOCAL plan_cache_mode = force_generic_plan")
    query = "SELECT oid::regclass::text, reltuples FROM pg_class WHERE relkind = 'r'"
    tables: dict[str, float] = dict(conn.execute(query).fetchall())
    query = "SELECT inhrelid::regclass::text, inhparent::regclass::text FROM pg_inherits"
    parents: dict[str, str] = dict(conn.execute(query).fetchall())
    return [_check(conn, statement, tables, parents) for statement in statements]


def index_states(conn: psycopg.Connection) -> list[IndexState]:
    """Return the state of each of the 15 indexes."""
    found = {index.name: index for index in _indexes(conn)}
    return [_state(index, found.get(index.name)) for index in INDEXES]


def _indexes(conn: psycopg.Connection) -> list[_Found]:
    """Return those of the 15 that exist. An index of a partitioned table has the sums of its partitions.

    There message_names makes each whatsapp_id unique.
    """
    query = """
        SELECT relation.relname AS name, index.indrelid::regclass::text AS table,
            index.indisunique OR relation.relkind = 'I' AND relation.relname = 'whatsapp_id' AS unique,
            files.size_bytes, files.scans,
            array(SELECT pg_get_indexdef(index.indexrelid, place, true)
                  FROM generate_series(1, index.indnkeyatts) AS place ORDER BY place) AS columns
        FROM pg_index AS index
        JOIN pg_class AS relation ON relation.oid = index.indexrelid
        CROSS JOIN LATERAL (
            SELECT sum(pg_relation_size(file))::bigint AS size_bytes, coalesce(sum(idx_scan), 0)::bigint AS scans
            FROM (
                SELECT index.indexrelid UNION ALL SELECT inhrelid FROM pg_inherits WHERE inhparent = index.indexrelid
            ) AS of (file) LEFT JOIN pg_stat_user_indexes ON indexrelid = file
        ) AS files
        WHERE relation.relname = ANY(%s) AND pg_table_is_visible(relation.oid)
            AND index.indisvalid AND index.indpred IS NULL"""
    with conn.cursor(row_factory=class_row(_Found)) as cursor:
        return cursor.execute(query, [[index.name for index in INDEXES]]).fetchall()


def _state(index: Index, has: _Found | None) -> IndexState:
    if has is None:
        return IndexState(index.name, index.table, index.columns, 0, 0, "missing")
    columns = tuple(has.columns)
    same = (has.table, columns, has.unique) == (index.table, index.columns, index.unique)
    return IndexState(has.name, has.table, columns, has.size_bytes, has.scans, "present" if same else "differs")


def _with_users(index: IndexState, plans: Iterable[PlanCheck]) -> IndexState:
    rpcs = tuple(dict.fromkeys(rpc for plan in plans if index.name in plan.indexes for rpc in plan.rpcs))
    is_unused = index.state == "present" and not rpcs and index.name not in UNUSED
    return replace(index, rpcs=rpcs, state="not used" if is_unused else index.state)


def _check(
    conn: psycopg.Connection, statement: Statement, tables: Mapping[str, float], parents: Mapping[str, str]
) -> PlanCheck:
    try:
        with conn.transaction():
            plan = _plan(conn, statement.sql)
    except psycopg.Error as error:  # such as a missing table or column
        return PlanCheck(statement.rpcs, statement.sql, (), (), False, error.diag.message_primary or str(error))
    nodes = [_of_parent(node, tables, parents) for node in _nodes(plan)]
    scans = tuple(dict.fromkeys(filter(None, map(_scan, nodes))))
    indexes = tuple(dict.fromkeys(node["Index Name"] for node in nodes if "Index Name" in node))
    problems = dict.fromkeys(problem for node in nodes for problem in _problems(node))
    accepted = {
        problem: reason
        for problem in problems
        for part, beginning, reason in ACCEPTED
        if part in statement.sql and problem.startswith(beginning)
    }
    verdict = "; ".join(f"{problem} ({accepted[problem]})" if problem in accepted else problem for problem in problems)
    ok = problems.keys() == accepted.keys()
    return PlanCheck(statement.rpcs, statement.sql, scans, indexes, ok, verdict or "ok")


def _plan(conn: psycopg.Connection, sql: str) -> Mapping[str, Any]:
    """Return the generic plan of a statement, which the services use for all values."""
    conn.execute(f"PREPARE planned AS {sql}".encode())
    parameters = max(map(int, re.findall(r"\$(\d+)", sql)), default=0)
    values = f"({', '.join(['NULL'] * parameters)})" if parameters else ""
    try:
        with conn.transaction():
            row = conn.execute(f"EXPLAIN (FORMAT JSON) EXECUTE planned{values}".encode()).fetchone()
    finally:
        conn.execute("DEALLOCATE planned")
    plan: Mapping[str, Any] = row[0][0]["Plan"] if row else {}
    return plan


def _nodes(plan: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from _nodes(child)


def _of_parent(node: Mapping[str, Any], tables: Mapping[str, float], parents: Mapping[str, str]) -> Mapping[str, Any]:
    """Return a node with the rows of its table; one of a partition has the names of the partitioned table and index."""
    names = {key: parents.get(node[key], node[key]) for key in ("Relation Name", "Index Name") if key in node}
    table = node.get("Relation Name", "")
    most = MOST_ROWS_READ_OF_PARTITION if table in parents else MOST_ROWS_READ
    return {**node, **names, "Table Rows": tables.get(table, 0), "Most Rows": most}


def _problems(node: Mapping[str, Any]) -> Iterator[str]:
    """Yield the rules that a node of a plan breaks."""
    kind, table = node["Node Type"], node.get("Relation Name", "")
    if kind == "Seq Scan" and node["Table Rows"] > node["Most Rows"]:
        yield f"reads all of {table}, {node['Table Rows']:,.0f} rows"
    elif kind.endswith("Scan") and table and node["Total Cost"] > MOST_COST_PER_ROW * node["Plan Rows"]:
        yield f"reads much of {table} for few rows: a cost of {node['Total Cost']:,.0f} for {node['Plan Rows']:,}"
    if kind == "Limit":
        for child in node["Plans"]:
            if child["Node Type"] == "Sort" and child["Plan Rows"] > MOST_ROWS_SORTED:
                yield f"sorts {child['Plan Rows']:,} rows for a page"


def _scan(node: Mapping[str, Any]) -> str | None:
    if index := node.get("Index Name"):
        backward = " Backward" if node.get("Scan Direction") == "Backward" else ""
        return f"{node['Node Type']}{backward} using {index}"
    return f"Seq Scan on {node['Relation Name']}" if node["Node Type"] == "Seq Scan" else None


def tables(report: IndexReport) -> Group:
    """Return the report for a terminal; statements whose plans break a rule are shown in full at its end."""
    heads = (Column("index", no_wrap=True), "table", Column("columns", overflow="fold"), "size", "scans", "state")
    indexes = Table(*heads, title=f"The 15 indexes, {report.server}")
    for index in report.indexes:
        size = f"{index.size_bytes // 1024:,} kB"
        indexes.add_row(index.name, index.table, ", ".join(index.columns), size, f"{index.scans:,}", index.state)
    plans = Table(
        *(Column(head, overflow="fold") for head in ("RPC", "plan", "verdict")), title="Plans", show_lines=True
    )
    for plan in report.plans:
        style = None if plan.ok else "red"
        plans.add_row("\n".join(plan.rpcs), "\n".join(plan.scans), escape(plan.verdict), style=style)
    failed = [plan for plan in report.plans if not plan.ok]
    shown = [escape(f"{', '.join(plan.rpcs)}: {plan.verdict}\n{cleandoc(plan.sql)}\n") for plan in failed]
    present = sum(index.state == "present" for index in report.indexes)
    good = len(report.plans) - len(failed)
    summary = f"{present} of {len(INDEXES)} indexes ok, {good} of {len(report.plans)} plans ok"
    return Group(indexes, plans, *shown, summary)


def markdown(report: IndexReport) -> str:
    """Return the RPCs that use each index, as a section of docs/performance.md."""
    lines = []
    for index in report.indexes:
        users = ", ".join(index.rpcs) or UNUSED.get(index.name, "none")
        lines.append(f"| {index.name} | {index.table} ({', '.join(index.columns)}) | {users} |")
    return _MARKDOWN.format(server=report.server, lines="\n".join(lines), plans=len(report.plans))


_MARKDOWN = """\
## The 15 indexes

`parlor verify-indexes` calls every RPC on a temporary system, records the {plans} different statements that the
services send, and looks at the plan of each on your database. It fails if an index is missing or not used, or if a plan
reads a large table as a whole, sorts many rows for one page, or reads many rows to return few. These RPCs use the
indexes, on the sample data with {server} (written by `parlor verify-indexes --markdown`):

| Index | Columns | Used by |
|---|---|---|
{lines}
"""
