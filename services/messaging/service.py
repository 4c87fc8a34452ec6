"""The RPCs of the messaging service, in the proto's order: each validates, names its tags, queries and replies."""

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal

from libs.cache import Cache, Reply, digest
from libs.db import Database, Statement, for_searches
from libs.messages import Loaded
from libs.server import IdempotentWrites, RpcError, Service, channel, errors, moment, names_given, page, size
from parlor.booking.v1 import booking_pb2, booking_pb2_grpc
from parlor.messaging.v1 import messaging_pb2 as pb
from parlor.messaging.v1 import messaging_pb2_grpc
from services.cache_tags import CacheTags, conversation_tag
from services.messaging import (
    ai_queries,
    conversation_queries,
    erasure,
    inbox_queries,
    message_list_queries,
    message_queries,
    message_write_queries,
    search,
    status_queries,
)
from services.messaging.ai_queries import AiMessageFilters
from services.messaging.amendment_queries import fold_amendments
from services.messaging.changes import message_changes
from services.messaging.conversation_queries import ConversationQuery, Named
from services.messaging.customer_writes import CustomerWrites
from services.messaging.customers import Customers
from services.messaging.erased_ids import refuse_erased
from services.messaging.identity_queries import has_customer
from services.messaging.kinds import rule
from services.messaging.message_ids import message_ids
from services.messaging.message_list_queries import MessageFilters
from services.messaging.message_write_queries import NewMessage, message_lock
from services.messaging.retention import Retention
from services.messaging.rollups import Rollups
from services.messaging.salons import Salons, SalonUnknown
from services.messaging.search_backfill_queries import backfill
from services.messaging.sends import Sends
from services.messaging.settings import MessagingSettings
from services.messaging.status_queries import NewStatus
from services.messaging.webhook.failure_queries import list_failures
from services.messaging.webhook.ingest import WebhookIngest
from services.messaging.webhook.replay import WebhookReplay
from services.phones import is_national, number_prefix

KIB = 1024
# Two methods take texts of 65,536 characters, of up to 4 bytes each; a webhook body is up to 8 MiB.
LARGEST_REQUESTS = {"RecordMessage": 512 * KIB, "RecordAiMessage": 512 * KIB, "IngestWebhook": 8704 * KIB}
DEFAULT_MESSAGES = 10
MOST_TAGS = 50


