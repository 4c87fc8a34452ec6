"""The RPCs on messages."""

from datetime import UTC, datetime
from itertools import chain
from typing import Any
from zlib import crc32

from libs.cache import Reply, digest
from libs.db import Statement
from libs.server import errors, moment, names_given, page
from parlor.messaging.v1 import messaging_pb2 as pb
from services.cache_tags import of_name
from services.messaging import ingest_queries, status_queries
from services.messaging import message_queries as queries
from services.messaging.ingest_queries import NewMessage
from services.messaging.message_queries import MessageFilters
from services.messaging.rpcs import Rpcs, word
from services.messaging.salons import SalonUnknown
from services.messaging.status_queries import NewStatus
from services.phones import is_national

MOST_LOCKS = 64


class MessageRpcs(Rpcs):
    """Messages, recorded and read."""

    async def RecordMessage(self, request: pb.RecordMessageRequest, context: Any) -> Any:
        """Record a message."""
        known = request.salon_id in self.salons.known
        message = _new_message(request, await self.phone_number(request), known=known)
        try:
            return await self._record_message(request, message)
        except SalonUnknown:
            async with self.database.connection() as conn:
                known = await ingest_queries.has_conversation(conn, message)
            if not known:
                await self.salons.get(request.salon_id)
            return await self._record_message(request, message._replace(salon_known=True))

    async def _record_message(self, request: pb.RecordMessageRequest, message: NewMessage) -> Any:
        salon_id = request.salon_id
        names = (message.whatsapp_id, message.user_id, message.phone_number)
        locks = [lock(salon_id, name) for name in names if name]
        first: list[Statement[Any]] = [ingest_queries.insert_messages([message])]
        if message.phone_number and message.user_id:
            first.insert(0, ingest_queries.tell_phone_numbers([message]))
        async with self.write(request, salon_id, locks=locks, first=first) as write:
            *told, inserted = write.first
            write.invalidate(*self.touched(*chain(*told), *(recorded.place for recorded in inserted)))
            recorded = inserted[0].encoded() if inserted else None
            if recorded is None and request.whatsapp_id:
                recorded = await queries.message_by_whatsapp_id(write.conn, salon_id, request.whatsapp_id)
            if recorded is None:
                raise _window_closed(message) if message.salon_known else SalonUnknown
            write.reply = recorded
        return recorded

    async def RecordMessageStatus(self, request: pb.RecordMessageStatusRequest, context: Any) -> Any:
        """Record what became of a message."""
        salon_id, whatsapp_id = request.salon_id, request.whatsapp_id
        status = [_new_status(request)]
        first: list[Statement[Any]] = [status_queries.insert_statuses(status), status_queries.apply_statuses(status)]
        async with self.write(request, salon_id, locks=[lock(salon_id, whatsapp_id)], first=first) as write:
            _, changed = write.first
            write.invalidate(*self.touched(*(message.place for message in changed)))
            message = write.reply = (
                changed[0].encoded()
                if changed
                else await queries.message_by_whatsapp_id(write.conn, salon_id, whatsapp_id)
                or await status_queries.status_by_whatsapp_id(write.conn, salon_id, whatsapp_id)
            )
        return message

    async def GetMessage(self, request: pb.GetMessageRequest, context: Any) -> bytes:
        """Return a message with the item it came as and all that WhatsApp said of it."""
        salon_id, message_id, whatsapp_id = request.salon_id, request.message_id, request.whatsapp_id
        async with self.database.connection() as conn:
            message = await queries.whole_message(conn, salon_id, message_id, whatsapp_id)
        if message is None:
            raise errors.not_found("message", f"{salon_id}/{message_id or 'whatsapp_id'}")
        return message

    async def ListMessages(self, request: pb.ListMessagesRequest, context: Any) -> Reply:
        """List messages of a salon, a conversation or a customer."""
        salon_id, phone_number = request.salon_id, await self.phone_number(request)
        filters = (salon_id, request.conversation_id.lower(), phone_number, request.direction)
        wanted = page(request.page_size, request.page_token, "ListMessages", *filters)
        direction = word(pb.MessageDirection, request.direction) if request.direction else ""
        chosen = MessageFilters(salon_id, request.conversation_id.lower(), phone_number, direction)
        tag = of_name(self.tags.messages(salon_id), request.conversation_id.lower(), phone_number)
        return await self.cache.get_batched(
            tag.key(digest(wanted)),
            (chosen, wanted),
            queries.list_messages,
            batch=names_given,
            rows=wanted.rows,
            repeatable=not is_national(request.phone_number),
        )


def _new_message(request: pb.RecordMessageRequest, phone_number: str, *, known: bool) -> NewMessage:
    return NewMessage(
        salon_id=request.salon_id,
        salon_known=known,
        phone_number=phone_number or None,
        user_id=request.user_id or None,
        customer_name="",
        direction=word(pb.MessageDirection, request.direction),
        whatsapp_id=request.whatsapp_id or None,
        type=word(pb.MessageType, request.type or pb.MESSAGE_TYPE_TEXT),
        content=request.content,
        media_id=request.media_id or None,
        reply_to_whatsapp_id=request.reply_to_whatsapp_id or None,
        error_code=None,
        error_title=None,
        cost_micros=request.cost_micros,
        currency_code=request.currency_code or None,
        language=None,
        created_at=moment(request, "send_time") or datetime.now(UTC),
        item=None,
    )


def _new_status(request: pb.RecordMessageStatusRequest) -> NewStatus:
    return NewStatus(
        salon_id=request.salon_id,
        whatsapp_id=request.whatsapp_id,
        status=word(pb.MessageStatus, request.status),
        occurred_at=moment(request, "event_time"),
        error_code=request.error_code or None,
        error_title=request.error_title or None,
        pricing_category=request.pricing_category or None,
        billable=request.billable if request.HasField("billable") else None,
        cost_micros=request.cost_micros or None,
        currency_code=request.currency_code if request.cost_micros else None,
        conversation_origin=request.conversation_origin or None,
    )


def _window_closed(message: NewMessage) -> errors.RpcError:
    subject = f"conversation/{message.salon_id}/{'phone_number' if message.phone_number else 'user_id'}"
    text = "the customer wrote nothing in the 24 h before: only a TEMPLATE may be sent"
    return errors.failed_precondition("SERVICE_WINDOW_CLOSED", subject, text)


def lock(salon_id: str, name: str) -> str:
    """Return the name of the lock of a whatsapp_id, user_id or phone number of a salon.

    It is one of MOST_LOCKS of the salon, since Postgres has room for some 6400 locks of all transactions together, and
    a piece of a webhook body names hundreds. No other salon has the same.
    """
    return f"message {salon_id} {crc32(name.encode()) % MOST_LOCKS}"
