"""The RPCs on messages."""

from datetime import UTC, datetime
from typing import Any
from zlib import crc32

from libs.cache import Reply, digest
from libs.db import Loaded
from libs.rpc import moment, page
from parlor.messaging.v1 import messaging_pb2 as pb
from services.messaging import message_queries as queries
from services.messaging.message_queries import NewMessage, NewStatus
from services.messaging.rpcs import Rpcs, word
from services.messaging.salons import SalonUnknown


class MessageRpcs(Rpcs):
    """Messages, recorded and read."""

    async def RecordMessage(self, request: pb.RecordMessageRequest, context: Any) -> pb.Message:
        """Record a message."""
        try:
            return await self._record_message(request)
        except SalonUnknown:
            await self.salons.get(request.salon_id)
            return await self._record_message(request)

    async def _record_message(self, request: pb.RecordMessageRequest) -> pb.Message:
        salon_id, message = request.salon_id, _new_message(request)
        locks = (lock(salon_id, request.whatsapp_id),) if request.whatsapp_id else ()
        known = salon_id in self.salons.known
        async with self.write(request, salon_id, *self.touched(salon_id), locks=locks) as write:
            inserted = await queries.insert_messages(write.conn, salon_id, [message], salon_known=known)
            recorded = inserted[0] if inserted else None
            if recorded is None and request.whatsapp_id:
                recorded = await queries.message_by_whatsapp_id(write.conn, salon_id, request.whatsapp_id)
            if recorded is None:
                raise SalonUnknown
            write.reply = recorded
        return recorded

    async def RecordMessageStatus(self, request: pb.RecordMessageStatusRequest, context: Any) -> pb.Message:
        """Record what became of a message."""
        salon_id, whatsapp_id = request.salon_id, request.whatsapp_id
        status = NewStatus(whatsapp_id, word(pb.MessageStatus, request.status), moment(request, "event_time"))
        async with self.write(
            request, salon_id, *self.touched(salon_id), locks=(lock(salon_id, whatsapp_id),)
        ) as write:
            await queries.insert_statuses(write.conn, salon_id, [status])
            message = write.reply = await queries.message_by_whatsapp_id(
                write.conn, salon_id, whatsapp_id
            ) or await queries.status_by_whatsapp_id(write.conn, salon_id, whatsapp_id)
        return message

    async def ListMessages(self, request: pb.ListMessagesRequest, context: Any) -> Reply:
        """List messages of a salon, a conversation or a customer."""
        salon_id = request.salon_id
        filters = (salon_id, request.conversation_id.lower(), request.phone_number, request.direction)
        wanted = page(request.page_size, request.page_token, "ListMessages", *filters)
        direction = word(pb.MessageDirection, request.direction) if request.direction else ""

        async def load(conn: Any) -> Loaded[pb.ListMessagesResponse]:
            stamp, rows = await queries.list_messages(
                conn, salon_id, request.conversation_id, request.phone_number, direction, wanted
            )
            return Loaded(stamp, wanted.fill(pb.ListMessagesResponse(), rows, "create_time", "message_id"))

        return await self.cache.read(self.groups.messages(salon_id).key(digest(wanted)), load)


def _new_message(request: pb.RecordMessageRequest) -> NewMessage:
    return NewMessage(
        request.phone_number,
        word(pb.MessageDirection, request.direction),
        request.whatsapp_id or None,
        word(pb.MessageType, request.type or pb.MESSAGE_TYPE_TEXT),
        request.content,
        request.cost_micros,
        request.currency_code or None,
        moment(request, "send_time") or datetime.now(UTC),
    )


def lock(salon_id: str, whatsapp_id: str) -> str:
    """Return the name of the lock of a whatsapp_id: one of 4096, since Postgres has room for some 6400 (default).

    A webhook body of 8 MB names ten times as many.
    """
    return f"message {crc32(f'{salon_id} {whatsapp_id}'.encode()) % 4096}"
