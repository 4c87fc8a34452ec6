"""The system that the report measures: servers, a copy of the database for "before", and the services."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
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

UNSAFE = {"fsync": "off", "full_page_writes": "off"}  # no figure is about a write


@dataclass(frozen=True)
class System:
    """Where everything is; `ports` are the services', `ops_ports` those of their OpsServices."""

    database_url: str
    copy_url: str
    redis_url: str
    ports: dict[str, int]
    ops_ports: dict[str, int]


@contextmanager
def system(scale: int, progress: Progress) -> Iterator[System]:
    """Run PostgreSQL, Valkey and the three services with the sample data. Removes everything at the end."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="parlor-report-", ignore_cleanup_errors=True)))
        folder.chmod(0o711)  # PostgreSQL may have to run as nobody
        started = progress.add_task("servers, data and services", total=3)
        postgres = stack.enter_context(Postgres(folder / "postgres", settings=UNSAFE))
        valkey = stack.enter_context(Valkey(data=folder / "valkey"))
        progress.advance(started)
        migrate(postgres.dsn, {})
        load_sample_data(postgres.dsn, scale, progress=progress)
        copy_url = copy(postgres.dsn)
        progress.advance(started)
        ports = {name: free_port() for name in SERVICES}
        ops_port = free_ports(len(SERVICES))[0]
        ops_ports = {name: ops_port + offset for offset, name in enumerate(SERVICES)}
        plan = Plan(folder, None, True, scale, ports, free_ports(len(SERVICES))[0], ops_port=ops_port)
        settings = environments(plan, postgres.dsn, valkey.url)
        for name, own in settings.items():  # ignore database URLs in the environment
            own[f"{name.upper()}_DATABASE_URL"] = service_url(postgres.dsn, f"parlor_{name}")
            own["REDIS_REFILL"] = "0"  # so that a first read is a miss
        start_services(settings, plan, folder, stack)
        progress.advance(started)
        yield System(postgres.dsn, copy_url, valkey.url, ports, ops_ports)


def copy(database_url: str, name: str = "before") -> str:
    """Copy a database that has no connections; return the owner's URL of the copy.

    The copy has the predecessor's indexes and none that were added later, which belong to "after".
    """
    parts = urlsplit(database_url)
    admin, copied = (urlunsplit(parts._replace(path=f"/{database}")) for database in ("postgres", name))
    template = sql.Identifier(parts.path.removeprefix("/"))
    with psycopg.connect(admin, autocommit=True) as conn:
        conn.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), template))
    with psycopg.connect(copied, autocommit=True) as conn:
        found = conn.execute(
            "SELECT relation.relname FROM pg_index JOIN pg_class AS relation ON relation.oid = indexrelid"
            " WHERE indrelid::regclass::text = ANY(%s)"
            " AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid)",
            [list(TABLES)],
        ).fetchall()
        for (index,) in found:
            conn.execute(sql.SQL("DROP INDEX {}").format(sql.Identifier(index)))
        for wanted in INDEXES:
            if not wanted.unique:
                names = map(sql.Identifier, (wanted.name, wanted.table))
                columns = sql.SQL(", ").join(map(sql.Identifier, wanted.columns))
                conn.execute(sql.SQL("CREATE INDEX {} ON {} ({})").format(*names, columns))
    return copied


@contextmanager
def without(database_url: str, index: str) -> Iterator[None]:
    """Drop an index, or its unique constraint, and create it again at the end. An empty name drops nothing."""
    if not index:
        yield
        return
    with psycopg.connect(database_url, autocommit=True) as conn:
        query = """
            SELECT coalesce('ALTER TABLE ' || conrelid::regclass || ' DROP CONSTRAINT ' || conname,
                            'DROP INDEX ' || indexrelid::regclass),
                   coalesce('ALTER TABLE ' || conrelid::regclass || ' ADD CONSTRAINT ' || conname || ' '
                            || pg_get_constraintdef(pg_constraint.oid), pg_get_indexdef(indexrelid))
            FROM pg_index LEFT JOIN pg_constraint ON conindid = indexrelid AND contype = 'u'
            WHERE indexrelid = %s::regclass"""
        [(drop, create)] = conn.execute(query, [index]).fetchall()
        conn.execute(drop)
        try:
            yield
        finally:
            conn.execute(create)
