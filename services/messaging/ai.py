"""The RPCs on AI messages."""

from typing import Any

from libs.cache import Reply, digest
from libs.server import errors, names_given, page
from parlor.messaging.v1 import messaging_pb2 as pb
from services.messaging import ai_queries
from services.messaging.ai_queries import AiMessageFilters
from services.messaging.rpcs import Rpcs


class AiRpcs(Rpcs):
    """What an AI model was asked or answered."""

    async def RecordAiMessage(self, request: pb.RecordAiMessageRequest, context: Any) -> pb.AiMessage:
        """Record what an AI model was asked or answered."""
        tag = self.tags.ai_messages(request.salon_id, request.conversation_id.lower())
        async with self.write(request, request.salon_id, tag) as write:
            message = write.reply = await ai_queries.insert_ai_message(write.conn, request)
            if message is None:
                raise errors.not_found("conversation", f"{request.salon_id}/{request.conversation_id}")
        return message

    async def ListAiMessages(self, request: pb.ListAiMessagesRequest, context: Any) -> Reply:
        """List the AI messages of a conversation."""
        salon_id, conversation_id = request.salon_id, request.conversation_id.lower()
        wanted = page(request.page_size, request.page_token, "ListAiMessages", salon_id, conversation_id)
        key = self.tags.ai_messages(salon_id, conversation_id).key(digest(wanted))
        return await self.cache.get_batched(
            key,
            (AiMessageFilters(salon_id, conversation_id), wanted),
            ai_queries.list_ai_messages,
            batch=names_given,
            rows=wanted.rows,
            repeatable=True,
        )
