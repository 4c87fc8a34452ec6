"""The RPCs on webhook bodies."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from libs.db import Statement
from libs.rpc import page
from parlor.booking.v1.booking_pb2 import Salon
from parlor.messaging.v1 import messaging_pb2 as pb
from services.messaging import failure_queries, ingest_queries, status_queries, webhook
from services.messaging.ingest_queries import NewMessage
from services.messaging.messages import lock
from services.messaging.rpcs import Rpcs
from services.messaging.status_queries import NewStatus
from services.messaging.webhook_items import Incoming, Status


class Received(NamedTuple):
    """What the salons of one body received, in the order of their ids."""

    messages: Sequence[NewMessage]
    statuses: Sequence[NewStatus]
    failures: Sequence[tuple[str, webhook.Failure]]

    def statements(self) -> dict[str, Statement[Any]]:
        """Return what records it, in this order."""
        statements: dict[str, Statement[Any]] = {}
        if any(message.phone_number and message.user_id for message in self.messages):
            statements["told"] = ingest_queries.tell_phone_numbers(self.messages)
        if self.messages:
            statements["messages"] = ingest_queries.insert_messages(self.messages)
        if self.statuses:
            statements["statuses"] = status_queries.insert_statuses(self.statuses)
            statements["changed"] = status_queries.apply_statuses(self.statuses)
        if self.failures:
            statements["failures"] = failure_queries.insert_failures(self.failures)
        return statements

    def locks(self) -> Iterator[str]:
        """Name what no other transaction may record meanwhile."""
        for message in self.messages:
            for name in filter(None, (message.whatsapp_id, message.user_id, message.phone_number)):
                yield lock(message.salon_id, name)
        for status in self.statuses:
            yield lock(status.salon_id, status.whatsapp_id)


class WebhookRpcs(Rpcs):
    """Webhook bodies, taken in."""

    async def IngestWebhook(self, request: pb.IngestWebhookRequest, context: Any) -> pb.IngestWebhookResponse:
        """Record every message and status of a webhook body, in one transaction."""
        webhook.check_signature(
            request.payload, request.signature, self.settings.whatsapp_app_secret.get_secret_value()
        )
        reply = pb.IngestWebhookResponse()
        changes: list[tuple[Salon, webhook.Change]] = []
        for phone_number_id, change in webhook.read(request.payload).items():
            salon = await self.salons.of_phone_number_id(phone_number_id) if phone_number_id else None
            if salon:
                changes.append((salon, change))
            else:
                _count_unplaced(change, reply)
        received = _received(sorted(changes, key=lambda pair: pair[0].salon_id))
        if statements := received.statements():
            first = list(statements.values())
            async with self.write(request, "", locks=set(received.locks()), first=first) as write:
                found = dict(zip(statements, write.first, strict=True))
                written = [*found.get("messages", ()), *found.get("changed", ())]
                write.invalidate(*self.touched(*found.get("told", ()), *(message.place for message in written)))
            _count(received, found, reply)
        return reply

    async def ListWebhookFailures(self, request: pb.ListWebhookFailuresRequest, context: Any) -> bytes:
        """List the webhook items of a salon that could not be recorded."""
        wanted = page(request.page_size, request.page_token, "ListWebhookFailures", request.salon_id)
        async with self.database.connection() as conn:
            rows = await failure_queries.list_failures(conn, request.salon_id, wanted)
        return wanted.fill(pb.ListWebhookFailuresResponse, rows, "create_time", "webhook_failure_id")


def _count(received: Received, found: Mapping[str, Any], reply: pb.IngestWebhookResponse) -> None:
    """Count what the statements have recorded."""
    messages, statuses, failures = received
    inserted, added, failed = found.get("messages", ()), found.get("statuses", ()), found.get("failures", set())
    unknown = sum(message.is_unknown for message in inserted)
    expected = failed & {(salon_id, failure.digest) for salon_id, failure in failures if failure.unknown}
    reply.messages += len(inserted) - unknown
    reply.statuses += len(added)
    reply.unknown += unknown + len(expected)
    reply.rejected += len(failed - expected)
    given, recorded = len(messages) + len(statuses) + len(failures), len(inserted) + len(added) + len(failed)
    reply.duplicates += given - recorded


def _count_unplaced(change: webhook.Change, reply: pb.IngestWebhookResponse) -> None:
    """Count what belongs to no salon that is known."""
    unknown = sum(failure.unknown and failure.kind == "OTHER" for failure in change.failures)
    reply.unknown += unknown
    reply.rejected += len(change.messages) + len(change.statuses) + len(change.failures) - unknown


def _received(changes: Sequence[tuple[Salon, webhook.Change]]) -> Received:
    return Received(
        [_new_message(salon, message) for salon, change in changes for message in change.messages],
        [_new_status(salon, status) for salon, change in changes for status in change.statuses],
        [(salon.salon_id, failure) for salon, change in changes for failure in change.failures],
    )


def _new_message(salon: Salon, item: Incoming) -> NewMessage:
    return NewMessage(
        salon_id=salon.salon_id,
        salon_known=True,
        direction="INBOUND",
        type=item.type_name,
        cost_micros=0,
        currency_code=None,
        language=salon.language_code,
        **item.model_dump(exclude={"type"}),
    )


def _new_status(salon: Salon, item: Status) -> NewStatus:
    return NewStatus(salon_id=salon.salon_id, status=item.status.upper(), **item.model_dump(exclude={"status"}))
