"""The statements of `parlor archive` and `parlor restore-archive`."""

from collections.abc import Sequence

import psycopg
from psycopg import sql

from ops.months import Leaf
from ops.partitioned_table import columns

# What other tables have of a message, as more columns of its row. Not jsonb: an item may have \u0000.
BESIDE = {
    "raw_item": "json",
    "raw_received_at": "timestamptz",
    "status_events": "json",
    "amendments": "json",
}
BATCH = 10_000
_QUARTER = "date_bin('15 minutes', created_at, 'epoch')"
_OF_LEAF = "created_at >= coalesce(%(start)s::timestamptz, '-infinity') AND created_at < %(end)s"


def with_rows_beside(table: str, names: Sequence[str]) -> sql.Composed:
    """Return the query of all messages of a table with what other tables have of them.

    Source: indexes raw_messages_pkey, message_status_events_pkey, idx_message_amendments_target.
    """
    return sql.SQL("""
        SELECT {columns}, r.item AS raw_item, r.received_at AS raw_received_at, (
            SELECT json_agg(e ORDER BY e.occurred_at, e.status) FROM message_status_events AS e
            WHERE e.salon_id = m.salon_id AND e.whatsapp_id = m.whatsapp_id
        ) AS status_events, (
            SELECT json_agg(a ORDER BY a.whatsapp_id) FROM message_amendments AS a
            WHERE a.salon_id = m.salon_id AND a.target_whatsapp_id = m.whatsapp_id
        ) AS amendments
        FROM {table} AS m
        LEFT JOIN raw_messages AS r ON r.salon_id = m.salon_id AND r.message_id = m.message_id
        ORDER BY m.salon_id, m.created_at, m.message_id""").format(
        columns=sql.SQL(", ").join(sql.Identifier("m", name) for name in names), table=sql.Identifier(table)
    )


def salons(conn: psycopg.Connection, leaf: Leaf) -> list[str]:
    """Return the salons that have messages in a leaf, or deltas of its time."""
    query = sql.SQL(f"""
        SELECT salon_id FROM {{}} UNION SELECT salon_id FROM message_deltas WHERE {_OF_LEAF} ORDER BY 1""")
    rows = conn.execute(query.format(sql.Identifier(leaf.name)), {"start": leaf.start, "end": leaf.end})
    return [salon_id for (salon_id,) in rows]


def add_quarters(conn: psycopg.Connection, leaf: Leaf, name: str, salon_id: str) -> None:
    """Sum a salon's messages in a leaf by quarters, less the deltas of its time.

    The caller keeps the rollup job from running, and adds the deltas that there are when the leaf is detached: what
    changes meanwhile is the difference. Until then no reader counts these rows.
    Source: the leaf's index on (salon_id, created_at), index idx_message_deltas_salon_created.
    """
    query = sql.SQL(f"""
        INSERT INTO message_quarters (salon_id, quarter, direction, currency_code, messages, cost_micros, archive)
        SELECT %(salon_id)s, {_QUARTER}, direction, currency, sum(messages), sum(cost_micros), %(name)s
        FROM (
            SELECT created_at, direction, CASE WHEN cost_micros > 0 THEN currency_code ELSE '' END AS currency,
                counted::int AS messages, cost_micros FROM {{}} WHERE salon_id = %(salon_id)s
            UNION ALL
            SELECT created_at, direction, currency_code, -messages, -cost_micros FROM message_deltas
            WHERE salon_id = %(salon_id)s AND {_OF_LEAF}
        ) AS part GROUP BY 2, 3, 4""")
    params = {"salon_id": salon_id, "name": name, "start": leaf.start, "end": leaf.end}
    conn.execute(query.format(sql.Identifier(leaf.name)), params)


def add_deltas(conn: psycopg.Connection, leaf: Leaf, name: str) -> None:
    """Add the deltas of a leaf's time to the quarters of `add_quarters`."""
    query = f"""
        INSERT INTO message_quarters (salon_id, quarter, direction, currency_code, messages, cost_micros, archive)
        SELECT salon_id, {_QUARTER}, direction, currency_code, sum(messages), sum(cost_micros), %(name)s
        FROM message_deltas
        WHERE {_OF_LEAF}
        GROUP BY 1, 2, 3, 4"""
    conn.execute(query.encode(), {"start": leaf.start, "end": leaf.end, "name": name})


