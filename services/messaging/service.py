"""The RPCs of the messaging service."""

from collections.abc import Sequence
from datetime import UTC, datetime
from operator import itemgetter
from typing import Any
from zlib import crc32

import grpc

from libs.cache import Cache, Reply, digest
from libs.db import Database, Loaded
from libs.rpc import Mutations, Page, Service, channel, errors, moment, page, size
from parlor.booking.v1 import booking_pb2, booking_pb2_grpc
from parlor.messaging.v1 import messaging_pb2 as pb
from parlor.messaging.v1 import messaging_pb2_grpc
from services.groups import Groups
from services.messaging import ai_queries, queries, webhook
from services.messaging.queries import NewMessage, NewStatus
from services.messaging.settings import MessagingSettings

DEFAULT_MESSAGES = 10


class SalonUnknown(Exception):
    """A conversation would be created, and nobody has asked yet whether there is such a salon."""


class MessagingService(messaging_pb2_grpc.MessagingServiceServicer):
    """Conversations and their messages."""

    def __init__(self, cache: Cache, database: Database, booking: Any, settings: MessagingSettings) -> None:
        """Take what the RPCs stand on; `booking` is a stub of the booking service."""
        self.cache = cache
        self.groups = Groups(cache)
        self.write = Mutations(cache, "messaging_requests")
        self.booking = booking
        self.settings = settings
        self.known_salons: set[str] = set()  # a salon once seen never ends

    async def RecordMessage(self, request: pb.RecordMessageRequest, context: Any) -> pb.Message:
        """Record a message."""
        try:
            return await self._record_message(request)
        except SalonUnknown:
            await self._ask_booking(self.booking.GetSalon, booking_pb2.GetSalonRequest(salon_id=request.salon_id))
            return await self._record_message(request)

    async def _record_message(self, request: pb.RecordMessageRequest) -> pb.Message:
        salon_id, message = request.salon_id, _new_message(request)
        locks = (_lock(salon_id, request.whatsapp_id),) if request.whatsapp_id else ()
        known = salon_id in self.known_salons
        async with self.write(request, salon_id, *self._touched(salon_id), locks=locks) as write:
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
        status = NewStatus(whatsapp_id, _word(pb.MessageStatus, request.status), moment(request, "event_time"))
        async with self.write(
            request, salon_id, *self._touched(salon_id), locks=(_lock(salon_id, whatsapp_id),)
        ) as write:
            await queries.insert_statuses(write.conn, salon_id, [status])
            message = write.reply = await queries.message_by_whatsapp_id(
                write.conn, salon_id, whatsapp_id
            ) or await queries.status_by_whatsapp_id(write.conn, salon_id, whatsapp_id)
        return message

    async def IngestWebhook(self, request: pb.IngestWebhookRequest, context: Any) -> pb.IngestWebhookResponse:
        """Record every message and status of a webhook body, in one transaction."""
        webhook.check_signature(
            request.payload, request.signature, self.settings.whatsapp_app_secret.get_secret_value()
        )
        reply = pb.IngestWebhookResponse()
        changes: list[tuple[str, webhook.Change]] = []
        for phone_number_id, change in webhook.read(request.payload).items():
            reply.unknown += change.unknown
            reply.rejected += change.rejected
            if not (items := _items(change)):
                continue
            if salon_id := await self._salon_of(phone_number_id):
                changes.append((salon_id, change))
            else:
                reply.rejected += len(items)
        if not changes:
            return reply
        groups = [group for salon_id, _ in changes for group in self._touched(salon_id)]
        locks = tuple({_lock(salon_id, item.whatsapp_id) for salon_id, change in changes for item in _items(change)})
        async with self.write(request, "", *groups, locks=locks) as write:
            for salon_id, change in sorted(changes, key=itemgetter(0)):
                await _ingest(write.conn, salon_id, change, reply)
            write.reply = reply
        return reply

    async def GetConversation(self, request: pb.GetConversationRequest, context: Any) -> Reply:
        """Return the conversation with a customer and its newest messages."""
        salon_id, phone_number = request.salon_id, request.phone_number
        limit = size(request.message_limit, DEFAULT_MESSAGES)

        async def load(conn: Any) -> Loaded[pb.Conversation | None]:
            return await queries.conversation_by_phone_number(conn, salon_id, phone_number, limit)

        reply = await self.cache.read(self.groups.conversations(salon_id).key(phone_number, limit), load)
        if reply.body is None:
            raise errors.not_found("conversation", f"{salon_id}/{phone_number}")
        return reply

    async def ListConversations(self, request: pb.ListConversationsRequest, context: Any) -> Reply:
        """List a salon's conversations."""
        wanted = page(request.page_size, request.page_token, "ListConversations", request.salon_id, request.status)
        status = _word(pb.ConversationStatus, request.status) if request.status else ""

        async def load(conn: Any) -> Loaded[pb.ListConversationsResponse]:
            stamp, rows = await queries.list_conversations(conn, request.salon_id, status, wanted)
            response = pb.ListConversationsResponse()
            return Loaded(stamp, wanted.fill(response, rows, "last_message_time", "conversation_id"))

        return await self.cache.read(self._list_key(request.salon_id, wanted), load)

    async def UpdateConversationStatus(
        self, request: pb.UpdateConversationStatusRequest, context: Any
    ) -> pb.Conversation:
        """Move a conversation to another status."""
        salon_id = request.salon_id
        name = f"{salon_id}/{request.conversation_id or request.phone_number}"
        async with self.write(request, salon_id, self.groups.conversations(salon_id)) as write:
            conversation = await queries.lock_conversation(
                write.conn, salon_id, request.conversation_id, request.phone_number
            )
            if conversation is None:
                raise errors.not_found("conversation", name)
            if request.etag and request.etag != conversation.etag:
                raise errors.etag_mismatch("conversation", name)
            status = _word(pb.ConversationStatus, request.status)
            after = write.reply = await queries.update_conversation_status(write.conn, conversation, status)
        return after

    async def ListMessages(self, request: pb.ListMessagesRequest, context: Any) -> Reply:
        """List messages of a salon, a conversation or a customer."""
        salon_id = request.salon_id
        filters = (salon_id, request.conversation_id.lower(), request.phone_number, request.direction)
        wanted = page(request.page_size, request.page_token, "ListMessages", *filters)
        direction = _word(pb.MessageDirection, request.direction) if request.direction else ""

        async def load(conn: Any) -> Loaded[pb.ListMessagesResponse]:
            stamp, rows = await queries.list_messages(
                conn, salon_id, request.conversation_id, request.phone_number, direction, wanted
            )
            return Loaded(stamp, wanted.fill(pb.ListMessagesResponse(), rows, "create_time", "message_id"))

        return await self.cache.read(self.groups.messages(salon_id).key(digest(wanted)), load)

    async def RecordAiMessage(self, request: pb.RecordAiMessageRequest, context: Any) -> pb.AiMessage:
        """Record what an AI model was asked or answered."""
        async with self.write(request, request.salon_id, self.groups.conversations(request.salon_id)) as write:
            message = write.reply = await ai_queries.insert_ai_message(write.conn, request)
        return message

    async def ListAiMessages(self, request: pb.ListAiMessagesRequest, context: Any) -> Reply:
        """List the AI messages of a conversation."""
        salon_id, conversation_id = request.salon_id, request.conversation_id.lower()
        wanted = page(request.page_size, request.page_token, "ListAiMessages", salon_id, conversation_id)

        async def load(conn: Any) -> Loaded[pb.ListAiMessagesResponse]:
            stamp, rows = await ai_queries.list_ai_messages(conn, salon_id, conversation_id, wanted)
            return Loaded(stamp, wanted.fill(pb.ListAiMessagesResponse(), rows, "create_time", "ai_message_id"))

        return await self.cache.read(self._list_key(salon_id, wanted), load)

    def _list_key(self, salon_id: str, wanted: Page) -> Any:
        return self.groups.conversations(salon_id).key("list", digest(wanted))

    def _touched(self, salon_id: str) -> tuple[Any, ...]:
        """Return the groups that a message or its status invalidates."""
        return self.groups.messages(salon_id), self.groups.conversations(salon_id)

    async def _salon_of(self, phone_number_id: str) -> str | None:
        """Return the salon of a phone_number_id, None if there is none."""
        if not phone_number_id:
            return None
        try:
            request = booking_pb2.GetSalonByPhoneNumberIdRequest(phone_number_id=phone_number_id)
            return str((await self._ask_booking(self.booking.GetSalonByPhoneNumberId, request)).salon_id)
        except errors.RpcError as error:
            if error.code == grpc.StatusCode.NOT_FOUND:
                return None
            raise

    async def _ask_booking(self, method: Any, request: Any) -> Any:
        """Return booking's salon and remember it. Raises: SALON_NOT_FOUND, BOOKING_UNAVAILABLE."""
        try:
            salon = await method(request, timeout=self.settings.booking_timeout / 1000)
        except grpc.aio.AioRpcError as error:
            if error.code() == grpc.StatusCode.NOT_FOUND:
                raise errors.not_found("salon", getattr(request, "salon_id", "")) from error
            raise errors.unavailable("BOOKING_UNAVAILABLE", "the booking service does not answer") from error
        self.known_salons.add(salon.salon_id)
        return salon