class MessagingService(messaging_pb2_grpc.MessagingServiceServicer):
    """Conversations and their messages."""

    def __init__(self, cache: Cache, database: Database, salons: Salons, settings: MessagingSettings) -> None:
        """Prepare."""
        self.cache = cache
        self.database = database
        self.salons = salons
        self.tags = CacheTags(cache)
        self.searches = for_searches(database)
        self.requests = IdempotentWrites(cache, database, "messaging_requests")
        self.write = CustomerWrites(self.requests, self.tags)
        database.canary = "messaging_requests"
        self.webhooks = WebhookIngest(self.write, self.tags, salons, settings.app_secrets)
        self.replays = WebhookReplay(database, salons, self.webhooks)
        self.sends = Sends(self.write, self.tags)
        self.customers = Customers(cache, database, self.write, self.tags, salons)
        self.changes = message_changes(database)

    async def RecordMessage(self, request: pb.RecordMessageRequest, context: Any) -> Any:
        """Record a message. If it begins a conversation, the salon must exist."""
        salon_known = request.salon_id in self.salons.known
        message = _new_message(request, await self.customers.phone_number(request), salon_known=salon_known)
        try:
            return await self._record_message(request, message)
        except SalonUnknown:
            async with self.database.connection() as conn:
                salon_known = await has_customer(conn, request.salon_id, message.phone_number, message.user_id)
            if not salon_known:
                await self.salons.get(request.salon_id)
            return await self._record_message(request, message._replace(salon_known=True))

    async def _record_message(self, request: pb.RecordMessageRequest, message: NewMessage) -> Any:
        salon_id = request.salon_id
        names = (message.whatsapp_id, message.user_id, message.phone_number)
        locks = [message_lock(salon_id, name) for name in names if name]
        claims = [claim] if (claim := message.claim) else []
        first = [message_write_queries.insert_messages([message])]
        async with self.write.of_customers(request, salon_id, claims, locks=locks, first=first) as write:
            [inserted] = write.first
            conversations = [recorded.conversation for recorded in inserted]
            write.invalidate(*self.tags.of_conversations(salon_id, *conversations))
            if inserted and inserted[0].is_amended:
                (inserted,) = await write.conn.run(fold_amendments(salon_id, [message.whatsapp_id or ""]))
            recorded = inserted[0].encoded() if inserted else None
            if recorded is None and request.whatsapp_id:
                recorded = await message_queries.message_by_whatsapp_id(write.conn, salon_id, request.whatsapp_id)
                if recorded is None:
                    await refuse_erased(write.conn, salon_id, request.whatsapp_id)
                    await message_queries.refuse_archived(write.conn, salon_id, request.whatsapp_id)
            if recorded is None:
                raise _window_closed(message) if message.salon_known else SalonUnknown
            write.reply = recorded
        return recorded

    async def RecordMessageStatus(self, request: pb.RecordMessageStatusRequest, context: Any) -> Any:
        """Record a status event of a message, and fold it into the message."""
        salon_id, whatsapp_id = request.salon_id, request.whatsapp_id
        status = [_new_status(request)]
        first: list[Statement[Any]] = [status_queries.insert_statuses(status), status_queries.fold_statuses(status)]
        async with self.write(request, salon_id, locks=[message_lock(salon_id, whatsapp_id)], first=first) as write:
            recorded, changed = write.first
            conversations = [message.conversation for message in changed]
            write.invalidate(*self.tags.of_conversations(salon_id, *conversations))
            message = (
                changed[0].encoded()
                if changed
                else await message_queries.message_by_whatsapp_id(write.conn, salon_id, whatsapp_id)
            )
            if message is None:
                if not recorded:
                    await refuse_erased(write.conn, salon_id, whatsapp_id)
                message = await status_queries.status_by_whatsapp_id(write.conn, salon_id, whatsapp_id)
            write.reply = message
        return message

    async def RecordMessageSent(self, request: pb.RecordMessageSentRequest, context: Any) -> Any:
        """Record that a message was sent, and its whatsapp_id."""
        return await self.sends.sent(request)

    async def RecordMessageFailed(self, request: pb.RecordMessageFailedRequest, context: Any) -> Any:
        """Record that a message could not be sent."""
        return await self.sends.failed(request)

    async def IngestWebhook(self, request: pb.IngestWebhookRequest, context: Any) -> pb.IngestWebhookResponse:
        """Record every message and status of a webhook body."""
        return await self.webhooks.ingest(request)

    async def GetConversation(self, request: pb.GetConversationRequest, context: Any) -> Reply:
        """Return the conversation with a customer and its newest messages."""
        named = await self._named(request)
        limit = size(request.message_limit, DEFAULT_MESSAGES)
        tag = conversation_tag(self.tags.conversations(request.salon_id), named.conversation_id, named.phone_number)
        reply = await self.cache.get_batched(
            tag.key("get", digest(named, limit)),
            ConversationQuery(named, limit),
            conversation_queries.conversations_with_messages,
            batch=ConversationQuery.names,
            rows=limit + 1,
            repeatable=not is_national(request.phone_number),
        )
        if reply.body is None:
            raise errors.not_found("conversation", str(named))
        return reply

    async def GetMessage(self, request: pb.GetMessageRequest, context: Any) -> bytes:
        """Return a message with its raw item and its status events."""
        salon_id, message_id, whatsapp_id = request.salon_id, request.message_id, request.whatsapp_id
        async with self.database.connection() as conn:
            message = await message_queries.message_with_events(conn, salon_id, message_id, whatsapp_id)
        if message is None:
            raise errors.not_found("message", f"{salon_id}/{message_id or 'whatsapp_id'}")
        return message

    async def ListWebhookFailures(self, request: pb.ListWebhookFailuresRequest, context: Any) -> bytes:
        """List the webhook items of a salon that could not be recorded."""
        list_page = page(request.page_size, request.page_token, "ListWebhookFailures", request.salon_id)
        async with self.database.connection() as conn:
            failures = await list_failures(conn, request.salon_id, list_page)
        return list_page.fill(pb.ListWebhookFailuresResponse, failures, "create_time", "webhook_failure_id")

    async def ReplayWebhookFailures(
        self, request: pb.ReplayWebhookFailuresRequest, context: Any
    ) -> pb.ReplayWebhookFailuresResponse:
        """Record webhook items again that could not be recorded."""
        return await self.replays.replay(request)

    async def ListConversations(self, request: pb.ListConversationsRequest, context: Any) -> Reply:
        """List a salon's conversations, each with an excerpt of its last message."""
        number = await number_prefix(request.query, lambda: self.salons.region_code(request.salon_id))
        filters = inbox_queries.conversation_filters(request, number)
        list_page = page(request.page_size, request.page_token, "ListConversations", *filters)
        return await self.cache.get_batched(
            self.tags.conversations(request.salon_id).key("list", digest(list_page)),
            (filters, list_page),
            inbox_queries.list_conversations,
            batch=inbox_queries.statement_key,
            rows=list_page.rows,
            repeatable=not is_national(request.query),
            replica=bool(request.page_token),
        )

    async def UpdateConversationStatus(
        self, request: pb.UpdateConversationStatusRequest, context: Any
    ) -> pb.Conversation:
        """Change the status of a conversation."""

        async def status(_: Any, __: pb.Conversation) -> str:
            return _bare_name(pb.ConversationStatus, request.status)

        return await self._update(request, "status", status)

    async def AssignConversation(self, request: pb.AssignConversationRequest, context: Any) -> pb.Conversation:
        """Assign a conversation to somebody, or to nobody."""

        async def assignee(_: Any, __: pb.Conversation) -> str:
            return request.assignee

        return await self._update(request, "assignee", assignee)

    async def TagConversation(self, request: pb.TagConversationRequest, context: Any) -> pb.Conversation:
        """Add tags to a conversation and remove others."""

        async def tags(_: Any, conversation: pb.Conversation) -> list[str]:
            left = sorted(set(conversation.tags).difference(request.remove_tags).union(request.add_tags))
            if len(left) > MOST_TAGS:
                raise errors.invalid_fields(
                    [("add_tags", f"the conversation would have {len(left)} tags, {MOST_TAGS} are allowed")]
                )
            return left

        return await self._update(request, "tags", tags)

    async def MarkConversationRead(self, request: pb.MarkConversationReadRequest, context: Any) -> pb.Conversation:
        """Mark the messages of a conversation as read, all of them or those up to one."""

        async def unread(conn: Any, conversation: pb.Conversation) -> int | None:
            if not (message_id := request.up_to_message_id):
                return 0 if conversation.unread_count else None
            after = await conversation_queries.count_unread_after(conn, conversation, message_id)
            if after is None:
                raise errors.not_found("message", f"{request.salon_id}/{message_id}")
            return after if after < conversation.unread_count else None

        return await self._update(request, "unread_count", unread)

    async def ListMessages(self, request: pb.ListMessagesRequest, context: Any) -> Reply:
        """List messages of a salon, a conversation or a customer."""
        salon_id, conversation_id = request.salon_id, request.conversation_id.lower()
        phone_number = await self.customers.phone_number(request)
        direction = _bare_name(pb.MessageDirection, request.direction) if request.direction else ""
        times = moment(request, "after_time"), moment(request, "before_time")
        around = request.around_message_id.lower()
        filters = MessageFilters(salon_id, conversation_id, phone_number, direction, *times, around)
        list_page = page(request.page_size, request.page_token, "ListMessages", *filters, both_ways=True)
        if request.page_token:
            filters = filters._replace(around="")
        tag = conversation_tag(self.tags.messages(salon_id), conversation_id, phone_number)
        return await self.cache.get_batched(
            tag.key(digest(list_page)),
            (filters, list_page),
            message_list_queries.list_messages,
            batch=names_given,
            rows=list_page.rows,
            repeatable=not is_national(request.phone_number),
            replica=bool(request.page_token),
        )

    async def SearchMessages(self, request: pb.SearchMessagesRequest, context: Any) -> Reply:
        """Find messages by the words in them, or by similar ones."""
        salon_id = request.salon_id
        list_page = page(request.page_size, request.page_token, "SearchMessages", salon_id, request.query)

        async def load(conn: Any) -> Loaded[bytes | RpcError]:
            return await search.search_page(conn, salon_id, request.query, list_page)

        key = self.tags.messages(salon_id).key("search", digest(list_page))
        return await self.cache.get(key, load, connect=partial(self.searches.connection, salon_id), repeatable=True)

    async def EraseCustomer(self, request: pb.EraseCustomerRequest, context: Any) -> pb.EraseCustomerResponse:
        """Remove what identifies a customer, and the texts written with them."""
        salon_id, tags = request.salon_id, self.tags
        named = Named(salon_id, "", await self.customers.phone_number(request), request.user_id)
        try:
            async with self.write.alone(request, salon_id) as write:
                erased = await erasure.find_erased(write.conn, named)
                conversation_ids = [*erased.conversation_ids, *erased.group_ids]
                customers = [(conversation_id, "") for conversation_id in conversation_ids]
                customers += [("", phone_number) for phone_number in erased.phone_numbers]
                write.invalidate(*tags.of_customers(salon_id, *customers))
                reply = write.reply = await erasure.erase_customer(write.conn, erased)
        finally:  # also for a repeated request: the first one may have ended right after its commit
            await self.cache.erase(tags.messages(salon_id), tags.conversations(salon_id))
        return reply

    async def RecordAiMessage(self, request: pb.RecordAiMessageRequest, context: Any) -> pb.AiMessage:
        """Record a message to or from an AI model."""
        tag = self.tags.ai_messages(request.salon_id, request.conversation_id.lower())
        async with self.write(request, request.salon_id, invalidates=[tag]) as write:
            message = write.reply = await ai_queries.insert_ai_message(write.conn, request)
            if message is None:
                raise errors.not_found("conversation", f"{request.salon_id}/{request.conversation_id}")
            if message.conversation_id != request.conversation_id.lower():  # a merged conversation's
                write.invalidate(self.tags.ai_messages(request.salon_id, message.conversation_id))
        return message

    async def ListAiMessages(self, request: pb.ListAiMessagesRequest, context: Any) -> Reply:
        """List the AI messages of a conversation."""
        salon_id, conversation_id = request.salon_id, request.conversation_id.lower()
        list_page = page(request.page_size, request.page_token, "ListAiMessages", salon_id, conversation_id)
        return await self.cache.get_batched(
            self.tags.ai_messages(salon_id, conversation_id).key(digest(list_page)),
            (AiMessageFilters(salon_id, conversation_id), list_page),
            ai_queries.list_ai_messages,
            batch=names_given,
            rows=list_page.rows,
            repeatable=True,
            replica=bool(request.page_token),
        )

    async def GetCustomer(self, request: pb.GetCustomerRequest, context: Any) -> Reply:
        """Return a customer by an ID or a number, also by an earlier one."""
        return await self.customers.get(request)

    async def ListCustomers(self, request: pb.ListCustomersRequest, context: Any) -> Reply:
        """List a salon's customers."""
        return await self.customers.list(request)

    async def RecordOptOut(self, request: pb.RecordOptOutRequest, context: Any) -> pb.Customer:
        """Record that a customer opted out of marketing messages, or in again."""
        return await self.customers.record_opt_out(request)

    async def ListMessageChanges(self, request: pb.ListMessageChangesRequest, context: Any) -> bytes:
        """List the changes of one salon or all, in an order that loses none."""
        return await self.changes.list(request)

    def WatchMessages(self, request: pb.WatchMessagesRequest, context: Any) -> AsyncIterator[bytes]:
        """Stream the changes of one salon or all."""
        return self.changes.watch(request)

    async def _named(self, request: Any) -> Named:
        """Return the names of a request's conversation."""
        phone_number = await self.customers.phone_number(request)
        return Named(request.salon_id, request.conversation_id.lower(), phone_number, request.user_id)

    async def _update(
        self,
        request: Any,
        column: Literal["status", "assignee", "tags", "unread_count"],
        value: Callable[[Any, pb.Conversation], Awaitable[object]],
    ) -> pb.Conversation:
        """Set a column of a request's conversation to what `value` returns for it; None leaves it unchanged."""
        named = await self._named(request)
        async with self.write(request, request.salon_id) as write:
            conversation = await conversation_queries.lock_conversation(write.conn, named)
            if conversation is None:
                raise errors.not_found("conversation", str(named))
            if getattr(request, "etag", "") not in ("", conversation.etag):
                raise errors.etag_mismatch("conversation", str(named))
            if (new := await value(write.conn, conversation)) is not None:
                tag = self.tags.conversations(request.salon_id)
                write.invalidate(tag, conversation_tag(tag, conversation.conversation_id))
                write.invalidate(conversation_tag(tag, "", conversation.phone_number))
                conversation = await conversation_queries.update_conversation(write.conn, conversation, column, new)
            write.reply = conversation
        return conversation