def delete_rows_beside(conn: psycopg.Connection, table: str) -> None:
    """Delete what other tables have of the messages of a table, in batches; `conn` is in autocommit mode.

    The whatsapp_ids of reactions, edits and revokes stay in message_names.
    """
    after: tuple[str, str] | None = ("", "00000000-0000-0000-0000-000000000000")
    while after:
        query = sql.SQL("""
            WITH batch AS MATERIALIZED (
                SELECT salon_id, message_id, whatsapp_id FROM {}
                WHERE (salon_id, message_id) > (%s, %s::uuid) ORDER BY salon_id, message_id LIMIT {}
            ), item AS (
                DELETE FROM raw_messages AS r USING batch
                WHERE r.salon_id = batch.salon_id AND r.message_id = batch.message_id
            ), event AS (
                DELETE FROM message_status_events AS e USING batch
                WHERE e.salon_id = batch.salon_id AND e.whatsapp_id = batch.whatsapp_id
            ), amendment AS (
                DELETE FROM message_amendments AS a USING batch
                WHERE a.salon_id = batch.salon_id AND a.target_whatsapp_id = batch.whatsapp_id
                RETURNING a.salon_id, a.whatsapp_id
            ), named AS (
                INSERT INTO message_names (salon_id, name) SELECT salon_id, message_name(whatsapp_id) FROM amendment
                ON CONFLICT DO NOTHING
            )
            SELECT salon_id, message_id::text FROM batch ORDER BY batch.salon_id DESC, batch.message_id DESC LIMIT 1
            """).format(sql.Identifier(table), sql.Literal(BATCH))
        after = conn.execute(query, after).fetchone()


def create_loaded(conn: psycopg.Connection, table: str) -> None:
    """Create a temporary table for the rows of a file: the columns of messages, and BESIDE."""
    beside = sql.SQL(", ").join(sql.SQL(f"{name} {kind}") for name, kind in BESIDE.items())
    query = sql.SQL("CREATE TEMPORARY TABLE {} (LIKE messages INCLUDING DEFAULTS, {})")
    conn.execute(query.format(sql.Identifier(table), beside))
    generated = set(_all_columns(conn, table)) - set(columns(conn)) - BESIDE.keys()
    for name in generated:
        conn.execute(sql.SQL("ALTER TABLE {} DROP COLUMN {}").format(sql.Identifier(table), sql.Identifier(name)))


def _all_columns(conn: psycopg.Connection, table: str) -> list[str]:
    query = "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped"
    return [name for (name,) in conn.execute(query, [table])]


def obey_erasures(conn: psycopg.Connection, table: str, after: int) -> int:
    """Remove from loaded rows the customers of all erasures after one, as EraseCustomer does; return the last one.

    In groups the items are removed with the erased customer's messages: they may name the customer.
    """
    params = {"after": after}
    for query in _OBEY:
        conn.execute(query.format(sql.Identifier(table)), params)
    row = conn.execute("SELECT greatest(%(after)s::bigint, max(erasure_id)) FROM message_erasures", params).fetchone()
    return int(row[0]) if row else after


_ERASURES = """(
        SELECT o.salon_id, s.salt, array_agg(DISTINCT o.conversation_id) AS conversation_ids,
            array_agg(DISTINCT o.name) AS names
        FROM erasure_salts AS s JOIN (
            SELECT salon_id, conversation_id, NULL::bytea AS name
            FROM message_erasures, unnest(conversation_ids) AS conversation_id WHERE erasure_id > %(after)s
            UNION ALL
            SELECT salon_id, NULL, name FROM message_erasures, unnest(names) AS name WHERE erasure_id > %(after)s
        ) AS o USING (salon_id) GROUP BY o.salon_id, s.salt
    ) AS e"""
_NAMED = "coalesce(sha256(e.salt || convert_to({}, 'UTF8')) = ANY (e.names), false)"
_IN_GROUP = """m.conversation_id IN (
        SELECT c.conversation_id FROM conversations AS c WHERE c.salon_id = e.salon_id AND c.group_id IS NOT NULL)"""
_BY_ERASED = "({} OR {})".format(*(_NAMED.format(f"{{0}}->>'{name}'") for name in ("phone_number", "user_id")))
_OF_ERASED = f"""(coalesce(m.conversation_id = ANY (e.conversation_ids), false)
        OR {_IN_GROUP} AND {_BY_ERASED.format("m.details->'sender'")})"""
# The IDs of an erased customer's message, and of its reactions, edits and revokes; in groups those of the customer.
_OWN = f"""LATERAL (
        SELECT m.whatsapp_id WHERE {_OF_ERASED}
        UNION SELECT a->>'whatsapp_id' FROM json_array_elements(m.amendments) AS a
        WHERE {_OF_ERASED} OR {_BY_ERASED.format("a")}
    ) AS own (whatsapp_id)"""