def build(cache: Cache, database: Database, settings: MessagingSettings | None = None) -> Service:
    """Return the service as a server takes it, with a channel to the booking service."""
    settings = settings or MessagingSettings()
    to_booking = channel(settings.booking_address, booking_pb2.DESCRIPTOR.services_by_name["BookingService"])
    messaging = MessagingService(cache, database, booking_pb2_grpc.BookingServiceStub(to_booking), settings)
    return Service(
        descriptor=pb.DESCRIPTOR.services_by_name["MessagingService"],
        servicer=messaging,
        add=messaging_pb2_grpc.add_MessagingServiceServicer_to_server,
        salon_groups=messaging.groups.of_salon,
        constraints={
            "ai_messages_conversation_id_fkey": lambda request: errors.not_found(
                "conversation", f"{request.salon_id}/{request.conversation_id}"
            )
        },
        background=[lambda: messaging.write.purge(database.connection)],
        close=to_booking.close,
    )


async def _ingest(conn: Any, salon_id: str, change: webhook.Change, reply: pb.IngestWebhookResponse) -> None:
    """Record what one salon received, and count it."""
    if change.messages:
        messages = [
            NewMessage(
                item.phone_number,
                "INBOUND",
                item.whatsapp_id,
                _TYPES[item.type],
                item.content,
                0,
                None,
                item.created_at,
            )
            for item in change.messages
        ]
        inserted = len(await queries.insert_messages(conn, salon_id, messages, salon_known=True))
        reply.messages += inserted
        reply.duplicates += len(messages) - inserted
    if change.statuses:
        statuses = [NewStatus(item.whatsapp_id, item.status.upper(), item.occurred_at) for item in change.statuses]
        inserted = await queries.insert_statuses(conn, salon_id, statuses)
        reply.statuses += inserted
        reply.duplicates += len(statuses) - inserted


# WhatsApp's word for a type is ours in small letters.
_TYPES = {name: name.upper() for name in webhook.TYPES}


def _items(change: webhook.Change) -> Sequence[webhook.Incoming | webhook.Status]:
    return [*change.messages, *change.statuses]


def _new_message(request: pb.RecordMessageRequest) -> NewMessage:
    return NewMessage(
        request.phone_number,
        _word(pb.MessageDirection, request.direction),
        request.whatsapp_id or None,
        _word(pb.MessageType, request.type or pb.MESSAGE_TYPE_TEXT),
        request.content,
        request.cost_micros,
        request.currency_code or None,
        moment(request, "send_time") or datetime.now(UTC),
    )


def _word(kind: Any, value: int) -> str:
    """Return the bare word of an enum value, as the database stores it."""
    name: str = kind.Name(value)
    words = kind.Name(0).removesuffix("UNSPECIFIED")
    return name.removeprefix(words)


def _lock(salon_id: str, whatsapp_id: str) -> str:
    """Return the name of the lock of a whatsapp_id: one of 4096, since Postgres has room for some 6400 (default).

    A webhook body of 8 MB names ten times as many.
    """
    return f"message {crc32(f'{salon_id} {whatsapp_id}'.encode()) % 4096}"
