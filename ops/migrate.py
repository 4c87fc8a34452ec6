"""Bring a database up to date: the services' logins, then the numbered files of migrations/.

yoyo records the applied files. Its lock is a row, which a killed run leaves behind forever; ours is an advisory lock,
which ends with its transaction, also behind a pooler.
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
LOCK_SECONDS = 60.0
LOCK_POLL_SECONDS = 0.1

# No service sets these for its sessions: behind a pooler they would be those of another client (decision 0059).
ROLE_DEFAULTS = {
    "statement_timeout": "10s",
    "lock_timeout": "2s",
    "timezone": "UTC",
    "plan_cache_mode": "force_generic_plan",
}
LOCK_NAME = "hashtext('parlor migrate')"
LOCK_HOLDER = f"""
    SELECT format('%s (process %s%s, since %s)', coalesce(nullif(application_name, ''), usename), pid,
        ' on ' || host(client_addr), to_char(coalesce(xact_start, backend_start), 'YYYY-MM-DD HH24:MI:SS TZ'))
    FROM pg_locks JOIN pg_stat_activity USING (pid)
    WHERE locktype = 'advisory' AND granted AND objsubid = 1 AND pg_locks.database = pg_stat_activity.datid
        AND datname = current_database() AND (classid::bigint << 32 | objid::bigint) = {LOCK_NAME}"""  # noqa: S608

# Roles belong to the whole cluster: a concurrent migration of another database may create them.
CREATE_ROLE = """
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = {name}) THEN
        CREATE ROLE {role} LOGIN;
    END IF;
EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
END $$
"""
# By default half of all connections: a login that leaks connections, or is stolen, cannot block the others.
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
    IF has_schema_privilege('public', current_schema(), 'CREATE') THEN
        EXECUTE format('REVOKE CREATE ON SCHEMA %I FROM PUBLIC', current_schema());
    END IF;
END $$
"""
# An extension may be created at any time, usually by a superuser, who alone can close it.
CLOSE_STATEMENTS = """
DO $$
DECLARE
    closed text;
BEGIN
    FOR closed IN
        SELECT CASE classid WHEN 'pg_class'::regclass THEN format('TABLE %s', objid::regclass)
            ELSE format('FUNCTION %s', objid::regprocedure) END
        FROM pg_depend JOIN pg_extension ON pg_extension.oid = refobjid
        WHERE extname = 'pg_stat_statements' AND deptype = 'e'
            AND classid IN ('pg_class'::regclass, 'pg_proc'::regclass)
    LOOP
        EXECUTE format('REVOKE ALL ON %s FROM PUBLIC', closed);
    END LOOP;
EXCEPTION WHEN insufficient_privilege THEN
    RAISE NOTICE 'pg_stat_statements can only be closed by its owner: %', SQLERRM;
END $$
"""
SET_DEFAULT = """
DO $$ BEGIN
    IF NOT EXISTS (
        SELECT FROM pg_roles, unnest(rolconfig) AS config
        WHERE rolname = {name} AND lower(split_part(config, '=', 1)) = {setting}
    ) THEN
        ALTER ROLE {role} SET {parameter} = {value};
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


class MigrationBusy(Exception):
    """Another run did not end in time; the message names its session."""


def migrate(
    database_url: str, passwords: Mapping[str, str] | None = None, connection_limit: int | None = None
) -> list[str]:
    """Apply the missing migrations, and return their IDs, oldest first; [] if there were none.

    Safe to run twice, also concurrently: the second run waits for the first. Each run sets `passwords` by role and
    `connection_limit`, the most connections of a login; by default half of those that Postgres allows now.
    Needs a login that owns the database and may create roles. Raises psycopg.Error; MigrationBusy after a minute;
    ValueError if the URL has an unknown parameter.
    """
    url, _ = split_pool_parameters(database_url)
    with exclusive(url), _connect(url, autocommit=True) as connection:
        for attempt in range(ATTEMPTS):
            try:
                prepare_roles(connection, passwords or {}, connection_limit)
                break
            except psycopg.errors.InternalError_:  # "tuple concurrently updated" by the migration of another database
                if attempt == ATTEMPTS - 1:
                    raise
                time.sleep(0.05)
        return apply(url)


def _connect(url: str, *, autocommit: bool, name: str = "parlor migrate") -> psycopg.Connection:
    # Nothing is prepared: behind a pooler the next statement may go to another server.
    return psycopg.connect(url, autocommit=autocommit, prepare_threshold=None, application_name=name)


@contextmanager
def exclusive(url: str, seconds: float = LOCK_SECONDS, name: str = "parlor migrate") -> Iterator[None]:
    """Hold the migration lock of this database, in a transaction that does nothing else; `name` is its holder's.

    Raises: MigrationBusy if another run has not ended after `seconds`.
    """
    with _connect(url, autocommit=False, name=name) as connection:
        deadline = time.monotonic() + seconds
        while not _try_lock(connection):
            # CREATE INDEX CONCURRENTLY waits for the end of each transaction that it saw with a snapshot.
            connection.rollback()
            if time.monotonic() > deadline:
                holders = ", ".join(name for (name,) in connection.execute(LOCK_HOLDER.encode()))
                raise MigrationBusy(f"another migration of this database goes on: {holders or 'it has just ended'}")
            time.sleep(LOCK_POLL_SECONDS)
        yield


def _try_lock(connection: psycopg.Connection) -> bool:
    connection.execute(b"SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0")
    [(locked,)] = connection.execute(f"SELECT pg_try_advisory_xact_lock({LOCK_NAME})".encode()).fetchall()
    return bool(locked)


def prepare_roles(
    connection: psycopg.Connection, passwords: Mapping[str, str], connection_limit: int | None = None
) -> None:
    """Create the services' logins, which may connect to this database but not create temporary tables.

    Defaults that an operator has set for a login are kept.
    """
    [(schema,)] = connection.execute("SELECT current_schema()").fetchall()
    defaults = {**ROLE_DEFAULTS, "search_path": str(schema)}
    for name in ROLES:
        role = sql.Identifier(name)
        connection.execute(sql.SQL(CREATE_ROLE).format(name=sql.Literal(name), role=role))
        database = sql.Identifier(connection.info.dbname)
        connection.execute(sql.SQL("GRANT CONNECT ON DATABASE {} TO {}").format(database, role))
        if password := passwords.get(name):
            connection.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(role, sql.Literal(password)))
        limit = {"name": sql.Literal(name), "limit": sql.Literal(connection_limit)}
        connection.execute(sql.SQL(SET_CONNECTION_LIMIT).format(**limit))
        for setting, value in defaults.items():
            names = {"name": sql.Literal(name), "setting": sql.Literal(setting), "role": role}
            parameter = {"parameter": sql.Identifier(setting), "value": sql.Literal(value)}
            connection.execute(sql.SQL(SET_DEFAULT).format(**names, **parameter))
    connection.execute(CLOSE_DATABASE)
    connection.execute(CLOSE_STATEMENTS)
    connection.execute(SET_READ_ONLY)


def apply(url: str) -> list[str]:
    """Apply the missing files, each in one transaction with its record; the caller holds the lock.

    A file that begins with `-- transactional: false` runs outside of a transaction, and must be repeatable.
    """
    # yoyo's parser does not support `host=... dbname=...`.
    parameters = conninfo_to_dict(url)
    database = parameters.pop("dbname", None)
    uri = DatabaseURI("postgresql+psycopg", None, None, None, None, database, parameters)
    with PostgresqlPsycopgBackend(uri, default_migration_table) as backend:
        backend.connection.prepare_threshold = None
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
    """Return the passwords of the logins in the services' URLs: BOOKING_DATABASE_URL and so on."""
    found = {}
    for role in ROLES:
        url, _ = split_pool_parameters(environment.get(f"{role.removeprefix('parlor_').upper()}_DATABASE_URL", ""))
        parameters = conninfo_to_dict(url)
        if parameters.get("user") == role and parameters.get("password"):
            found[role] = str(parameters["password"])
    return found


def service_url(database_url: str, role: str) -> str:
    """Return the owner's URL with a service's login instead, and without a password."""
    parts = urlsplit(database_url)
    if not parts.scheme.startswith("postgres"):
        parameters = conninfo_to_dict(database_url, user=role)
        return make_conninfo("", **{name: value for name, value in parameters.items() if name != "password"})
    return urlunsplit(parts._replace(netloc=f"{role}@{parts.netloc.rpartition('@')[2]}"))
