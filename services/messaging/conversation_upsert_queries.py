"""The parts of statements that find, create or update the conversations of new messages and reactions.

They are CTEs for `json_rows` of NewMessage in the parameter `messages`. The last one, `placed`, has the new rows, each
with its conversation.
"""

from services.messaging.erased_ids import is_erased

ROWS = """json_to_recordset(%(messages)s::json) AS given (place int, message_id uuid, salon_id text,
            salon_known boolean, phone_number text, user_id text, customer_name text, direction text,
            group_id text, whatsapp_id text, type text, content text, media_id text, reply_to_whatsapp_id text,
            error_code int, error_title text, cost_micros bigint, currency_code text, language text,
            created_at timestamptz, in_window boolean, unread boolean, reopens boolean, opens_window boolean,
            counted boolean, details jsonb, item text)"""
GIVEN = f"""given AS (
        SELECT DISTINCT ON (salon_id, coalesce('w' || whatsapp_id, place::text)) *
        FROM {ROWS} WHERE NOT {is_erased("given.salon_id", "given.whatsapp_id")}
        ORDER BY salon_id, coalesce('w' || whatsapp_id, place::text), place
    )"""
# The effects of rows on one conversation: when they reopen it, and open its service window.
EFFECTS = """max(created_at) FILTER (WHERE reopens) AS reopened_at,
            max(created_at) FILTER (WHERE opens_window) + interval '24 hours' AS service_window_expires_at"""


def updated_effects(new: str) -> str:
    """Return the assignments that give a conversation `c` the EFFECTS and the unread_count of a row."""
    return f"""status = CASE WHEN {new}.reopened_at IS NULL THEN c.status ELSE 'ACTIVE' END,
            revision = c.revision + 1,
            reopened_at = greatest(c.reopened_at, {new}.reopened_at),
            unread_count = c.unread_count + {new}.unread_count,
            service_window_expires_at = greatest(c.service_window_expires_at, {new}.service_window_expires_at)"""


# The activity of the rows of one conversation.
_ACTIVITY = f"""min(created_at) AS started_at, max(created_at) AS last_message_at,
            count(*) FILTER (WHERE unread) AS unread_count, {EFFECTS}"""
# A conversation that has only reactions so far gets the times of its first message.
_UPDATED_ACTIVITY = f"""{updated_effects("excluded")},
            started_at = CASE WHEN c.has_messages = excluded.has_messages THEN least(c.started_at, excluded.started_at)
                WHEN c.has_messages THEN c.started_at ELSE excluded.started_at END,
            last_message_at = CASE WHEN c.has_messages = excluded.has_messages
                THEN greatest(c.last_message_at, excluded.last_message_at)
                WHEN c.has_messages THEN c.last_message_at ELSE excluded.last_message_at END,
            has_messages = c.has_messages OR excluded.has_messages"""


# The newest identity of a kind of a customer whose conversation begins.
_NEWEST_IDENTITY = """(
                SELECT i.identity FROM customer_identities AS i WHERE i.salon_id = customer.salon_id
                    AND i.customer_id = customer.conversation_id AND i.kind = '{}'
                ORDER BY i.seen_at DESC, i.identity LIMIT 1
            )"""


