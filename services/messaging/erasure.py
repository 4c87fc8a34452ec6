"""The RPC that erases a customer."""

from collections.abc import Iterator
from typing import Any

from libs.cache import Tag
from parlor.messaging.v1 import messaging_pb2 as pb
from services.cache_tags import of_names
from services.messaging import erasure_queries as queries
from services.messaging.conversation_queries import Named
from services.messaging.messages import lock
from services.messaging.rpcs import Rpcs


class ErasureRpcs(Rpcs):
    """What the law asks for."""

    async def EraseCustomer(self, request: pb.EraseCustomerRequest, context: Any) -> pb.EraseCustomerResponse:
        """Remove what identifies a customer and all that was written with them."""
        salon_id = request.salon_id
        named = Named(salon_id, "", await self.phone_number(request), request.user_id)
        async with self.database.connection() as conn:
            locks = tuple({lock(salon_id, name) for name in await queries.names(conn, named)})
        try:
            async with self.write(request, salon_id, locks=locks) as write:
                customer = await queries.lock_customer(write.conn, named)
                write.invalidate(*self._touched(customer))
                await queries.erase_replies(write.conn, customer)
                await queries.erase_conversations(write.conn, customer)
                reply = write.reply = pb.EraseCustomerResponse(
                    conversations=len(customer.conversation_ids),
                    messages=await queries.erase_messages(write.conn, customer),
                    ai_messages=await queries.erase_ai_messages(write.conn, customer),
                )
                await queries.erase_webhook_failures(write.conn, customer)
                await queries.erase_early_statuses(write.conn, customer)
        finally:  # also after a repeat, whose first time may have ended right after its commit
            await self.cache.erase(*self.wholes(salon_id))
        return reply

    def _touched(self, customer: queries.Customer) -> Iterator[Tag]:
        for tag in self.wholes(customer.salon_id):
            yield from of_names(tag, customer.conversation_ids, customer.phone_numbers)
        for conversation_id in customer.conversation_ids:
            yield self.tags.ai_messages(customer.salon_id, conversation_id)
