"""The statements on AI messages."""

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

from psycopg import AsyncConnection

from libs.messages import SNAPSHOT_XMIN, Loaded, fetch_one, fetch_pages, unnest, where
from libs.server import Page, RpcError, given, names_given, responses
from parlor.messaging.v1.messaging_pb2 import AiMessage, AiRole, ListAiMessagesResponse, RecordAiMessageRequest
from services.messaging.identity_queries import conversation_of, current_names

AI_MESSAGE = (
    "ai_message_id::text, salon_id, conversation_id::text, model, 'AI_ROLE_' || role AS role, content, prompt_tokens,"
    " completion_tokens, cost_micros, currency_code, latency_ms, booking_code, created_at AS create_time"
)


async def insert_ai_message(conn: AsyncConnection[Any], request: RecordAiMessageRequest) -> AiMessage | None:
    """Insert an AI message; return None if its conversation does not exist.

    The text is left out if the conversation's customer was erased. Waits for an erasure that is running.
    Source: indexes conversations_pkey, customer_identities_pkey.
    """
    query = f"""
        INSERT INTO ai_messages (salon_id, conversation_id, model, role, content, prompt_tokens, completion_tokens,
            cost_micros, currency_code, latency_ms, booking_code)
        SELECT salon_id, conversation_id, %(model)s, %(role)s,
            CASE WHEN kind = 'CUSTOMER' AND coalesce(phone_number, user_id) IS NULL THEN '' ELSE %(content)s END,
            %(prompt_tokens)s, %(completion_tokens)s, %(cost_micros)s, %(currency_code)s, %(latency_ms)s,
            %(booking_code)s
        FROM conversations WHERE salon_id = %(salon_id)s AND conversation_id = (
            SELECT {conversation_of("conversation_id", "named")}
            FROM (SELECT %(salon_id)s::text AS salon_id, %(conversation_id)s::uuid AS conversation_id) AS named
        ) FOR KEY SHARE
        RETURNING {AI_MESSAGE}"""
    params = {field.name: getattr(request, field.name) for field in request.DESCRIPTOR.fields} | {
        "role": AiRole.Name(request.role).removeprefix("AI_ROLE_"),
        "currency_code": request.currency_code or None,
        "booking_code": request.booking_code.upper() or None,
    }
    return await fetch_one(conn, AiMessage, query, params)


class AiMessageFilters(NamedTuple):
    """The conversation whose AI messages to list."""

    salon_id: str
    conversation_id: str


async def list_ai_messages(
    conn: AsyncConnection[Any], wanted: Sequence[tuple[AiMessageFilters, Page]]
) -> list[Loaded[bytes | RpcError]]:
    """Return a ListAiMessagesResponse for each page, newest first. Either all are first pages or none is.

    Source: report, "AI Message Indexes" 11; indexes idx_ai_messages_conversation_created, conversations_pkey.
    """
    query = ai_messages_statement(names_given(wanted[0]))
    lists = await fetch_pages(conn, AiMessage, query, list(map(given, wanted)))
    return responses(wanted, lists, ListAiMessagesResponse, "create_time", "ai_message_id")


@cache
def ai_messages_statement(names: tuple[str, ...]) -> str:
    """Return the statement that lists AI messages; `names` are those of its parameters."""
    types = {"salon_id": "text", "conversation_id": "uuid", "rows": "int", "after": "bigint", "id": "uuid"}
    conditions = {
        "salon_id": "salon_id = wanted.salon_id",
        "conversation_id": "conversation_id = current.conversation_id",
        "after": "(created_at, ai_message_id) < (timestamptz 'epoch' + wanted.after * interval '1 us', wanted.id)",
    }
    current, xmin = current_names(names)
    return f"""
        SELECT {xmin} AS xmin, place, page.*
        FROM {SNAPSHOT_XMIN}, {unnest(types, names)}{current}
        LEFT JOIN LATERAL (
            SELECT {AI_MESSAGE} FROM ai_messages WHERE {where(conditions, names)}
            ORDER BY created_at DESC, ai_messages.ai_message_id DESC LIMIT wanted.rows
        ) AS page ON true"""
