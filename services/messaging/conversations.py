"""The RPCs on conversations."""

from collections.abc import Callable
from typing import Any, Literal

from libs.cache import Reply, digest
from libs.server import errors, names_given, page, size
from parlor.messaging.v1 import messaging_pb2 as pb
from services.cache_tags import of_name, of_names
from services.messaging import conversation_queries as queries
from services.messaging.conversation_queries import Filters, Named, Wanted
from services.messaging.rpcs import Rpcs, word
from services.phones import is_national

DEFAULT_MESSAGES = 10
MOST_TAGS = 50


class ConversationRpcs(Rpcs):
    """Conversations, found and looked after."""

    async def GetConversation(self, request: pb.GetConversationRequest, context: Any) -> Reply:
        """Return the conversation with a customer and its newest messages."""
        named = await self._named(request)
        limit = size(request.message_limit, DEFAULT_MESSAGES)
        tag = of_name(self.tags.conversations(request.salon_id), named.conversation_id, named.phone_number)
        reply = await self.cache.get_batched(
            tag.key("get", digest(named, limit)),
            Wanted(named, limit),
            queries.conversations_with_messages,
            batch=Wanted.names,
            rows=limit + 1,
            repeatable=not is_national(request.phone_number),
        )
        if reply.body is None:
            raise errors.not_found("conversation", str(named))
        return reply

    async def ListConversations(self, request: pb.ListConversationsRequest, context: Any) -> Reply:
        """List a salon's conversations."""
        status = word(pb.ConversationStatus, request.status) if request.status else ""
        filters = Filters(request.salon_id, status, request.tag, request.unread_only, request.assignee)
        wanted = page(request.page_size, request.page_token, "ListConversations", *filters)
        key = self.tags.conversations(request.salon_id).key("list", digest(wanted))
        return await self.cache.get_batched(
            key,
            (filters, wanted),
            queries.list_conversations,
            batch=names_given,
            rows=wanted.rows,
            repeatable=True,
        )

    async def UpdateConversationStatus(
        self, request: pb.UpdateConversationStatusRequest, context: Any
    ) -> pb.Conversation:
        """Move a conversation to another status."""
        return await self._change(request, "status", lambda _: word(pb.ConversationStatus, request.status))

    async def AssignConversation(self, request: pb.AssignConversationRequest, context: Any) -> pb.Conversation:
        """Give a conversation to somebody, or to nobody."""
        return await self._change(request, "assignee", lambda _: request.assignee)

    async def TagConversation(self, request: pb.TagConversationRequest, context: Any) -> pb.Conversation:
        """Add tags to a conversation and remove others."""

        def tags(conversation: pb.Conversation) -> list[str]:
            left = sorted(set(conversation.tags).difference(request.remove_tags).union(request.add_tags))
            if len(left) > MOST_TAGS:
                raise errors.invalid_fields(
                    [("add_tags", f"the conversation would have {len(left)} tags, {MOST_TAGS} are allowed")]
                )
            return left

        return await self._change(request, "tags", tags)

    async def MarkConversationRead(self, request: pb.MarkConversationReadRequest, context: Any) -> pb.Conversation:
        """Say that all messages of a conversation were read."""
        return await self._change(
            request, "unread_count", lambda conversation: 0 if conversation.unread_count else None
        )

    async def _named(self, request: Any) -> Named:
        return Named(
            request.salon_id, request.conversation_id.lower(), await self.phone_number(request), request.user_id
        )

    async def _change(
        self,
        request: Any,
        column: Literal["status", "assignee", "tags", "unread_count"],
        value: Callable[[pb.Conversation], object],
    ) -> pb.Conversation:
        """Set a column of the conversation that a request names, to what `value` makes of it; None leaves it."""
        named = await self._named(request)
        async with self.write(request, request.salon_id) as write:
            conversation = await queries.lock_conversation(write.conn, named)
            if conversation is None:
                raise errors.not_found("conversation", str(named))
            if getattr(request, "etag", "") not in ("", conversation.etag):
                raise errors.etag_mismatch("conversation", str(named))
            if (new := value(conversation)) is not None:
                tag = self.tags.conversations(request.salon_id)
                write.invalidate(*of_names(tag, [conversation.conversation_id], [conversation.phone_number]))
                conversation = await queries.update_conversation(write.conn, conversation, column, new)
            write.reply = conversation
        return conversation
