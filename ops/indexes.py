"""Whether the database has its 15 indexes, and whether the statements that they are for use them."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import psycopg
from psycopg.rows import class_row
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from libs.db import split_pool_parameters
from ops.statements import PROOFS, QUERIES, Statement
from ops.statements_batched import BATCHED
from ops.statements_booking import BOOKING
from ops.statements_messaging import MESSAGING


@dataclass(frozen=True)
class Index:
    """An index as the migrations make it."""

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


@dataclass(frozen=True)
class IndexState:
    """An index as it is in the database: `state` is `present`, `missing` or `differs` (not as the migrations make it).

    Units:  size_bytes of its main file; scans since the server's statistics were last reset.
    """

    name: str
    table: str
    columns: tuple[str, ...]
    size_bytes: int
    scans: int
    state: str


@dataclass(frozen=True)
class PlanCheck:
    """How a statement is planned: `scans` are its scans of tables, `verdict` says it in words."""

    serves: str
    proves: str | None
    sql: str
    expected: tuple[str, ...]
    scans: tuple[str, ...]
    ok: bool
    verdict: str


@dataclass(frozen=True)
class IndexReport:
    """All that `parlor verify-indexes` prints."""

    server: str
    indexes: list[IndexState]
    plans: list[PlanCheck]

    @property
    def ok(self) -> bool:
        """Whether every index is present and every plan uses what it must."""
        return all(index.state == "present" for index in self.indexes) and all(plan.ok for plan in self.plans)

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON has it."""
        return {"ok": self.ok} | asdict(self)


@dataclass(frozen=True)
class _Found:
    name: str
    table: str
    columns: list[str]
    unique: bool
    size_bytes: int
    scans: int


def verify(database_url: str) -> IndexReport:
    """Return the state of the 15 indexes and the plans of the statements; runs none of them.

    The plans are those of the seed's data set, vacuumed and analyzed: without it they say little.
    """
    with psycopg.connect(split_pool_parameters(database_url)[0]) as conn:
        conn.read_only = True
        found = {index.name: index for index in _indexes(conn)}
        proofs = [_check(conn, proof, proof.indexes[0]) for proof in PROOFS]
        queries = [_check(conn, query) for query in (*QUERIES, *BATCHED, *BOOKING, *MESSAGING)]
        version = conn.info.server_version
    server = f"PostgreSQL {version // 10000}.{version % 10000}"
    return IndexReport(server, [_state(index, found) for index in INDEXES], proofs + queries)


def _indexes(conn: psycopg.Connection) -> list[_Found]:
    query = """
        SELECT relation.relname AS name, index.indrelid::regclass::text AS table, index.indisunique AS unique,
            pg_relation_size(index.indexrelid) AS size_bytes, coalesce(statistics.idx_scan, 0) AS scans,
            array(SELECT pg_get_indexdef(index.indexrelid, place, true)
                  FROM generate_series(1, index.indnkeyatts) AS place ORDER BY place) AS columns
        FROM pg_index AS index
        JOIN pg_class AS relation ON relation.oid = index.indexrelid
        LEFT JOIN pg_stat_user_indexes AS statistics USING (indexrelid)
        WHERE relation.relname = ANY(%s) AND pg_table_is_visible(relation.oid)
            AND index.indisvalid AND index.indpred IS NULL"""
    with conn.cursor(row_factory=class_row(_Found)) as cursor:
        return cursor.execute(query, [[index.name for index in INDEXES]]).fetchall()


def _state(index: Index, found: Mapping[str, _Found]) -> IndexState:
    if not (has := found.get(index.name)):
        return IndexState(index.name, index.table, index.columns, 0, 0, "missing")
    columns = tuple(has.columns)
    same = (has.table, columns, has.unique) == (index.table, index.columns, index.unique)
    return IndexState(has.name, has.table, columns, has.size_bytes, has.scans, "present" if same else "differs")


