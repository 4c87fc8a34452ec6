"""Checks of Postgres' own statistics. Each reads as the owner, and changes nothing."""

from collections.abc import Callable, Iterator
from importlib.resources import files
from typing import Any, LiteralString

import psycopg
from psycopg.rows import dict_row

from ops.doctor.findings import Finding, Limits
from ops.indexes import index_states

Check = Callable[[psycopg.Connection, Limits], Iterator[Finding]]
MEGABYTE = 1024 * 1024


def missing_indexes(conn: psycopg.Connection, limits: Limits) -> Iterator[Finding]:
    """Yield those of the 15 indexes that are missing or not as the migrations create them, and invalid indexes."""
    for index in index_states(conn):
        if index.state != "present":
            yield Finding("index", index.name, f"{index.state} on {index.table}", "parlor migrate")
    query = "SELECT indexrelid::regclass::text AS name FROM pg_index WHERE NOT indisvalid"
    for row in _rows(conn, query):
        name = row["name"]
        left = name.strip('"').endswith(("_ccnew", "_ccold"))  # by a REINDEX CONCURRENTLY that was ended
        remedy = f"DROP INDEX CONCURRENTLY {name}" if left else f"REINDEX INDEX CONCURRENTLY {name}"
        yield Finding("index", name, "invalid: its creation failed", remedy)


def unused_indexes(conn: psycopg.Connection, limits: Limits) -> Iterator[Finding]:
    """Yield indexes that no statement used while their tables were read often.

    Indexes of the migrations are left out: `parlor verify-indexes` checks what each of them is for.
    """
    query = """
        SELECT i.indexrelname AS name, coalesce(parent.relname, i.indexrelname) AS made_as, i.relname AS table,
            pg_relation_size(i.indexrelid) AS bytes, coalesce(t.idx_scan, 0) + t.seq_scan AS reads
        FROM pg_stat_user_indexes AS i
        JOIN pg_stat_user_tables AS t USING (relid)
        JOIN pg_index AS x ON x.indexrelid = i.indexrelid
        LEFT JOIN pg_inherits ON inhrelid = i.indexrelid
        LEFT JOIN pg_class AS parent ON parent.oid = inhparent
        WHERE i.idx_scan = 0 AND NOT x.indisunique AND NOT x.indisexclusion
            AND coalesce(t.idx_scan, 0) + t.seq_scan >= %(fewest_reads_of_table)s"""
    ours = _migrations()
    for row in _rows(conn, query, limits):
        if row["made_as"] not in ours:
            seen = f"no use in {row['reads']:,} reads of {row['table']}, {_size(row['bytes'])}"
            yield Finding("unused index", row["name"], seen, f"DROP INDEX CONCURRENTLY {row['name']}")


def dead_rows(conn: psycopg.Connection, limits: Limits) -> Iterator[Finding]:
    """Yield tables that need VACUUM: updates and deletes left more dead rows than autovacuum removed."""
    query = """
        SELECT relname AS name, n_dead_tup AS dead, n_dead_tup::float8 / (n_live_tup + n_dead_tup) AS share
        FROM pg_stat_user_tables
        WHERE n_dead_tup >= %(fewest_dead_rows)s AND n_dead_tup > %(dead_rows)s * (n_live_tup + n_dead_tup)"""
    for row in _rows(conn, query, limits):
        seen = f"{row['dead']:,} dead rows, {row['share']:.0%}"
        yield Finding("dead rows", row["name"], seen, f"VACUUM (ANALYZE) {row['name']}")


def old_statistics(conn: psycopg.Connection, limits: Limits) -> Iterator[Finding]:
    """Yield tables that need ANALYZE: the planner knows too little of their rows."""
    query = """
        SELECT relname AS name, n_mod_since_analyze AS changed, n_live_tup AS live
        FROM pg_stat_user_tables
        WHERE n_mod_since_analyze > greatest(%(fewest_dead_rows)s, %(changed_rows)s * n_live_tup)"""
    for row in _rows(conn, query, limits):
        seen = f"{row['changed']:,} rows changed since the last ANALYZE, of {row['live']:,}"
        yield Finding("planner statistics", row["name"], seen, f"ANALYZE {row['name']}")


