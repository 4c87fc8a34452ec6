"""The statements on messages whose send has ended."""

from typing import Any

from psycopg import AsyncConnection

from libs.db import Statement
from libs.messages import fetch_one
from parlor.messaging.v1 import messaging_pb2 as pb
from services.messaging.message_queries import MESSAGE
from services.messaging.message_write_queries import (
    WrittenMessage,
    inserted_messages,
    is_amended,
    written_messages,
)
from services.messaging.status_fold import FOLDED, RECORDED_COST, folded_status

# Their conversation, which stays as it is until the transaction ends: an erased customer's has no name.
_UNSENT = """
    SELECT m.salon_id AS of_salon, m.message_id AS of_message
    FROM messages AS m JOIN conversations AS c USING (salon_id, conversation_id)
    WHERE m.salon_id = %(salon_id)s AND m.message_id = %(message_id)s::uuid
        AND (c.phone_number IS NOT NULL OR c.user_id IS NOT NULL)
    FOR SHARE OF c"""


def set_sent(request: pb.RecordMessageSentRequest) -> Statement[list[WrittenMessage]]:
    """Give an OUTBOUND message its whatsapp_id, and fold the status events that came before; return it.

    Returns none if it has a whatsapp_id, if another message has that one, also an archived one, or if its customer was
    erased. The caller holds the lock of the whatsapp_id, and folds the reactions, edits and revokes of a message that
    is `is_amended`.
    Source: indexes messages_pkey, whatsapp_id, conversations_pkey, message_status_events_pkey,
    idx_message_amendments_target.
    """
    params = {name: getattr(request, name) for name in ("salon_id", "message_id", "whatsapp_id")}
    return Statement(_SET_SENT, params, inserted_messages)


_FOLDED = folded_status("m.salon_id", "%(whatsapp_id)s", *RECORDED_COST, "m.details - 'error_details'")
_SET_SENT = f"""
    WITH unsent AS ({_UNSENT})
    UPDATE messages AS m SET whatsapp_id = %(whatsapp_id)s,
        recorded_cost_micros = {RECORDED_COST[0]}, recorded_currency_code = {RECORDED_COST[1]},
        ({FOLDED}) = (
            SELECT coalesce(nullif(status, 'PENDING'), 'SENT'), {FOLDED.removeprefix("status, ")}
            FROM ({_FOLDED}) AS folded
        )
    FROM unsent
    WHERE m.salon_id = of_salon AND m.message_id = of_message AND direction = 'OUTBOUND' AND whatsapp_id IS NULL
        AND NOT EXISTS (
            SELECT FROM messages AS other WHERE other.salon_id = of_salon AND other.whatsapp_id = %(whatsapp_id)s
        ) AND NOT EXISTS (
            SELECT FROM message_names AS n WHERE n.salon_id = of_salon AND n.name = message_name(%(whatsapp_id)s)
        )
    RETURNING {MESSAGE}, {is_amended("m")}"""


def set_failed(request: pb.RecordMessageFailedRequest) -> Statement[list[WrittenMessage]]:
    """Make a PENDING message without a whatsapp_id FAILED; return it.

    Returns no message if it is another one, or its customer was erased. Source: indexes messages_pkey,
    conversations_pkey.
    """
    params = {
        "salon_id": request.salon_id,
        "message_id": request.message_id,
        "error_code": request.error_code or None,
        "error_title": request.error_title or None,
        "error_details": request.error_details or None,
    }
    return Statement(_SET_FAILED, params, written_messages)


_SET_FAILED = f"""
    WITH unsent AS ({_UNSENT})
    UPDATE messages AS m SET status = 'FAILED', error_code = %(error_code)s::int, error_title = %(error_title)s,
        details = CASE WHEN %(error_details)s::text IS NULL THEN details
            ELSE coalesce(details, '{{}}') || jsonb_build_object('error_details', %(error_details)s::text) END
    FROM unsent
    WHERE m.salon_id = of_salon AND m.message_id = of_message AND direction = 'OUTBOUND' AND whatsapp_id IS NULL
        AND status = 'PENDING'
    RETURNING {MESSAGE}"""


async def message_by_id(conn: AsyncConnection[Any], salon_id: str, message_id: str) -> pb.Message | None:
    """Return a message by its id. Source: index messages_pkey."""
    query = f"SELECT {MESSAGE} FROM messages WHERE salon_id = %s AND message_id = %s::uuid"
    return await fetch_one(conn, pb.Message, query, (salon_id, message_id))
