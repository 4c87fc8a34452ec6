"""Table privileges of the services' logins, as the database enforces them."""

import psycopg
import pytest
from psycopg import errors

from ops.migrate import service_url

TABLES = [
    "salons",
    "resources",
    "services",
    "time_off",
    "bookings",
    "booking_events",
    "booking_changes",
    "booking_requests",
    "customers",
    "customer_identities",
    "conversations",
    "messages",
    "raw_messages",
    "message_status_events",
    "message_amendments",
    "message_words",
    "search_backfill",
    "webhook_failures",
    "ai_messages",
    "messaging_requests",
    "message_changes",
    "erasure_salts",
    "erased_whatsapp_ids",
    "rollups",
    "message_hours",
    "message_deltas",
    "conversation_hours",
    "conversation_deltas",
    "ai_message_hours",
    "ai_message_changes",
    "message_names",
    "message_archives",
    "message_erasures",
    "message_quarters",
    "cache_outbox",
    "cache_in_force",
]
RIGHTS = ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER")
WRITER, KEEPER, QUEUE = "SELECT INSERT UPDATE", "SELECT INSERT UPDATE DELETE", "SELECT INSERT DELETE"
# All privileges of each service; it can't even read a missing table.
ALLOWED = {
    "booking": {
        "salons": WRITER,
        "resources": WRITER,
        "services": KEEPER,
        "time_off": QUEUE,
        "bookings": WRITER,
        "booking_events": "SELECT INSERT",
        "booking_changes": QUEUE,
        "booking_requests": KEEPER,
        "cache_outbox": QUEUE,
        "cache_in_force": "SELECT UPDATE",
    },
    "messaging": {
        "customers": KEEPER,
        "customer_identities": KEEPER,
        "conversations": KEEPER,
        "messages": WRITER,
        "ai_messages": WRITER,
        "raw_messages": QUEUE,
        "message_status_events": QUEUE,
        "message_amendments": QUEUE,
        "message_words": "SELECT INSERT DELETE",
        "search_backfill": "SELECT UPDATE DELETE",
        "webhook_failures": QUEUE,
        "messaging_requests": KEEPER,
        "message_changes": QUEUE,
        "erasure_salts": "SELECT INSERT",
        "erased_whatsapp_ids": "SELECT INSERT",
        "rollups": "SELECT UPDATE",
        "message_hours": WRITER,
        "message_deltas": QUEUE,
        "conversation_hours": WRITER,
        "conversation_deltas": QUEUE,
        "ai_message_hours": WRITER,
        "ai_message_changes": QUEUE,
        "message_names": QUEUE,
        "message_archives": "SELECT",
        "message_erasures": "SELECT INSERT",
        "cache_outbox": QUEUE,
        "cache_in_force": "SELECT UPDATE",
    },
    "stats": {
        "rollups": "SELECT",
        "message_hours": "SELECT",
        "message_deltas": "SELECT",
        "conversation_hours": "SELECT",
        "conversation_deltas": "SELECT",
        "ai_message_hours": "SELECT",
        "ai_message_changes": "SELECT",
        "message_quarters": "SELECT",
        "cache_outbox": "SELECT",
        "cache_in_force": "SELECT",
    },  # and columns of other tables, see tests/test_privileges.py
}
# Tables with some readable columns.
COUNTED = {
    "booking": set[str](),
    "messaging": set[str](),
    "stats": {"salons", "bookings", "conversations", "messages", "ai_messages"},
}


def login(database_url: str, service: str) -> psycopg.Connection[tuple[str]]:
    """Return a connection of a service's login."""
    return psycopg.connect(service_url(database_url, f"parlor_{service}"), autocommit=True)


def test_the_matrix_names_every_table(database_url: str) -> None:
    with psycopg.connect(database_url) as owner:
        query = """
            SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')
                AND NOT relispartition AND relname !~ 'yoyo'"""
        assert sorted(name for (name,) in owner.execute(query)) == sorted(TABLES)