_OBEY = (
    # The last ones remove what the others tell the messages by.
    sql.SQL(f"""
        DELETE FROM message_names AS of USING {{}} AS m, {_ERASURES}, {_OWN}
        WHERE m.salon_id = e.salon_id AND of.salon_id = m.salon_id AND of.name = message_name(own.whatsapp_id)"""),
    sql.SQL(f"""
        INSERT INTO erased_whatsapp_ids (salon_id, hash)
        SELECT m.salon_id, sha256(e.salt || convert_to(own.whatsapp_id, 'UTF8')) FROM {{}} AS m, {_ERASURES}, {_OWN}
        WHERE m.salon_id = e.salon_id AND own.whatsapp_id IS NOT NULL
        ON CONFLICT DO NOTHING"""),
    # What came since the messages were archived, and their words.
    sql.SQL(f"""
        DELETE FROM message_status_events AS of USING {{}} AS m, {_ERASURES}, {_OWN}
        WHERE m.salon_id = e.salon_id AND of.salon_id = m.salon_id AND of.whatsapp_id = own.whatsapp_id"""),
    sql.SQL(f"""
        DELETE FROM message_amendments AS of USING {{}} AS m, {_ERASURES}, {_OWN}
        WHERE m.salon_id = e.salon_id AND of.salon_id = m.salon_id AND of.target_whatsapp_id = own.whatsapp_id"""),
    sql.SQL(f"""
        DELETE FROM message_words AS of USING {{}} AS m, {_ERASURES}
        WHERE m.salon_id = e.salon_id AND of.salon_id = m.salon_id
            AND of.word = ANY (tsvector_to_array(message_vector(m.language, m.content)))
            AND {_OF_ERASED}"""),
    sql.SQL(f"""
        UPDATE {{}} AS m SET content = '', phone_number = NULL, whatsapp_id = NULL, media_id = NULL,
            reply_to_whatsapp_id = NULL, error_title = NULL, details = NULL, raw_item = NULL, raw_received_at = NULL,
            status_events = NULL, amendments = NULL
        FROM {_ERASURES}
        WHERE m.salon_id = e.salon_id
            AND {_OF_ERASED}"""),
    # What others wrote in groups: their items, quotes of erased messages, and the customer's reactions and edits.
    sql.SQL(f"""
        UPDATE {{}} AS m SET raw_item = NULL, raw_received_at = NULL,
            reply_to_whatsapp_id = CASE WHEN NOT EXISTS (
                SELECT FROM erased_whatsapp_ids AS w WHERE w.salon_id = m.salon_id
                    AND w.hash = sha256(e.salt || convert_to(m.reply_to_whatsapp_id, 'UTF8'))
            ) THEN m.reply_to_whatsapp_id END,
            amendments = (
                SELECT json_agg(a) FROM json_array_elements(m.amendments) AS a
                WHERE NOT {_BY_ERASED.format("a")}
            ),
            details = nullif(m.details - 'reactions' || jsonb_strip_nulls(jsonb_build_object('reactions', (
                SELECT jsonb_agg(r) FROM jsonb_array_elements(m.details->'reactions') AS r
                WHERE NOT {_BY_ERASED.format("r")}
            ))), '{{{{}}}}')
        FROM {_ERASURES}
        WHERE m.salon_id = e.salon_id AND {_IN_GROUP}"""),
)


def follow_merges(conn: psycopg.Connection, table: str) -> None:
    """Give loaded messages the conversation into which theirs was merged. Source: index customer_identities_pkey."""
    query = sql.SQL("""
        UPDATE {} AS m SET conversation_id = i.customer_id FROM customer_identities AS i
        WHERE i.salon_id = m.salon_id AND i.kind = 'CONVERSATION_ID' AND i.identity = m.conversation_id::text""")
    conn.execute(query.format(sql.Identifier(table)))


def insert_rows_beside(conn: psycopg.Connection, table: str) -> None:
    """Insert what other tables had of loaded messages."""
    statements = (
        """INSERT INTO raw_messages (salon_id, message_id, item, received_at)
            SELECT salon_id, message_id, raw_item, raw_received_at FROM {} WHERE raw_item IS NOT NULL""",
        """INSERT INTO message_status_events
            SELECT event.* FROM {}, json_populate_recordset(NULL::message_status_events, status_events) AS event""",
        """INSERT INTO message_amendments
            SELECT amendment.* FROM {}, json_populate_recordset(NULL::message_amendments, amendments) AS amendment""",
    )
    for statement in statements:
        conn.execute(sql.SQL(statement + " ON CONFLICT DO NOTHING").format(sql.Identifier(table)))
