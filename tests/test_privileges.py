"""Privileges of the services' logins beyond tables: built-in functions, columns, connections."""

import psycopg
import pytest
from psycopg import errors

from ops.migrate import migrate, service_url
from ops.servers import Postgres, postgres_url
from tests.test_ownership import ALLOWED, TABLES, login

COLUMNS = {
    "salons": "salon_id phone_number_id time_zone",
    "bookings": "salon_id start_ts created_at status",
    "messages": "salon_id created_at direction currency_code cost_micros counted",
    "conversations": "salon_id started_at",
    "ai_messages": "salon_id created_at model booking_code currency_code cost_micros prompt_tokens completion_tokens"
    " latency_ms",
}
SECRETS = [
    ("salons", "name"),
    ("bookings", "customer_phone"),
    ("bookings", "customer_name"),
    ("bookings", "notes"),
    ("messages", "phone_number"),
    ("messages", "content"),
    ("messages", "whatsapp_id"),
    ("messages", "search"),
    ("conversations", "phone_number"),
    ("conversations", "user_id"),
    ("conversations", "customer_name"),
    ("ai_messages", "content"),
]
DENIED = {
    "a temporary table": "CREATE TEMP TABLE mine (a int)",
    "a table": "CREATE TABLE mine (a int)",
    "a schema": "CREATE SCHEMA mine",
    "a function": "CREATE FUNCTION mine() RETURNS int LANGUAGE sql RETURN 1",
    "an extension": "CREATE EXTENSION dblink",
    "a large object": "SELECT lo_create(0)",
    "an old large object": "SELECT lo_creat(-1)",
    "a filled large object": "SELECT lo_from_bytea(0, 'x')",
    "a large object of a file": "SELECT lo_import('/etc/hostname')",
    "a large object to a file": "SELECT lo_export(1, '/tmp/mine')",
    "bytes of a large object": "SELECT lo_put(1, 0, 'x')",
    "the end of a large object": "SELECT lo_unlink(1)",
    "a lock for the session": "SELECT pg_advisory_lock(1)",
    "a lock of two numbers": "SELECT pg_advisory_lock(1, 1)",
    "a shared lock": "SELECT pg_advisory_lock_shared(1)",
    "a lock tried for": "SELECT pg_try_advisory_lock(1)",
    "a shared lock tried for": "SELECT pg_try_advisory_lock_shared(1)",
    "a program": "COPY (SELECT 1) TO PROGRAM 'true'",
    "a file": "COPY (SELECT 1) TO '/tmp/mine'",
    "a file's text": "SELECT pg_read_file('/etc/hostname')",
    "a folder": "SELECT pg_ls_dir('/')",
    "a table from a program": "COPY {own} FROM PROGRAM 'true'",
    "a table from a file": "COPY {own} FROM '/etc/hostname'",
    "a file's bytes": "SELECT pg_read_binary_file('/etc/hostname')",
    "a file's size": "SELECT pg_stat_file('/etc/hostname')",
    "the server's log": "SELECT pg_current_logfile()",
    "another role": "SET ROLE postgres",
    "another service's role": "SET ROLE {other}",
    "another service's session": "SET SESSION AUTHORIZATION {other}",
    "a role of Postgres's own": "SET ROLE pg_read_all_data",
    "a role": "CREATE ROLE mine",
    "its own rights": "ALTER ROLE {role} SUPERUSER",
    "its own limit": "ALTER ROLE {role} CONNECTION LIMIT 1000",
    "the settings": "ALTER SYSTEM SET work_mem = '1GB'",
    "a setting of the server's": "SET log_statement = 'all'",
    "the database": "ALTER DATABASE {database} CONNECTION LIMIT 1",
    "a reload": "SELECT pg_reload_conf()",
    "a lock of a table": "BEGIN; LOCK TABLE {foreign}",
    "passwords": "SELECT * FROM pg_authid",
    "the record of migrations": "SELECT * FROM _yoyo_migration",
    "another's statements": "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'postgres'",
}
OWN = {"booking": "bookings", "messaging": "messages", "stats": "cache_outbox"}
FOREIGN = {"booking": "messages", "messaging": "bookings", "stats": "messaging_requests"}


@pytest.fixture
def migrated_url(database_url: str) -> str:
    """A migrated database: privileges of databases are not copied from the template."""
    migrate(database_url)
    return database_url


@pytest.mark.parametrize("way", DENIED)
@pytest.mark.parametrize("service", ALLOWED)
def test_other_features_of_postgres_are_denied(migrated_url: str, service: str, way: str) -> None:
    with psycopg.connect(migrated_url, autocommit=True) as owner, login(migrated_url, service) as conn:
        conn.execute("SET default_transaction_read_only = off")
        other = next(f"parlor_{name}" for name in ALLOWED if name != service)
        names = {"role": f"parlor_{service}", "database": owner.info.dbname, "foreign": FOREIGN[service]}
        names |= {"own": OWN[service], "other": other}
        with pytest.raises(errors.InsufficientPrivilege):
            conn.execute(DENIED[way].format(**names).encode())
        locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = %s"
        assert owner.execute(locks, [conn.info.backend_pid]).fetchone() == (0,)


@pytest.mark.parametrize("service", ALLOWED)
def test_transaction_level_advisory_locks_are_allowed(migrated_url: str, service: str) -> None:
    with login(migrated_url, service) as conn, conn.transaction():
        conn.execute("SELECT pg_advisory_xact_lock(1), pg_try_advisory_xact_lock(2)")