def of_customers(is_new: str, *, has_messages: bool) -> str:
    """Return the CTEs for rows of customers that meet the condition `is_new`; `has_messages`: they are messages.

    Source: indexes customer_identities_pkey, conversations_pkey.
    """
    return f"""{GIVEN}, named AS (
        SELECT given.*, coalesce(u.customer_id, p.customer_id) AS customer_id,
            coalesce(phone_number, CASE WHEN user_id IS NOT NULL THEN
                max(phone_number) OVER (PARTITION BY given.salon_id, user_id)
            END) AS phone
        FROM given LEFT JOIN customer_identities AS p
            ON p.salon_id = given.salon_id AND p.identity = given.phone_number AND p.kind = 'PHONE_NUMBER'
        LEFT JOIN customer_identities AS u
            ON u.salon_id = given.salon_id AND u.identity = given.user_id AND u.kind = 'USER_ID'
        WHERE {is_new}
    ), fresh AS (
        SELECT *, coalesce(customer_id::text, phone, 'u' || user_id) AS customer FROM named
        WHERE salon_known OR customer_id IS NOT NULL
    ), customer AS (
        SELECT salon_id, customer, customer_id IS NOT NULL AS is_known,
            coalesce(customer_id, gen_random_uuid()) AS conversation_id, max(phone) AS phone_number,
            (array_agg(user_id ORDER BY created_at DESC, place DESC) FILTER (WHERE user_id <> ''))[1] AS user_id,
            coalesce((array_agg(customer_name ORDER BY created_at DESC, customer_name DESC)
                FILTER (WHERE customer_name <> ''))[1], '') AS customer_name,
            max(least(created_at, now())) FILTER (WHERE customer_name <> '') AS customer_named_at,
            {_ACTIVITY}
        FROM fresh GROUP BY salon_id, customer, customer_id
    ), created AS (
        INSERT INTO customers (salon_id, customer_id)
        SELECT salon_id, conversation_id FROM customer WHERE NOT is_known
    ), identified AS (
        INSERT INTO customer_identities (salon_id, identity, kind, customer_id, seen_at)
        SELECT salon_id, identity, kind, conversation_id, least(started_at, now())
        FROM customer, LATERAL (VALUES ('PHONE_NUMBER', phone_number), ('USER_ID', user_id)) AS named (kind, identity)
        WHERE NOT is_known AND identity IS NOT NULL
        ON CONFLICT ON CONSTRAINT customer_identities_pkey DO NOTHING
    ), conversation AS ({_upsert(has_messages)}
    ), placed AS (
        SELECT fresh.*, conversation.conversation_id, conversation.phone_number AS current_number,
            conversation.service_window_expires_at
        FROM fresh JOIN customer USING (salon_id, customer) JOIN conversation USING (salon_id, conversation_id)
    )"""


def _upsert(has_messages: bool) -> str:
    """Return the statement that creates or updates the conversations of customers."""
    return f"""
        INSERT INTO conversations AS c (salon_id, conversation_id, phone_number, user_id, customer_name,
            customer_named_at, started_at, last_message_at, has_messages, unread_count, service_window_expires_at,
            reopened_at)
        SELECT salon_id, conversation_id,
            CASE WHEN is_first THEN {_NEWEST_IDENTITY.format("PHONE_NUMBER")} ELSE phone_number END,
            CASE WHEN is_first THEN {_NEWEST_IDENTITY.format("USER_ID")} ELSE user_id END, customer_name,
            customer_named_at, started_at, last_message_at, {has_messages}, unread_count, service_window_expires_at,
            reopened_at
        FROM customer, LATERAL (SELECT is_known AND NOT EXISTS (
            SELECT FROM conversations AS k
            WHERE k.salon_id = customer.salon_id AND k.conversation_id = customer.conversation_id
        ) AS is_first) AS of_known
        ORDER BY salon_id, conversation_id
        ON CONFLICT ON CONSTRAINT conversations_pkey DO UPDATE SET
            {_UPDATED_ACTIVITY},
            customer_name = CASE
                WHEN (excluded.customer_named_at, excluded.customer_name)
                    > (coalesce(c.customer_named_at, '-infinity'), c.customer_name) THEN excluded.customer_name
                ELSE c.customer_name
            END,
            customer_named_at = greatest(c.customer_named_at, excluded.customer_named_at)
        RETURNING c.salon_id, c.conversation_id, c.phone_number, c.service_window_expires_at"""


def of_groups(is_new: str) -> str:
    """Return the CTEs for messages in groups that meet the condition `is_new`.

    Source: index conversations_group_id_key.
    """
    return f"""{GIVEN}, fresh AS (
        SELECT *, NULL::text AS current_number FROM given WHERE {is_new}
    ), with_group AS (
        INSERT INTO conversations AS c (salon_id, kind, group_id, started_at, last_message_at, unread_count,
            reopened_at, service_window_expires_at)
        SELECT salon_id, 'GROUP', group_id, started_at, last_message_at, unread_count, reopened_at,
            service_window_expires_at
        FROM (SELECT salon_id, group_id, {_ACTIVITY} FROM fresh GROUP BY salon_id, group_id) AS of_group
        ORDER BY salon_id, group_id
        ON CONFLICT (salon_id, group_id) WHERE group_id IS NOT NULL DO UPDATE SET
            {_UPDATED_ACTIVITY}
        RETURNING c.salon_id, c.conversation_id, c.group_id, c.service_window_expires_at
    ), placed AS (
        SELECT * FROM fresh JOIN with_group USING (salon_id, group_id)
    )"""