def _check(conn: psycopg.Connection, statement: Statement, proves: str | None = None) -> PlanCheck:
    row = conn.execute(f"EXPLAIN (FORMAT JSON) {statement.sql}".encode()).fetchone()
    nodes = list(_nodes(row[0][0]["Plan"])) if row else []
    used = {node["Index Name"] for node in nodes if "Index Name" in node}
    walked = sorted({node["Relation Name"] for node in nodes if node["Node Type"] == "Seq Scan"} & TABLES)
    missed = [name for name in statement.indexes if name not in used]
    scans = tuple(dict.fromkeys(filter(None, map(_scan, nodes))))
    ok = bool(statement.credited) or not (missed or walked)
    verdict = _verdict(statement, missed, walked, used)
    return PlanCheck(statement.serves, proves, statement.sql, statement.indexes, scans, ok, verdict)


def _verdict(statement: Statement, missed: list[str], walked: list[str], used: set[str]) -> str:
    if walked:
        return f"scans all of {', '.join(walked)}"
    if statement.credited:
        return f"better served by {', '.join(sorted(used))} than by {statement.credited}"
    return f"does not use {', '.join(missed)}" if missed else "on its index"


def _nodes(plan: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from _nodes(child)


def _scan(node: Mapping[str, Any]) -> str | None:
    if index := node.get("Index Name"):
        backward = " Backward" if node.get("Scan Direction") == "Backward" else ""
        return f"{node['Node Type']}{backward} using {index}"
    return f"Seq Scan on {node['Relation Name']}" if node["Node Type"] == "Seq Scan" else None


def tables(report: IndexReport) -> Group:
    """Return the report for a terminal."""
    indexes = Table("index", "table", "columns", "size", "scans", "state", title=f"The 15 indexes, {report.server}")
    for index in report.indexes:
        size = f"{index.size_bytes // 1024:,} kB"
        indexes.add_row(index.name, index.table, ", ".join(index.columns), size, f"{index.scans:,}", index.state)
    plans = Table("statement", "plan", "verdict", title="Plans", show_lines=True)
    for plan in report.plans:
        name = f"{plan.proves}: {plan.serves}" if plan.proves else plan.serves
        plans.add_row(escape(name), "\n".join(plan.scans), plan.verdict, style=None if plan.ok else "red")
    proved = sum(plan.ok for plan in report.plans if plan.proves)
    present = sum(index.state == "present" for index in report.indexes)
    return Group(indexes, plans, f"{present} of {len(INDEXES)} indexes present, {proved} of {len(PROOFS)} proven")


def markdown(report: IndexReport) -> str:
    """Return the report's statements and plans as a section of docs/performance.md."""
    proofs = [_section(plan, plan.proves, f"{plan.serves}.") for plan in report.plans if plan.proves]
    others = [_section(plan, plan.serves, "") for plan in report.plans if not plan.proves]
    return _MARKDOWN.format(server=report.server, proofs="".join(proofs), others="".join(others))


def _section(plan: PlanCheck, title: str, text: str) -> str:
    lines = [f"### {title}", *([text] if text else []), f"```sql\n{plan.sql}\n```"]
    return "\n\n".join([*lines, f"Plan: {'; '.join(plan.scans)} ({plan.verdict})."]) + "\n\n"


_MARKDOWN = """\
## The 15 indexes

Each has one statement that proves it: on the seed's data set, at scale 1 and at scale 20, its plan uses that index and
scans no table. Salon, range and ids stand in the statement. `parlor verify-indexes` shows the plans of a running
database; the plans here are those of {server}, written by `parlor verify-indexes --markdown`.

{proofs}## QueryStats that share the indexes

The report's other plans, and RPCs whose plan is not obvious. The report credits direction statistics to
`idx_messages_direction_salon`. That index has no time: for the statistics of a period, and for the newest messages of
one direction, Postgres rightly picks `idx_messages_salon_created`, and the RPCs are not bent to avoid it.
`idx_messages_direction_salon` counts a salon's messages by direction over all time, without reading the table.

{others}"""