def test_stats_can_read_only_the_columns_that_it_counts(database_url: str) -> None:
    query = "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped"
    with login(database_url, "stats") as conn:
        for table in TABLES:
            readable = f"{query} AND has_column_privilege(attrelid, attnum, 'SELECT')"
            found = {name for (name,) in conn.execute(readable.encode(), [table])}
            allowed = set(COLUMNS.get(table, "").split())
            if "SELECT" in ALLOWED["stats"].get(table, ""):
                allowed = {name for (name,) in conn.execute(query.encode(), [table])}
            assert found == allowed, table


@pytest.mark.parametrize(("table", "column"), SECRETS)
def test_stats_cannot_read_numbers_names_and_texts(database_url: str, table: str, column: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as owner:
        owner.execute(
            "INSERT INTO salons (salon_id, phone_number_id, name, time_zone)"
            " SELECT n, n, 'secret', 'UTC' FROM generate_series(1, 9) AS n"
        )
        owner.execute("ANALYZE")
    statements = (
        f"SELECT {column} FROM {table}",
        f"SELECT * FROM {table}",
        f"SELECT t FROM {table} AS t",
        f"SELECT 1 FROM {table} WHERE {column} IS NOT NULL",
    )
    with login(database_url, "stats") as conn:
        for statement in statements:
            with pytest.raises(errors.InsufficientPrivilege):
                conn.execute(statement.encode())
        seen = "SELECT attname FROM pg_stats WHERE tablename = %s"
        assert column not in {name for (name,) in conn.execute(seen, [table])}


@pytest.mark.parametrize("service", ALLOWED)
def test_no_login_sees_statements_of_others(database_url: str, service: str) -> None:
    with login(database_url, service) as conn:
        hidden = "<insufficient privilege>"
        query = "SELECT query FROM pg_stat_activity WHERE usename <> current_user AND query NOT IN ('', %s)"
        assert conn.execute(query, [hidden]).fetchall() == []


@pytest.mark.parametrize("service", ALLOWED)
def test_no_login_reads_pg_stat_statements(database_url: str, service: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as owner, login(database_url, service) as conn:
        owner.execute("CREATE EXTENSION pg_stat_statements")
        migrate(database_url)
        for source in ("pg_stat_statements", "pg_stat_statements_info", "pg_stat_statements(true)"):
            with pytest.raises(errors.InsufficientPrivilege):
                conn.execute(f"SELECT * FROM {source}".encode())


@pytest.mark.parametrize("service", ALLOWED)
def test_logins_look_for_tables_in_one_schema(migrated_url: str, service: str) -> None:
    with login(migrated_url, service) as conn:
        assert conn.execute("SHOW search_path").fetchone() == ("public",)


def limits(url: str) -> set[int]:
    """Return the limits of the services' logins."""
    with psycopg.connect(url) as conn:
        query = "SELECT rolconnlimit FROM pg_roles WHERE rolname LIKE 'parlor\\_%'"
        return {limit for (limit,) in conn.execute(query)}


def test_a_login_gets_at_most_half_of_the_connections(own_postgres: Postgres) -> None:
    assert limits(own_postgres.dsn) == {148}  # of 300, without the 3 reserved for superusers
    migrate(own_postgres.dsn, connection_limit=2)
    assert limits(own_postgres.dsn) == {2}
    url = service_url(own_postgres.dsn, "parlor_stats")
    with psycopg.connect(url), psycopg.connect(url), pytest.raises(errors.OperationalError, match="too many"):
        psycopg.connect(url)
    psycopg.connect(service_url(own_postgres.dsn, "parlor_booking")).close()
    migrate(own_postgres.dsn)
    assert limits(own_postgres.dsn) == {148}


def test_migrate_needs_no_superuser(own_postgres: Postgres) -> None:
    with psycopg.connect(postgres_url(own_postgres.port, "postgres"), autocommit=True) as admin:
        admin.execute("CREATE ROLE owner LOGIN CREATEROLE")
        for role in ("booking", "messaging", "stats"):
            admin.execute(f"GRANT parlor_{role} TO owner WITH ADMIN OPTION".encode())
        admin.execute("CREATE DATABASE owned OWNER owner TEMPLATE template0")
    url = postgres_url(own_postgres.port, "owned").replace("postgres@", "owner@")
    with psycopg.connect(postgres_url(own_postgres.port, "owned"), autocommit=True) as admin:
        for extension in ("btree_gist", "btree_gin", "pg_trgm", "unaccent"):
            admin.execute(f"CREATE EXTENSION {extension}".encode())
    assert migrate(url)
    assert migrate(url) == []
    with login(url, "booking") as conn, pytest.raises(errors.InsufficientPrivilege):
        conn.execute("CREATE TEMP TABLE mine (a int)")


def test_create_in_public_is_revoked_on_databases_from_postgresql_14(own_postgres: Postgres) -> None:
    with psycopg.connect(postgres_url(own_postgres.port, "postgres"), autocommit=True) as admin:
        admin.execute("CREATE DATABASE old TEMPLATE template0")
    url = postgres_url(own_postgres.port, "old")
    with psycopg.connect(url, autocommit=True) as owner:
        owner.execute("GRANT CREATE ON SCHEMA public TO PUBLIC")  # the default of PostgreSQL 14
    migrate(url)
    with login(url, "booking") as conn, pytest.raises(errors.InsufficientPrivilege):
        conn.execute("CREATE TABLE mine (a int)")
