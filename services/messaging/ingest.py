"""The RPCs on webhook bodies."""

from collections.abc import Sequence
from operator import itemgetter
from typing import Any

from parlor.messaging.v1 import messaging_pb2 as pb
from services.messaging import message_queries as queries
from services.messaging import webhook
from services.messaging.message_queries import NewMessage, NewStatus
from services.messaging.messages import lock
from services.messaging.rpcs import Rpcs


class WebhookRpcs(Rpcs):
    """Webhook bodies, taken in."""

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
            salon = await self.salons.of_phone_number_id(phone_number_id) if phone_number_id else None
            if salon:
                changes.append((salon.salon_id, change))
            else:
                reply.rejected += len(items)
        if not changes:
            return reply
        groups = [group for salon_id, _ in changes for group in self.touched(salon_id)]
        locks = tuple({lock(salon_id, item.whatsapp_id) for salon_id, change in changes for item in _items(change)})
        async with self.write(request, "", *groups, locks=locks) as write:
            for salon_id, change in sorted(changes, key=itemgetter(0)):
                await _ingest(write.conn, salon_id, change, reply)
            write.reply = reply
        return reply


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