def build(cache: Cache, database: Database, settings: MessagingSettings | None = None) -> Service:
    """Return the service for a server, with a channel to the booking service."""
    settings = settings or MessagingSettings()
    to_booking = channel(
        settings.booking_address,
        booking_pb2.DESCRIPTOR.services_by_name["BookingService"],
        identity=settings.booking_identity,
    )
    salons = Salons(cache, booking_pb2_grpc.BookingServiceStub(to_booking), settings.booking_timeout)
    messaging = MessagingService(cache, database, salons, settings)
    rollups = Rollups(database.connection)
    return Service(
        descriptor=pb.DESCRIPTOR.services_by_name["MessagingService"],
        servicer=messaging,
        add=messaging_pb2_grpc.add_MessagingServiceServicer_to_server,
        salon_tags=messaging.tags.of_salon,
        largest_requests=LARGEST_REQUESTS,
        background=[
            lambda: messaging.requests.purge(database.connection),
            Retention(cache, database, settings).run,
            lambda: backfill(cache, database),
            messaging.changes.run,
            messaging.changes.purge,
            rollups.run,
        ],
        metrics=[messaging.changes, rollups],
        close=to_booking.close,
    )


def _new_message(request: pb.RecordMessageRequest, phone_number: str, *, salon_known: bool) -> NewMessage:
    direction = _bare_name(pb.MessageDirection, request.direction)
    kind = _bare_name(pb.MessageType, request.type or pb.MESSAGE_TYPE_TEXT)
    created_at = moment(request, "send_time") or datetime.now(UTC)
    return NewMessage(
        message_id=message_ids.new(created_at),
        salon_id=request.salon_id,
        salon_known=salon_known,
        phone_number=phone_number or None,
        user_id=request.user_id or None,
        customer_name="",
        direction=direction,
        group_id=None,
        whatsapp_id=request.whatsapp_id or None,
        type=kind,
        content=request.content,
        media_id=request.media_id or None,
        reply_to_whatsapp_id=request.reply_to_whatsapp_id or None,
        error_code=None,
        error_title=None,
        cost_micros=request.cost_micros,
        currency_code=request.currency_code or None,
        language=None,
        created_at=created_at,
        in_window=direction == "OUTBOUND" and kind != "TEMPLATE",
        **rule(direction, kind)._asdict(),
        details=None,
        item=None,
    )


def _new_status(request: pb.RecordMessageStatusRequest) -> NewStatus:
    return NewStatus(
        salon_id=request.salon_id,
        whatsapp_id=request.whatsapp_id,
        status=_bare_name(pb.MessageStatus, request.status),
        occurred_at=moment(request, "event_time"),
        error_code=request.error_code or None,
        error_title=request.error_title or None,
        pricing_category=request.pricing_category or None,
        billable=request.billable if request.HasField("billable") else None,
        cost_micros=request.cost_micros or None,
        currency_code=request.currency_code if request.cost_micros else None,
        conversation_origin=request.conversation_origin or None,
        details=None,
    )


def _window_closed(message: NewMessage) -> RpcError:
    subject = f"conversation/{message.salon_id}/{'phone_number' if message.phone_number else 'user_id'}"
    text = "the customer wrote nothing in the 24 h before: only a TEMPLATE may be sent"
    return errors.failed_precondition("SERVICE_WINDOW_CLOSED", subject, text)


def _bare_name(kind: Any, value: int) -> str:
    """Return the name of an enum value without the enum's prefix, as the database stores it."""
    name: str = kind.Name(value)
    return name.removeprefix(kind.Name(0).removesuffix("UNSPECIFIED"))
