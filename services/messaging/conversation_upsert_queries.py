"""The parts of statements that find, create or update the conversations of new messages and reactions.

They are CTEs for `json_rows` of NewMessage in the parameter `messages`. The last one, `placed`, has the new rows, each
with its conversation.
"""

ROWS = """json_to_recordset(%(messages)s::json) AS given (place int, message_id uuid, salon_id text,
            salon_known boolean, phone_number text, user_id text, customer_name text, direction text,
            group_id text, whatsapp_id text, type text, content text, media_id text, reply_to_whatsapp_id text,
            error_code int, error_title text, cost_micros bigint, currency_code text, language text,
            created_at timestamptz, in_window boolean, unread boolean, reopens boolean, opens_window boolean,
            counted boolean, details jsonb, item text)"""
GIVEN = f"""given AS (
        SELECT DISTINCT ON (salon_id, coalesce('w' || whatsapp_id, place::text)) *
        FROM {ROWS}
        ORDER BY salon_id, coalesce('w' || whatsapp_id, place::text), place
    )"""
# The activity of the rows of one conversation.
_ACTIVITY = """min(created_at) AS started_at, max(created_at) AS last_message_at,
            count(*) FILTER (WHERE unread) AS unread_count, max(created_at) FILTER (WHERE reopens) AS reopened_at,
            max(created_at) FILTER (WHERE opens_window) + interval '24 hours' AS service_window_expires_at"""
# A conversation that has only reactions so far gets the times of its first message.
_UPDATED_ACTIVITY = """status = CASE WHEN excluded.reopened_at IS NULL THEN c.status ELSE 'ACTIVE' END,
            revision = c.revision + 1,
            started_at = CASE WHEN c.has_messages = excluded.has_messages THEN least(c.started_at, excluded.started_at)
                WHEN c.has_messages THEN c.started_at ELSE excluded.started_at END,
            last_message_at = CASE WHEN c.has_messages = excluded.has_messages
                THEN greatest(c.last_message_at, excluded.last_message_at)
                WHEN c.has_messages THEN c.last_message_at ELSE excluded.last_message_at END,
            has_messages = c.has_messages OR excluded.has_messages,
            reopened_at = greatest(c.reopened_at, excluded.reopened_at),
            unread_count = c.unread_count + excluded.unread_count,
            service_window_expires_at = greatest(c.service_window_expires_at, excluded.service_window_expires_at)"""


def of_customers(is_new: str, *, has_messages: bool) -> str:
    """Return the CTEs for rows of customers that meet the condition `is_new`; `has_messages`: they are messages.

    Source: indexes salon_id_phone_number, conversations_user_id_key, idx_conversations_salon_user.
    """
    with_phone = _upsert("phone_number IS NOT NULL", "ON CONSTRAINT salon_id_phone_number", has_messages)
    without_phone = _upsert("phone_number IS NULL", "(salon_id, user_id) WHERE phone_number IS NULL", has_messages)
    return f"""{GIVEN}, named AS (
        SELECT given.*, coalesce(
            phone_number,
            CASE WHEN user_id IS NOT NULL THEN max(phone_number) OVER (PARTITION BY salon_id, user_id) END,
            (SELECT k.phone_number FROM conversations AS k
             WHERE k.salon_id = given.salon_id AND k.user_id = given.user_id AND k.phone_number IS NOT NULL
             ORDER BY k.last_message_at DESC, k.conversation_id LIMIT 1)
        ) AS phone
        FROM given WHERE {is_new}
    ), fresh AS (
        SELECT *, coalesce(phone, 'u' || user_id) AS customer FROM named
        WHERE salon_known OR EXISTS (
            SELECT FROM conversations AS k WHERE k.salon_id = named.salon_id AND k.phone_number = named.phone
        ) OR EXISTS (
            SELECT FROM conversations AS k
            WHERE k.salon_id = named.salon_id AND k.user_id = named.user_id AND k.phone_number IS NULL
        )
    ), customer AS (
        SELECT salon_id, phone AS phone_number,
            (array_agg(user_id ORDER BY created_at DESC, place DESC) FILTER (WHERE user_id <> ''))[1] AS user_id,
            coalesce((array_agg(customer_name ORDER BY created_at DESC, customer_name DESC)
                FILTER (WHERE customer_name <> ''))[1], '') AS customer_name,
            max(created_at) FILTER (WHERE customer_name <> '') AS customer_named_at,
            {_ACTIVITY}
        FROM fresh GROUP BY salon_id, customer, phone
    ), with_phone AS ({with_phone}
    ), without_phone AS ({without_phone}
    ), placed AS (
        SELECT * FROM fresh JOIN (SELECT * FROM with_phone UNION ALL SELECT * FROM without_phone) AS conversation
        USING (salon_id, customer)
    )"""


def _upsert(condition: str, conflict: str, has_messages: bool) -> str:
    """Return the statement that creates or updates the conversations of the customers that meet a condition."""
    return f"""
        INSERT INTO conversations AS c (salon_id, phone_number, user_id, customer_name, customer_named_at, started_at,
            last_message_at, has_messages, unread_count, service_window_expires_at, reopened_at)
        SELECT salon_id, phone_number, user_id, customer_name, customer_named_at, started_at, last_message_at,
            {has_messages}, unread_count, service_window_expires_at, reopened_at
        FROM customer WHERE {condition} ORDER BY salon_id, phone_number, user_id
        ON CONFLICT {conflict} DO UPDATE SET
            {_UPDATED_ACTIVITY},
            user_id = coalesce(excluded.user_id, c.user_id),
            customer_name = CASE
                WHEN (excluded.customer_named_at, excluded.customer_name)
                    > (coalesce(c.customer_named_at, '-infinity'), c.customer_name) THEN excluded.customer_name
                ELSE c.customer_name
            END,
            customer_named_at = greatest(c.customer_named_at, excluded.customer_named_at)
        RETURNING c.salon_id, c.conversation_id, coalesce(c.phone_number, 'u' || c.user_id) AS customer,
            c.service_window_expires_at"""


def of_groups(is_new: str) -> str:
    """Return the CTEs for messages in groups that meet the condition `is_new`.

    Source: index conversations_group_id_key.
    """
    return f"""{GIVEN}, fresh AS (
        SELECT *, NULL::text AS phone FROM given WHERE {is_new}
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