def bloat(conn: psycopg.Connection, limits: Limits) -> Iterator[Finding]:
    """Yield tables and indexes of which most is empty space: estimates from the rows and the columns' mean widths.

    The extension pgstattuple measures it exactly: `SELECT avg_leaf_density FROM pgstatindex(NAME)`. Btree indexes and
    tables only; columns that were never analyzed count as 0 bytes wide, so their tables are left out.
    """
    query = """
        WITH widths AS (
            SELECT a.attrelid, a.attnum, s.avg_width * (1 - s.null_frac) AS width
            FROM pg_attribute AS a
            JOIN pg_class AS c ON c.oid = a.attrelid
            JOIN pg_stats AS s ON s.schemaname = c.relnamespace::regnamespace::text
                AND s.tablename = c.relname AND s.attname = a.attname),
        needed AS (
            SELECT c.oid, 'table' AS kind, c.reltuples * (28 + sum(w.width)) / 0.9 AS bytes
            FROM pg_class AS c
            JOIN widths AS w ON w.attrelid = c.oid
            WHERE c.relkind = 'r' AND c.reltuples > 0
            GROUP BY c.oid
            UNION ALL
            SELECT c.oid, 'index', c.reltuples * (16 + sum(w.width)) / 0.7
            FROM pg_index AS i
            JOIN pg_class AS c ON c.oid = i.indexrelid
            JOIN pg_am ON pg_am.oid = c.relam AND pg_am.amname = 'btree'
            JOIN widths AS w ON w.attrelid = i.indrelid AND w.attnum = ANY(i.indkey)
            WHERE c.reltuples > 0 AND 0 <> ALL(i.indkey)
            GROUP BY c.oid)
        SELECT n.oid::regclass::text AS name, n.kind, pg_relation_size(n.oid) AS bytes,
            1 - n.bytes / pg_relation_size(n.oid) AS share
        FROM needed AS n
        JOIN pg_class AS c USING (oid)
        WHERE c.relnamespace = 'public'::regnamespace AND pg_relation_size(n.oid) >= %(smallest_bloat)s
            AND n.bytes < (1 - %(bloat)s) * pg_relation_size(n.oid)"""
    for row in _rows(conn, query, limits):
        name = row["name"]
        remedy = f"REINDEX INDEX CONCURRENTLY {name}" if row["kind"] == "index" else f"pg_repack --table {name}"
        seen = f"about {row['share']:.0%} of {_size(row['bytes'])} is empty"
        yield Finding(f"{row['kind']} bloat", name, seen, remedy)


def slow_statements(conn: psycopg.Connection, limits: Limits) -> Iterator[Finding]:
    """Yield statements whose mean time is long. Raises: LookupError without the extension pg_stat_statements."""
    if not _rows(conn, "SELECT FROM pg_extension WHERE extname = 'pg_stat_statements'"):
        raise LookupError("slow statements: the extension pg_stat_statements is not installed")
    query = """
        SELECT left(regexp_replace(query, '\\s+', ' ', 'g'), 120) AS text, calls, mean_exec_time AS ms
        FROM pg_stat_statements
        WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
            AND calls >= %(fewest_calls)s AND mean_exec_time > 1000 * %(slow_statement)s
        ORDER BY mean_exec_time DESC
        LIMIT 10"""
    for row in _rows(conn, query, limits):
        seen = f"{row['ms']:,.0f} ms on average in {row['calls']:,} calls"
        yield Finding("slow statement", row["text"], seen, "parlor verify-indexes, then ANALYZE its tables")


def old_transactions(conn: psycopg.Connection, limits: Limits) -> Iterator[Finding]:
    """Yield transactions open for long: VACUUM removes nothing newer, and feeds of changes wait for writers.

    Writers of the server's other databases count, too; VACUUM itself does not.
    """
    query = """
        SELECT pid, coalesce(usename, backend_type) AS login, state,
            extract(epoch FROM now() - xact_start)::float8 AS age
        FROM pg_stat_activity
        WHERE (datname = current_database() OR backend_xid IS NOT NULL) AND pid <> pg_backend_pid()
            AND backend_type <> 'autovacuum worker' AND pid NOT IN (SELECT pid FROM pg_stat_progress_vacuum)
            AND xact_start < now() - make_interval(secs => %(transaction_age)s)
        ORDER BY xact_start"""
    for row in _rows(conn, query, limits):
        seen = f"{row['state']}, in one transaction for {row['age']:,.0f} s"
        yield Finding("old transaction", f"{row['login']} (pid {row['pid']})", seen, _terminate(row["pid"]))
    query = """
        SELECT gid, extract(epoch FROM now() - prepared)::float8 AS age
        FROM pg_prepared_xacts
        WHERE database = current_database() AND prepared < now() - make_interval(secs => %(transaction_age)s)"""
    for row in _rows(conn, query, limits):
        seen = f"prepared {row['age']:,.0f} s ago and never committed"
        yield Finding("old transaction", row["gid"], seen, f"ROLLBACK PREPARED '{row['gid']}'")


