"""The table that `parlor partition` makes: what it has of messages, and how the two change places."""

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import LiteralString

import psycopg
from psycopg import sql

from ops.months import EARLY, LATER, Leaf, Month, create_leaf, leaves, locked, renamed_statistics

NEW, OLD = "messages_new", "messages_one_table"
PAST_MONTHS, MONTHS_AHEAD = 24, 12


def check(conn: psycopg.Connection) -> str | None:
    """Return what keeps messages from being partitioned, None if nothing does."""
    found = conn.execute("""
        SELECT format('the unique index %s must have the column created_at', indexrelid::regclass) FROM pg_index
        WHERE indrelid = 'messages'::regclass AND indisunique
            AND indexrelid <> ALL (ARRAY['messages_pkey'::regclass, 'whatsapp_id'::regclass])
        UNION ALL
        SELECT DISTINCT format('the view %s reads the table; drop it first', ev_class::regclass)
        FROM pg_depend JOIN pg_rewrite ON pg_rewrite.oid = objid
        WHERE classid = 'pg_rewrite'::regclass AND refclassid = 'pg_class'::regclass
            AND refobjid = 'messages'::regclass""").fetchone()
    return f"messages can't be partitioned: {found[0]}" if found else None


def columns(conn: psycopg.Connection, table: str = "messages") -> list[str]:
    """Return the columns of a table that are not generated."""
    query = """
        SELECT attname FROM pg_attribute
        WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = '' ORDER BY attnum"""
    return [name for (name,) in conn.execute(query, [table])]


def months(conn: psycopg.Connection) -> list[Leaf]:
    """Return the partitions to begin with: from the first message, but no more than PAST_MONTHS, to MONTHS_AHEAD."""
    now = Month.of(datetime.now(UTC))
    earliest = now.later(-PAST_MONTHS)
    query = "SELECT greatest(least(min(created_at), now()), %s) FROM messages"
    month = Month.of(conn.execute(query, [earliest.start]).fetchall()[0][0])
    found = [Leaf(EARLY, None, month.start)]
    while month <= now.later(MONTHS_AHEAD):
        found.append(Leaf(month.leaf, month.start, month.later(1).start))
        month = month.later(1)
    return [*found, Leaf(LATER, month.start, None)]


def add_months(conn: psycopg.Connection) -> list[str]:
    """Give each of the next MONTHS_AHEAD months a partition, with the messages of messages_later; return the new ones.

    Raises: TableBusy.
    """
    made = []
    while (start := leaves(conn)[-1].start) and start <= Month.of(datetime.now(UTC)).later(MONTHS_AHEAD).start:
        month = Month.of(start)
        with locked(conn):
            _cut(conn, Leaf(month.leaf, start, month.later(1).start))
        made.append(month.leaf)
    return made


def _cut(conn: psycopg.Connection, leaf: Leaf) -> None:
    """Make a partition of the first month of messages_later. Its triggers don't see the messages that move."""
    conn.execute("ALTER TABLE messages DETACH PARTITION messages_later")
    create_leaf(conn, leaf, LATER)
    table, names = sql.Identifier(leaf.name), sql.SQL(", ").join(map(sql.Identifier, columns(conn, LATER)))
    conn.execute(sql.SQL("ALTER TABLE {} DISABLE TRIGGER USER").format(table))
    move = sql.SQL("""
        WITH moved AS (DELETE FROM messages_later WHERE created_at < {end} RETURNING {names})
        INSERT INTO {table} ({names}) SELECT {names} FROM moved""")
    conn.execute(move.format(end=sql.Literal(leaf.end), names=names, table=table))
    conn.execute(sql.SQL("ALTER TABLE {} ENABLE TRIGGER USER").format(table))
    attach = sql.SQL("ALTER TABLE messages ATTACH PARTITION messages_later FOR VALUES FROM ({}) TO (MAXVALUE)")
    conn.execute(attach.format(sql.Literal(leaf.end)))


def create_table(conn: psycopg.Connection, partitions: Iterable[Leaf]) -> None:
    """Create the new table with its partitions, indexes, triggers and rights, but without foreign keys.

    The triggers are disabled: the copied messages are no news.
    """
    conn.execute("""
        CREATE TABLE messages_new (LIKE messages INCLUDING COMMENTS INCLUDING COMPRESSION INCLUDING CONSTRAINTS
            INCLUDING DEFAULTS INCLUDING GENERATED INCLUDING IDENTITY INCLUDING STORAGE,
            CONSTRAINT messages_pkey_new PRIMARY KEY (salon_id, message_id, created_at))
        PARTITION BY RANGE (created_at)""")
    for statement in _definitions(conn):
        conn.execute(statement)
    for leaf in partitions:
        create_leaf(conn, leaf, "messages", NEW)
    conn.execute(
        "CREATE TRIGGER name_message BEFORE INSERT OR DELETE OR UPDATE OF whatsapp_id ON messages_new"
        " FOR EACH ROW EXECUTE FUNCTION name_message()"
    )
    for (definition,) in conn.execute(_TRIGGERS).fetchall():
        conn.execute(sql.SQL(re.sub(r" ON \S+ ", f" ON {NEW} ", definition, count=1)))
    conn.execute("ALTER TABLE messages_new DISABLE TRIGGER USER")


