"""The statements of the rollup job: see rollups.py for their order and why it matters."""

PUBLISH = """
    UPDATE rollups SET horizon = greatest(horizon, now() - %(lag)s::int * interval '1 minute') RETURNING horizon"""

# Each message and AI message has a conversation of its salon, so this CTE finds all salons. It reads an index entry for
# each salon.
_SALONS = """WITH RECURSIVE salons AS (
        (SELECT salon_id FROM conversations ORDER BY salon_id LIMIT 1)
        UNION ALL
        SELECT (
            SELECT c.salon_id FROM conversations AS c WHERE c.salon_id > salons.salon_id ORDER BY c.salon_id LIMIT 1
        ) FROM salons WHERE salon_id IS NOT NULL
    )"""


def _first(table: str, time: str) -> str:
    """Return the time of a salon's first row that is not summed yet."""
    return f"""(
            SELECT {time} FROM {table} AS t
            WHERE t.salon_id = salons.salon_id AND {time} >= sealed_to ORDER BY {time} LIMIT 1
        )"""


# The end of the next piece to seal. A piece begins at the first row that is not summed: time without rows costs nothing.
NEXT_END = f"""
    {_SALONS}
    SELECT least(%(horizon)s, %(days)s::int * interval '1 day' + (
        SELECT min(least({_first("messages", "created_at")}, {_first("conversations", "started_at")},
            {_first("ai_messages", "created_at")})) FROM salons
    )) FROM rollups"""


def _hour(time: str) -> str:
    """Return the start of the hour of a time. date_trunc would depend on the session's time zone."""
    return f"date_bin('1 hour', {time}, 'epoch')"


def _piece(time: str) -> str:
    """Return the condition for a time in the piece to seal."""
    return f"{time} >= (SELECT sealed_to FROM rollups) AND {time} < %(end)s"


_CURRENCY = "CASE WHEN cost_micros > 0 THEN currency_code ELSE '' END"
_ADD_MESSAGES = """
        ON CONFLICT ON CONSTRAINT message_hours_pkey DO UPDATE SET
            messages = h.messages + excluded.messages, cost_micros = h.cost_micros + excluded.cost_micros"""
_ADD_CONVERSATIONS = """
        ON CONFLICT ON CONSTRAINT conversation_hours_pkey DO UPDATE SET
            conversations = h.conversations + excluded.conversations"""
_AI_COLUMNS = """(salon_id, hour, model, currency_code, messages, prompt_tokens, completion_tokens, cost_micros,
            latency_ms, max_latency_ms)"""
_AI_SUMS = "count(*), sum(prompt_tokens), sum(completion_tokens), sum(cost_micros), sum(latency_ms), max(latency_ms)"

# The first hour of a piece may have a sum already: the piece before it ended within that hour.
SEAL = f"""
    {_SALONS}, message_sums AS (
        INSERT INTO message_hours AS h (salon_id, hour, direction, currency_code, messages, cost_micros)
        SELECT salons.salon_id, counted.* FROM salons CROSS JOIN LATERAL (
            SELECT {_hour("created_at")}, direction, {_CURRENCY}, count(*), sum(cost_micros)
            FROM messages AS t WHERE t.salon_id = salons.salon_id AND {_piece("created_at")} GROUP BY 1, 2, 3
        ) AS counted{_ADD_MESSAGES}
    ), conversation_sums AS (
        INSERT INTO conversation_hours AS h (salon_id, hour, conversations)
        SELECT salons.salon_id, counted.* FROM salons CROSS JOIN LATERAL (
            SELECT {_hour("started_at")}, count(*)
            FROM conversations AS t WHERE t.salon_id = salons.salon_id AND {_piece("started_at")} GROUP BY 1
        ) AS counted{_ADD_CONVERSATIONS}
    ), ai_message_sums AS (
        INSERT INTO ai_message_hours AS h {_AI_COLUMNS}
        SELECT salons.salon_id, counted.* FROM salons CROSS JOIN LATERAL (
            SELECT {_hour("created_at")}, model, {_CURRENCY}, {_AI_SUMS}
            FROM ai_messages AS t WHERE t.salon_id = salons.salon_id AND {_piece("created_at")} GROUP BY 1, 2, 3
        ) AS counted
        ON CONFLICT ON CONSTRAINT ai_message_hours_pkey DO UPDATE SET
            messages = h.messages + excluded.messages, prompt_tokens = h.prompt_tokens + excluded.prompt_tokens,
            completion_tokens = h.completion_tokens + excluded.completion_tokens,
            cost_micros = h.cost_micros + excluded.cost_micros, latency_ms = h.latency_ms + excluded.latency_ms,
            max_latency_ms = greatest(h.max_latency_ms, excluded.max_latency_ms)
    ), counted_messages AS (
        DELETE FROM message_deltas WHERE {_piece("created_at")}
    ), counted_conversations AS (
        DELETE FROM conversation_deltas WHERE {_piece("started_at")}
    ), counted_ai_messages AS (
        DELETE FROM ai_message_changes WHERE {_piece("created_at")}
    )
    UPDATE rollups SET sealed_to = %(end)s"""


