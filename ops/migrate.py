"""Bring a database up to date: the services' logins, then the numbered files of migrations/.

yoyo keeps the record of what has run. Its own lock is a row, which a killed run leaves behind for ever; ours is
Postgres's, which ends with its connection.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from yoyo import read_migrations
from yoyo.backends.core.postgresql import PostgresqlPsycopgBackend
from yoyo.connections import DatabaseURI
from yoyo.migrations import default_migration_table

from libs.db.settings import split_pool_parameters

MIGRATIONS = Path(__file__).parent.parent / "migrations"
ROLES = ("parlor_booking", "parlor_messaging", "parlor_stats")
ATTEMPTS = 20

# Roles belong to the whole cluster: another database's migration may make them at the same moment.
CREATE_ROLE = """
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = {name}) THEN
        CREATE ROLE {role} LOGIN;
    END IF;
EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
END $$
"""
# By default half of all connections: a login that leaks connections, or is stolen, leaves room for the others.
SET_CONNECTION_LIMIT = """
DO $$
DECLARE
    most constant int := coalesce({limit}, (
        SELECT (sum(setting::int) FILTER (WHERE name = 'max_connections')
            - sum(setting::int) FILTER (WHERE name <> 'max_connections')) / 2 FROM pg_settings
        WHERE name IN ('max_connections', 'superuser_reserved_connections', 'reserved_connections')
    ));
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = {name} AND rolconnlimit = most) THEN
        EXECUTE format('ALTER ROLE %I CONNECTION LIMIT %s', {name}, most);
    END IF;
END $$
"""
# Database privileges are not copied with a template or restored by pg_restore, so each run sets them.
CLOSE_DATABASE = """
DO $$ BEGIN
    IF has_database_privilege('public', current_database(), 'TEMPORARY') THEN
        EXECUTE format('REVOKE TEMPORARY ON DATABASE %I FROM PUBLIC', current_database());
    END IF;
END $$
"""
SET_READ_ONLY = """
DO $$ BEGIN
    IF NOT EXISTS (
        SELECT FROM pg_roles WHERE rolname = 'parlor_stats' AND 'default_transaction_read_only=on' = ANY (rolconfig)
    ) THEN
        ALTER ROLE parlor_stats SET default_transaction_read_only = on;
    END IF;
END $$
"""


def migrate(
    database_url: str, passwords: Mapping[str, str] | None = None, connection_limit: int | None = None
) -> list[str]:
    """Create what is missing and return the ids of the migrations applied now, oldest first; [] if there was nothing.

    Safe to run twice, at once too: the second waits for the first. `passwords` are set by role, each time, and so is
    `connection_limit`, the most connections of a login; by default it is half of what Postgres allows now.
    Needs a login that owns the database and may create roles. Raises psycopg.Error.
    """
    url, _ = split_pool_parameters(database_url)
    with exclusive(url) as connection:
        for attempt in range(ATTEMPTS):
            try:
                prepare_roles(connection, passwords or {}, connection_limit)
                break
            except psycopg.errors.InternalError_:  # "tuple concurrently updated", by another database's migration
                if attempt == ATTEMPTS - 1:
                    raise
                time.sleep(0.05)
        return apply(url)


@contextmanager
def exclusive(url: str) -> Iterator[psycopg.Connection]:
    """Hold the lock of all migrations of this database; wait for it as long as it takes."""
    with psycopg.connect(url, autocommit=True, application_name="parlor migrate") as connection:
        connection.execute("SELECT pg_advisory_lock(hashtext('parlor migrate'))")
        yield connection


def prepare_roles(
    connection: psycopg.Connection, passwords: Mapping[str, str], connection_limit: int | None = None
) -> None:
    """Create the services' logins, which may connect to this database, and make no temporary tables there."""
    for name in ROLES:
        role = sql.Identifier(name)
        connection.execute(sql.SQL(CREATE_ROLE).format(name=sql.Literal(name), role=role))
        database = sql.Identifier(connection.info.dbname)
        connection.execute(sql.SQL("GRANT CONNECT ON DATABASE {} TO {}").format(database, role))
        if password := passwords.get(name):
            connection.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(role, sql.Literal(password)))
        limit = {"name": sql.Literal(name), "limit": sql.Literal(connection_limit)}
        connection.execute(sql.SQL(SET_CONNECTION_LIMIT).format(**limit))
    connection.execute(CLOSE_DATABASE)
    connection.execute(SET_READ_ONLY)


def apply(url: str) -> list[str]:
    """Run what has not run, each file in one transaction with its own record; the caller holds the lock.

    A file that begins with `-- transactional: false` runs outside one, and must bear being run again.
    """
    # Not by yoyo's own reading of the URL, which knows no `host=... dbname=...`.
    parameters = conninfo_to_dict(url)
    database = parameters.pop("dbname", None)
    uri = DatabaseURI("postgresql+psycopg", None, None, None, None, database, parameters)
    with PostgresqlPsycopgBackend(uri, default_migration_table) as backend:
        backend.init_database()
        backend.break_lock()
        pending = backend.to_apply(read_migrations(str(MIGRATIONS)))
        for migration in pending:
            migration.load()
            if not migration.use_transactions:
                backend.apply_one(migration)
                continue
            with backend.transaction():
                migration.process_steps(backend, "apply")
                backend.mark_one(migration)
        return [migration.id for migration in pending]


def passwords(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the passwords that the services' own URLs carry for their logins: BOOKING_DATABASE_URL and so on."""
    found = {}
    for role in ROLES:
        url, _ = split_pool_parameters(environment.get(f"{role.removeprefix('parlor_').upper()}_DATABASE_URL", ""))
        parameters = conninfo_to_dict(url)
        if parameters.get("user") == role and parameters.get("password"):
            found[role] = str(parameters["password"])
    return found


def service_url(database_url: str, role: str) -> str:
    """Return the owner's URL with a service's login instead of the owner's, without a password."""
    parts = urlsplit(database_url)
    if not parts.scheme.startswith("postgres"):
        parameters = conninfo_to_dict(database_url, user=role)
        return make_conninfo("", **{name: value for name, value in parameters.items() if name != "password"})
    return urlunsplit(parts._replace(netloc=f"{role}@{parts.netloc.rpartition('@')[2]}"))
