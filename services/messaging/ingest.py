"""The RPCs on webhook bodies."""

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

from libs.db import Statement
from libs.server import page
from parlor.booking.v1.booking_pb2 import Salon
from parlor.messaging.v1 import messaging_pb2 as pb
from services.messaging import failure_queries, ingest_queries, status_queries
from services.messaging.ingest_queries import NewMessage
from services.messaging.messages import lock
from services.messaging.rpcs import Rpcs
from services.messaging.status_queries import NewStatus
from services.messaging.webhook import parse
from services.messaging.webhook.items import Incoming, Status
from services.messaging.webhook.parse import Change, Failure

MOST_NAMES = 100


class Received(NamedTuple):
    """What a salon received: what one transaction records of a body."""

    salon_id: str
    messages: Sequence[NewMessage]
    statuses: Sequence[NewStatus]
    failures: Sequence[Failure]

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
            statements["failures"] = failure_queries.insert_failures(self.salon_id, "", self.failures)
        return statements

    def locks(self) -> Iterator[str]:
        """Name what no other transaction may record meanwhile."""
        for message in self.messages:
            for name in filter(None, (message.whatsapp_id, message.user_id, message.phone_number)):
                yield lock(self.salon_id, name)
        for status in self.statuses:
            yield lock(self.salon_id, status.whatsapp_id)


class WebhookRpcs(Rpcs):
    """Webhook bodies, taken in."""

    async def IngestWebhook(self, request: pb.IngestWebhookRequest, context: Any) -> pb.IngestWebhookResponse:
        """Record every message and status of a webhook body, in transactions of some items of one salon each.

        Where one fails the others are recorded all the same, but for those of the same phone_number_id behind it; then
        the error is raised, so that the sender repeats the body. What is recorded already is a duplicate then.
        """
        reply = pb.IngestWebhookResponse()
        salons: dict[str, Salon | None] = {"": None}
        failed: dict[str, Exception] = {}
        async for name, change in self._changes(request.payload, request.signature):
            if name in failed:
                continue
            try:
                if name not in salons:
                    salons[name] = await self.salons.of_phone_number_id(name)
                if (salon := salons[name]) is not None:
                    await self._record(request, salon, change, reply)
                else:
                    await self._keep(request, name, change, reply)
            except Exception as error:
                failed[name] = error
        for error in failed.values():
            raise error
        unknown = sorted(name for name, salon in salons.items() if name and salon is None)
        reply.unknown_phone_number_ids.extend(unknown[:MOST_NAMES])
        return reply

    async def _changes(self, payload: bytes, signature: str) -> AsyncIterator[tuple[str, Change]]:
        """Yield what is in a body, once its signature is checked."""
        secret = self.settings.whatsapp_app_secret.get_secret_value()
        steps = chain(parse.check_signature(payload, signature, secret), parse.read(payload))
        if parse.is_small(payload):
            for found in filter(None, steps):
                yield found
        else:
            async for found in self.slices.each(steps):
                yield found

    async def _record(
        self, request: pb.IngestWebhookRequest, salon: Salon, change: Change, reply: pb.IngestWebhookResponse
    ) -> None:
        """Record what a salon received."""
        received = Received(
            salon.salon_id,
            [_new_message(salon, message) for message in change.messages],
            [_new_status(salon, status) for status in change.statuses],
            change.failures,
        )
        if statements := received.statements():
            first = list(statements.values())
            async with self.write(request, salon.salon_id, locks=set(received.locks()), first=first) as write:
                found = dict(zip(statements, write.first, strict=True))
                written = [*found.get("messages", ()), *found.get("changed", ())]
                write.invalidate(*self.touched(*found.get("told", ()), *(message.place for message in written)))
            _count(received, found, reply)

    async def _keep(
        self, request: pb.IngestWebhookRequest, name: str, change: Change, reply: pb.IngestWebhookResponse
    ) -> None:
        """Keep what belongs to no salon that is known."""
        unknown = sum(failure.unknown and failure.kind == "OTHER" for failure in change.failures)
        if failures := change.unplaced(name):
            async with self.write(request, "", first=[failure_queries.insert_failures("", name, failures)]):
                pass
        reply.unknown += unknown
        reply.rejected += len(failures) - unknown

    async def ListWebhookFailures(self, request: pb.ListWebhookFailuresRequest, context: Any) -> bytes:
        """List the webhook items of a salon that could not be recorded."""
        wanted = page(request.page_size, request.page_token, "ListWebhookFailures", request.salon_id)
        async with self.database.connection() as conn:
            rows = await failure_queries.list_failures(conn, request.salon_id, wanted)
        return wanted.fill(pb.ListWebhookFailuresResponse, rows, "create_time", "webhook_failure_id")


def _count(received: Received, found: Mapping[str, Any], reply: pb.IngestWebhookResponse) -> None:
    """Count what the statements have recorded."""
    _, messages, statuses, failures = received
    inserted, added, failed = found.get("messages", ()), found.get("statuses", ()), found.get("failures", set())
    unknown = sum(message.is_unknown for message in inserted)
    expected = failed & {failure.digest for failure in failures if failure.unknown}
    reply.messages += len(inserted) - unknown
    reply.statuses += len(added)
    reply.unknown += unknown + len(expected)
    reply.rejected += len(failed - expected)
    given, recorded = len(messages) + len(statuses) + len(failures), len(inserted) + len(added) + len(failed)
    reply.duplicates += given - recorded


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
