"""The system that the report measures: servers, a copy of the database for "before", and the services."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql
from rich.progress import Progress

from ops.indexes import INDEXES, TABLES
from ops.migrate import migrate, service_url
from ops.process import free_port, free_ports
from ops.sample_data import load_sample_data
from ops.servers import Postgres, Valkey
from ops.up import SERVICES, Plan, environments, start_services

THROW_AWAY = {"fsync": "off", "full_page_writes": "off"}  # no figure is about a write
SLOW_MS = 100  # the seed: "Investigate queries > 100ms"


@dataclass(frozen=True)
class System:
    """Where everything is; `ports` are the services' own."""

    database_url: str
    copy_url: str
    redis_url: str
    ports: dict[str, int]


@contextmanager
def system(scale: int, progress: Progress) -> Iterator[System]:
    """Run a PostgreSQL, a Valkey and the three services over the seed's data set; nothing of it is left."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="parlor-report-", ignore_cleanup_errors=True)))
        folder.chmod(0o711)  # PostgreSQL may have to run as nobody
        started = progress.add_task("servers, data and services", total=3)
        postgres = stack.enter_context(Postgres(folder / "postgres", settings=THROW_AWAY))
        valkey = stack.enter_context(Valkey(data=folder / "valkey"))
        progress.advance(started)
        migrate(postgres.dsn, {})
        load_sample_data(postgres.dsn, scale, progress=progress)
        copy_url = copy(postgres.dsn)
        progress.advance(started)
        ports = {name: free_port() for name in SERVICES}
        plan = Plan(folder, None, True, scale, ports, free_ports(len(SERVICES))[0])
        settings = environments(plan, postgres.dsn, valkey.url)
        for name, own in settings.items():  # whatever this process has for services of its own
            own[f"{name.upper()}_DATABASE_URL"] = service_url(postgres.dsn, f"parlor_{name}")
            own["DB_SLOW_QUERY_THRESHOLD"] = str(SLOW_MS)
            own["REDIS_WARM"] = "0"  # a first read is one
        start_services(settings, plan, folder, stack)
        progress.advance(started)
        yield System(postgres.dsn, copy_url, valkey.url, ports)


def copy(database_url: str, name: str = "before") -> str:
    """Copy a database that nobody is connected to; return the owner's URL of the copy.

    It has the seed's indexes as the seed has them, and none that came later: those belong to "after".
    """
    parts = urlsplit(database_url)
    admin, copied = (urlunsplit(parts._replace(path=f"/{database}")) for database in ("postgres", name))
    names: dict[str, Any] = {"copy": sql.Identifier(name), "template": sql.Identifier(parts.path.removeprefix("/"))}
    with psycopg.connect(admin, autocommit=True) as conn:
        conn.execute(sql.SQL("CREATE DATABASE {copy} TEMPLATE {template}").format(**names))
    with psycopg.connect(copied, autocommit=True) as conn:
        found = conn.execute(
            "SELECT relation.relname FROM pg_index JOIN pg_class AS relation ON relation.oid = indexrelid"
            " WHERE indrelid::regclass::text = ANY(%s)"
            " AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid)",
            [list(TABLES)],
        ).fetchall()
        for (index,) in found:
            conn.execute(sql.SQL("DROP INDEX {}").format(sql.Identifier(index)))
        for index in INDEXES:
            if not index.unique:
                columns = sql.SQL(", ").join(map(sql.Identifier, index.columns))
                names = {"index": sql.Identifier(index.name), "table": sql.Identifier(index.table), "columns": columns}
                conn.execute(sql.SQL("CREATE INDEX {index} ON {table} ({columns})").format(**names))
    return copied


@contextmanager
def without(database_url: str, index: str) -> Iterator[None]:
    """Drop an index, or the unique constraint that it stands for, and make it again; "" drops nothing."""
    if not index:
        yield
        return
    with psycopg.connect(database_url, autocommit=True) as conn:
        row = conn.execute(
            "SELECT indrelid::regclass::text, pg_get_indexdef(indexrelid), pg_get_constraintdef(pg_constraint.oid)"
            " FROM pg_index LEFT JOIN pg_constraint ON conindid = indexrelid AND contype = 'u'"
            " WHERE indexrelid = %s::regclass",
            [index],
        ).fetchone()
        table, made, constraint = row or ("", "", None)
        names = {"table": sql.SQL(table), "index": sql.Identifier(index), "definition": sql.SQL(constraint or made)}
        if constraint:
            conn.execute(sql.SQL("ALTER TABLE {table} DROP CONSTRAINT {index}").format(**names))
            again = sql.SQL("ALTER TABLE {table} ADD CONSTRAINT {index} {definition}").format(**names)
        else:
            conn.execute(sql.SQL("DROP INDEX {index}").format(**names))
            again = sql.SQL("{definition}").format(**names)
        try:
            yield
        finally:
            conn.execute(again)


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