_TRIGGERS: LiteralString = """
    SELECT pg_get_triggerdef(oid) FROM pg_trigger
    WHERE tgrelid = 'messages'::regclass AND NOT tgisinternal AND tgenabled <> 'D' ORDER BY tgname"""
_INDEXES: LiteralString = """
    SELECT relname, pg_get_indexdef(indexrelid),
        coalesce(obj_description(indexrelid), obj_description(pg_constraint.oid))
    FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
    LEFT JOIN pg_constraint ON conindid = indexrelid AND contype IN ('p', 'u') AND conrelid = indrelid
    WHERE indrelid = 'messages'::regclass AND indisvalid ORDER BY relname"""
_STATISTICS: LiteralString = """
    SELECT stxname, pg_get_statisticsobjdef(oid) FROM pg_statistic_ext WHERE stxrelid = 'messages'::regclass"""
_RIGHTS: LiteralString = """
    SELECT format('GRANT %s ON messages_new TO %s', privilege_type, grantee) FROM (
        SELECT privilege_type, grantee FROM pg_class, aclexplode(relacl)
        WHERE pg_class.oid = 'messages'::regclass AND grantee <> relowner
        UNION ALL
        SELECT format('%s (%I)', privilege_type, attname), grantee FROM pg_attribute, aclexplode(attacl)
        WHERE attrelid = 'messages'::regclass
    ) AS granted (privilege_type, role), LATERAL (
        SELECT CASE WHEN role = 0 THEN 'PUBLIC' ELSE role::regrole::text END AS grantee
    ) AS named"""


def _definitions(conn: psycopg.Connection) -> list[sql.SQL | sql.Composed]:
    """Return the statements that give the new table the indexes, the extended statistics and the rights of messages."""
    made: list[sql.SQL | sql.Composed] = []
    for name, definition, comment in conn.execute(_INDEXES).fetchall():
        index = sql.Identifier(f"{name}_new")
        if name != "messages_pkey":
            using = sql.SQL(definition[definition.index(" USING ") :])
            made.append(sql.SQL("CREATE INDEX {} ON {}{}").format(index, sql.Identifier(NEW), using))
        if comment:
            made.append(sql.SQL("COMMENT ON INDEX {} IS {}").format(index, comment))
    for name, definition in conn.execute(_STATISTICS).fetchall():
        made.append(renamed_statistics(definition, f"{name}_new", NEW))
    return made + [sql.SQL(grant) for (grant,) in conn.execute(_RIGHTS).fetchall()]


def create_foreign_keys(conn: psycopg.Connection) -> None:
    """Give the new table the foreign keys of messages. Writers of conversations wait for it."""
    for name, definition in foreign_keys(conn):
        statement = sql.SQL("ALTER TABLE {} ADD CONSTRAINT {} {}")
        conn.execute(statement.format(sql.Identifier(NEW), sql.Identifier(name), definition))


def foreign_keys(conn: psycopg.Connection) -> list[tuple[str, sql.SQL]]:
    """Return the names and definitions of the foreign keys of messages."""
    query = """
        SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint
        WHERE conrelid = 'messages'::regclass AND contype = 'f'"""
    return [(name, sql.SQL(definition)) for name, definition in conn.execute(query)]


def drop_foreign_keys(conn: psycopg.Connection, table: str) -> None:
    """Drop the foreign keys of a table. Readers and writers of conversations wait for it."""
    query = "SELECT conname FROM pg_constraint WHERE conrelid = to_regclass(%s) AND contype = 'f'"
    for (name,) in conn.execute(query, [table]).fetchall():
        statement = sql.SQL("ALTER TABLE {} DROP CONSTRAINT {}")
        conn.execute(statement.format(sql.Identifier(table), sql.Identifier(name)))