def _some(table: str, time: str) -> str:
    """Return the condition for up to %(rows)s deltas of sealed hours."""
    return f"""ctid = ANY (ARRAY(
            SELECT ctid FROM {table} WHERE {time} < (SELECT sealed_to FROM rollups) LIMIT %(rows)s::int
        ))"""


FOLD_MESSAGES = f"""
    WITH folded AS (
        DELETE FROM message_deltas WHERE {_some("message_deltas", "created_at")}
        RETURNING salon_id, created_at, direction, currency_code, messages, cost_micros
    ), message_sums AS (
        INSERT INTO message_hours AS h (salon_id, hour, direction, currency_code, messages, cost_micros)
        SELECT salon_id, {_hour("created_at")}, direction, currency_code, sum(messages), sum(cost_micros)
        FROM folded GROUP BY 1, 2, 3, 4{_ADD_MESSAGES}
    )
    SELECT count(*) FROM folded"""

FOLD_CONVERSATIONS = f"""
    WITH folded AS (
        DELETE FROM conversation_deltas WHERE {_some("conversation_deltas", "started_at")}
        RETURNING salon_id, started_at, conversations
    ), conversation_sums AS (
        INSERT INTO conversation_hours AS h (salon_id, hour, conversations)
        SELECT salon_id, {_hour("started_at")}, sum(conversations) FROM folded GROUP BY 1, 2{_ADD_CONVERSATIONS}
    )
    SELECT count(*) FROM folded"""

# Sums the rows of each changed hour again. The sums it has now are added as zeros: their rows may be gone.
FOLD_AI_MESSAGES = f"""
    WITH folded AS (
        DELETE FROM ai_message_changes WHERE {_some("ai_message_changes", "created_at")}
        RETURNING salon_id, created_at
    ), changed AS (
        SELECT DISTINCT salon_id, {_hour("created_at")} AS hour FROM folded
    ), counted AS (
        SELECT salon_id, hour, model, {_CURRENCY} AS currency_code, 1 AS messages, prompt_tokens, completion_tokens,
            cost_micros, latency_ms
        FROM changed JOIN ai_messages AS t USING (salon_id)
        WHERE t.created_at >= hour AND t.created_at < hour + interval '1 hour'
            AND t.created_at < (SELECT sealed_to FROM rollups)
        UNION ALL
        SELECT salon_id, hour, model, currency_code, 0, 0, 0, 0, 0 FROM changed JOIN ai_message_hours USING (salon_id, hour)
    ), ai_message_sums AS (
        INSERT INTO ai_message_hours AS h {_AI_COLUMNS}
        SELECT salon_id, hour, model, currency_code, sum(messages), sum(prompt_tokens), sum(completion_tokens),
            sum(cost_micros), sum(latency_ms), max(latency_ms)
        FROM counted GROUP BY 1, 2, 3, 4
        ON CONFLICT ON CONSTRAINT ai_message_hours_pkey DO UPDATE SET
            messages = excluded.messages, prompt_tokens = excluded.prompt_tokens,
            completion_tokens = excluded.completion_tokens, cost_micros = excluded.cost_micros,
            latency_ms = excluded.latency_ms, max_latency_ms = excluded.max_latency_ms
    )
    SELECT count(*) FROM folded"""

FOLDS = (FOLD_MESSAGES, FOLD_CONVERSATIONS, FOLD_AI_MESSAGES)