@pytest.mark.parametrize("service", ALLOWED)
def test_a_service_has_exactly_the_privileges_of_the_matrix(database_url: str, service: str) -> None:
    with login(database_url, service) as conn:
        for table in TABLES:
            query = f"SELECT r FROM unnest(%s::text[]) AS r WHERE has_table_privilege('{table}', r)"
            allowed = {right for (right,) in conn.execute(query.encode(), [list(RIGHTS)])}
            assert allowed == set(ALLOWED[service].get(table, "").split()), table


@pytest.mark.parametrize(
    ("service", "statement"),
    [
        ("booking", "SELECT * FROM messages"),
        ("booking", "DELETE FROM salons"),
        ("booking", "UPDATE booking_events SET type = 'CREATED'"),
        ("booking", "CREATE TABLE mine ()"),
        ("messaging", "SELECT * FROM salons"),
        ("messaging", "UPDATE bookings SET notes = ''"),
        ("messaging", "DELETE FROM messages"),
        ("stats", "SELECT * FROM booking_requests"),
    ],
)
def test_other_statements_are_denied(database_url: str, service: str, statement: str) -> None:
    with login(database_url, service) as conn, pytest.raises(errors.InsufficientPrivilege, match="permission denied"):
        conn.execute(statement.encode())


TRIED = {
    "SELECT": "SELECT {column} FROM {table}",
    "INSERT": "INSERT INTO {table} DEFAULT VALUES",
    "UPDATE": "UPDATE {table} SET {column} = {column}",
    "DELETE": "DELETE FROM {table}",
    "TRUNCATE": "TRUNCATE {table}",
    "LOCK": "BEGIN; LOCK TABLE {table} IN ACCESS SHARE MODE",
    "COPY": "COPY {table} TO STDOUT",
    "REFERENCES": "ALTER TABLE {table} ADD FOREIGN KEY ({column}) REFERENCES {table}",
    "TRIGGER": "CREATE TRIGGER mine AFTER INSERT ON {table} EXECUTE FUNCTION suppress_redundant_updates_trigger()",
    "POLICY": "ALTER TABLE {table} DISABLE TRIGGER ALL",
    "DROP": "DROP TABLE {table}",
    "ANY COLUMN": "SELECT 1 / has_any_column_privilege('{table}', 'SELECT, INSERT, UPDATE, REFERENCES')::int",
}


@pytest.mark.parametrize("service", ALLOWED)
def test_tables_of_other_services_are_denied(database_url: str, service: str) -> None:
    with login(database_url, service) as conn:
        conn.execute("SET default_transaction_read_only = off")
        for table in set(TABLES) - ALLOWED[service].keys() - COUNTED[service]:
            columns = "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum = 1"
            [(column,)] = conn.execute(columns, [table]).fetchall()
            for right, statement in TRIED.items():
                denied = errors.DivisionByZero if right == "ANY COLUMN" else errors.InsufficientPrivilege
                with pytest.raises(denied):
                    conn.execute(statement.format(table=table, column=column).encode())
                conn.execute("ROLLBACK")


def test_stats_is_read_only_even_with_write_privileges(database_url: str) -> None:
    with psycopg.connect(database_url) as owner:
        owner.execute("GRANT ALL ON salons TO parlor_stats")
    with login(database_url, "stats") as conn, pytest.raises(errors.ReadOnlySqlTransaction):
        conn.execute("DELETE FROM salons")


@pytest.mark.parametrize("service", ALLOWED)
def test_no_login_has_attributes_or_memberships(database_url: str, service: str) -> None:
    with psycopg.connect(database_url) as owner:
        rights = "rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls"
        query = f"SELECT {rights} FROM pg_roles WHERE rolname = 'parlor_{service}'"
        assert owner.execute(query.encode()).fetchall() == [(False,)]
        member = f"SELECT FROM pg_auth_members WHERE member = 'parlor_{service}'::regrole"
        assert owner.execute(member.encode()).fetchall() == []