def replicas(conn: psycopg.Connection, limits: Limits) -> Iterator[Finding]:
    """Yield standbys that are behind, and replication slots that nobody reads: they keep WAL until the disk is full."""
    query = """
        SELECT coalesce(nullif(application_name, ''), client_addr::text, 'local') AS name, state,
            extract(epoch FROM greatest(write_lag, flush_lag, replay_lag))::float8 AS lag,
            pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn) AS bytes
        FROM pg_stat_replication
        WHERE greatest(write_lag, flush_lag, replay_lag) > make_interval(secs => %(replica_lag)s)"""
    remedy = "on the standby: SELECT pg_wal_replay_resume(); if it replays, look at its disk and its long queries"
    for row in _rows(conn, query, limits):
        seen = f"{row['state']}, behind by {row['lag']:,.0f} s, {_size(row['bytes'])} of WAL"
        yield Finding("replica lag", row["name"], seen, remedy)
    query = """
        SELECT slot_name AS name, pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn) AS bytes
        FROM pg_replication_slots
        WHERE NOT active AND restart_lsn IS NOT NULL"""
    for row in _rows(conn, query):
        seen = f"not in use, keeps {_size(row['bytes'])} of WAL"
        yield Finding("replication slot", row["name"], seen, f"SELECT pg_drop_replication_slot('{row['name']}')")


def capacity(conn: psycopg.Connection, limits: Limits) -> Iterator[Finding]:
    """Yield what Postgres will run out of: connections, transaction IDs."""
    query = """
        SELECT count(*) AS used, current_setting('max_connections')::int AS most
        FROM pg_stat_activity
        WHERE backend_type = 'client backend'
        HAVING count(*) > %(connections)s * current_setting('max_connections')::int"""
    for row in _rows(conn, query, limits):
        seen = f"{row['used']} of {row['most']}"
        yield Finding("connections", "max_connections", seen, "raise max_connections, or put PgBouncer in front")
    query = """
        SELECT age(datfrozenxid) AS age
        FROM pg_database
        WHERE datname = current_database() AND age(datfrozenxid) > %(transaction_ids)s * 2147483648"""
    for row in _rows(conn, query, limits):
        seen = f"{row['age']:,} since the oldest frozen row"
        yield Finding("transaction IDs", "datfrozenxid", seen, "VACUUM (FREEZE); end old transactions first")


def outbox(conn: psycopg.Connection, limits: Limits) -> Iterator[Finding]:
    """Yield a long invalidation outbox: no service takes its rows to Redis."""
    query = "SELECT count(*) AS count FROM cache_outbox HAVING count(*) > %(outbox_rows)s"
    for row in _rows(conn, query, limits):
        remedy = "start the services; if they run, look for `redis away` in their logs"
        yield Finding("invalidation outbox", "cache_outbox", f"{row['count']:,} invalidations wait", remedy)


def unsealed_hours(conn: psycopg.Connection, limits: Limits) -> Iterator[Finding]:
    """Yield hourly sums that end too long ago: statistics read all later messages row by row."""
    query = """
        SELECT sealed_to > '-infinity' AS sealed,
            to_char(sealed_to AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI') AS sealed_to
        FROM rollups
        WHERE sealed_to < now() - %(unsealed)s * interval '1 second'
            AND (sealed_to > '-infinity' OR EXISTS (SELECT FROM messages))"""
    for row in _rows(conn, query, limits):
        seen = f"summed up to {row['sealed_to']} UTC" if row["sealed"] else "nothing is summed"
        yield Finding("unsealed hours", "rollups", seen, "parlor maintain; it says what is in the way")


CHECKS: tuple[Check, ...] = (
    missing_indexes,
    unused_indexes,
    dead_rows,
    old_statistics,
    bloat,
    slow_statements,
    old_transactions,
    replicas,
    capacity,
    outbox,
    unsealed_hours,
)


def _rows(conn: psycopg.Connection, query: LiteralString, limits: Limits | None = None) -> list[dict[str, Any]]:
    with conn.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(query, None if limits is None else vars(limits)).fetchall()


def _terminate(pid: int) -> str:
    return f"SELECT pg_terminate_backend({pid})"


def _size(amount: Any) -> str:
    return f"{float(amount) / MEGABYTE:,.1f} MB"


def _migrations() -> str:
    return "\n".join(file.read_text() for file in files("migrations").iterdir() if file.name.endswith(".sql"))