def create_copy_trigger(conn: psycopg.Connection) -> None:
    """Let each change of messages change the new table, too, and keep message_names.

    A transaction that is not READ COMMITTED may not see the row to change, so it fails.
    """
    names = columns(conn)
    values = {
        "columns": sql.SQL(", ").join(map(sql.Identifier, names)),
        "delete": sql.SQL(
            "DELETE FROM messages_new WHERE salon_id = gone.salon_id AND message_id = gone.message_id"
            " AND created_at = gone.created_at"
        ),
        "excluded": sql.SQL(", ").join(sql.Identifier("excluded", name) for name in names),
        "schema": sql.Identifier(conn.execute("SELECT current_schema()").fetchall()[0][0]),
    }
    conn.execute(_COPY_FUNCTION.format(**values))
    for event, rows in _ROWS.items():
        trigger = "CREATE TRIGGER copy_{0} AFTER {0} ON messages REFERENCING {1} FOR EACH STATEMENT"
        conn.execute(f"{trigger} EXECUTE FUNCTION copy_messages()".format(event, rows).encode())
    conn.execute("""
        CREATE TRIGGER name_message BEFORE INSERT OR DELETE OR UPDATE OF whatsapp_id ON messages
            FOR EACH ROW EXECUTE FUNCTION name_message()""")


_ROWS = {
    "insert": "NEW TABLE AS new_rows",
    "update": "OLD TABLE AS old_rows NEW TABLE AS new_rows",
    "delete": "OLD TABLE AS old_rows",
}
# The owner's rights: no service may delete messages. For all rows of a statement together: an erasure changes hundreds,
# and each INSERT opens the indexes of its partition.
_COPY_FUNCTION = sql.SQL("""
    CREATE FUNCTION copy_messages() RETURNS trigger LANGUAGE plpgsql
        SECURITY DEFINER SET search_path = {schema}, pg_temp AS $$
    DECLARE
        gone record;
    BEGIN
        IF current_setting('transaction_isolation') <> 'read committed' THEN
            RAISE serialization_failure USING MESSAGE = 'messages are being partitioned';
        END IF;
        IF TG_OP = 'DELETE' THEN
            FOR gone IN SELECT salon_id, message_id, created_at FROM old_rows LOOP
                {delete};
            END LOOP;
        ELSIF TG_OP = 'UPDATE' THEN
            FOR gone IN
                SELECT salon_id, message_id, created_at FROM old_rows
                EXCEPT SELECT salon_id, message_id, created_at FROM new_rows
            LOOP
                {delete};
            END LOOP;
        END IF;
        IF TG_OP <> 'DELETE' THEN
            INSERT INTO messages_new ({columns}) SELECT {columns} FROM new_rows
            ON CONFLICT (salon_id, message_id, created_at) DO UPDATE SET ({columns}) = ROW ({excluded});
        END IF;
        RETURN NULL;
    END $$""")


def remove(conn: psycopg.Connection) -> None:
    """Remove what is needed only while messages are being partitioned, or was left by a run that was killed."""
    conn.execute("""
        DROP FUNCTION IF EXISTS copy_messages CASCADE;
        DROP TABLE IF EXISTS messages_one_table""")
    if conn.execute("SELECT to_regclass('messages_new') IS NOT NULL").fetchall()[0][0]:
        conn.execute("DROP TABLE messages_new")
        conn.execute("DROP TRIGGER IF EXISTS name_message ON messages")
        conn.execute("TRUNCATE message_names")


def change_places(conn: psycopg.Connection) -> None:
    """Let the new table be messages, and the old one messages_one_table. The caller has locked messages.

    Foreign keys to messages are dropped: a partitioned table has no unique index of (salon_id, message_id).
    """
    query = "SELECT conrelid::regclass::text, conname FROM pg_constraint WHERE confrelid = 'messages'::regclass"
    for table, name in conn.execute(query).fetchall():
        conn.execute(sql.SQL("ALTER TABLE {} DROP CONSTRAINT {}").format(sql.SQL(table), sql.Identifier(name)))
    conn.execute("DROP FUNCTION copy_messages CASCADE; DROP TRIGGER name_message ON messages")
    for name, _, _ in conn.execute(_INDEXES).fetchall():
        _rename(conn, "INDEX", name)
    for name, _ in conn.execute(_STATISTICS).fetchall():
        _rename(conn, "STATISTICS", name)
    conn.execute("ALTER TABLE messages RENAME TO messages_one_table; ALTER TABLE messages_new RENAME TO messages")
    conn.execute("ALTER TABLE messages ENABLE TRIGGER USER")


def _rename(conn: psycopg.Connection, kind: LiteralString, name: str) -> None:
    statement = sql.SQL("ALTER {} {} RENAME TO {}")
    for now, then in ((name, f"{name}_old"), (f"{name}_new", name)):
        conn.execute(statement.format(sql.SQL(kind), sql.Identifier(now), sql.Identifier(then)))
