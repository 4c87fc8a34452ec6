"""The statements on AI messages, one function each."""

from typing import Any

from psycopg import AsyncConnection

from libs.db import STAMP, Loaded, fetch_one, fetch_page
from libs.rpc import Page
from parlor.messaging.v1.messaging_pb2 import AiMessage, AiRole, RecordAiMessageRequest

AI_MESSAGE = (
    "ai_message_id::text, salon_id, conversation_id::text, model, 'AI_ROLE_' || role AS role, content, prompt_tokens,"
    " completion_tokens, cost_micros, currency_code, latency_ms, booking_code, created_at AS create_time"
)


async def insert_ai_message(conn: AsyncConnection[Any], request: RecordAiMessageRequest) -> AiMessage | None:
    """Insert an AI message, without its text if the customer was erased; return None if there is no conversation.

    An erasure under way is waited for.
    Source: index conversations_pkey.
    """
    query = f"""
        INSERT INTO ai_messages (salon_id, conversation_id, model, role, content, prompt_tokens, completion_tokens,
            cost_micros, currency_code, latency_ms, booking_code)
        SELECT salon_id, conversation_id, %(model)s, %(role)s,
            CASE WHEN coalesce(phone_number, user_id) IS NULL THEN '' ELSE %(content)s END, %(prompt_tokens)s,
            %(completion_tokens)s, %(cost_micros)s, %(currency_code)s, %(latency_ms)s, %(booking_code)s
        FROM conversations WHERE salon_id = %(salon_id)s AND conversation_id = %(conversation_id)s FOR KEY SHARE
        RETURNING {AI_MESSAGE}"""
    params = {field.name: getattr(request, field.name) for field in request.DESCRIPTOR.fields} | {
        "role": AiRole.Name(request.role).removeprefix("AI_ROLE_"),
        "currency_code": request.currency_code or None,
        "booking_code": request.booking_code.upper() or None,
    }
    return await fetch_one(conn, AiMessage, query, params)


async def list_ai_messages(
    conn: AsyncConnection[Any], salon_id: str, conversation_id: str, page: Page
) -> Loaded[list[bytes]]:
    """Return up to one AI message more than the page has, newest first.

    Source: report, "AI Message Indexes" 11; index idx_ai_messages_conversation_created.
    """
    after = " AND (created_at, ai_message_id) < (timestamptz 'epoch' + %(after)s * interval '1 us', %(id)s::uuid)"
    query = f"""
        SELECT stamp, page.*
        FROM {STAMP} LEFT JOIN LATERAL (
            SELECT {AI_MESSAGE} FROM ai_messages
            WHERE salon_id = %(salon_id)s AND conversation_id = %(conversation_id)s{after if page.after_id else ""}
            ORDER BY created_at DESC, ai_messages.ai_message_id DESC LIMIT %(limit)s
        ) AS page ON true"""
    params = {"salon_id": salon_id, "conversation_id": conversation_id}
    return await fetch_page(conn, AiMessage, query, params | page.params)
