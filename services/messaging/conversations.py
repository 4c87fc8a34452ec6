"""The RPCs on conversations."""

from typing import Any

from libs.cache import Reply
from libs.db import Loaded
from libs.rpc import errors, page, size
from parlor.messaging.v1 import messaging_pb2 as pb
from services.messaging import conversation_queries as queries
from services.messaging.rpcs import Rpcs, word

DEFAULT_MESSAGES = 10


class ConversationRpcs(Rpcs):
    """Conversations, found and looked after."""

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
        status = word(pb.ConversationStatus, request.status) if request.status else ""

        async def load(conn: Any) -> Loaded[pb.ListConversationsResponse]:
            stamp, rows = await queries.list_conversations(conn, request.salon_id, status, wanted)
            response = pb.ListConversationsResponse()
            return Loaded(stamp, wanted.fill(response, rows, "last_message_time", "conversation_id"))

        return await self.cache.read(self.list_key(request.salon_id, wanted), load)

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
            status = word(pb.ConversationStatus, request.status)
            after = write.reply = await queries.update_conversation_status(write.conn, conversation, status)
        return after
