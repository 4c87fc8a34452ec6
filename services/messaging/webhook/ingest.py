"""Records webhook bodies: their messages, their statuses, and the items that can't be recorded."""

from collections.abc import AsyncIterator, Iterable, Sequence
from itertools import chain
from operator import attrgetter
from typing import Any

import psycopg

from libs.db import Statement
from libs.server import Slices
from parlor.booking.v1.booking_pb2 import Salon
from parlor.messaging.v1 import messaging_pb2 as pb
from services.cache_tags import CacheTags
from services.messaging.amendment_queries import fold_amendments
from services.messaging.customer_writes import CustomerWrites
from services.messaging.message_write_queries import message_lock
from services.messaging.salons import Salons
from services.messaging.webhook.change import Change
from services.messaging.webhook.failure_queries import insert_failures
from services.messaging.webhook.json_scanner import is_small
from services.messaging.webhook.parse import check_signature, read_webhook
from services.messaging.webhook.recording import WRITTEN, Items

MOST_UNKNOWN_IDS = 100  # in a reply
# The database refuses a value, such as NUL in a text or one that is too large for an index: also if it is repeated.
REFUSALS = (psycopg.DataError, psycopg.errors.ProgramLimitExceeded)


class WebhookIngest:
    """Records webhook bodies."""

    def __init__(self, write: CustomerWrites, tags: CacheTags, salons: Salons, secrets: Sequence[str]) -> None:
        """Prepare; `secrets` are those of the WhatsApp app, with any of which it may sign a body."""
        self._write = write
        self._tags = tags
        self._salons = salons
        self._secrets = secrets
        self._slices = Slices()

    async def ingest(self, request: pb.IngestWebhookRequest) -> pb.IngestWebhookResponse:
        """Record every message and status of a body, in transactions of some items of one salon each.

        If a transaction fails, the other salons' items are recorded nevertheless; then the error is raised, so that the
        sender repeats the body. What was recorded is a duplicate then.
        """
        reply = pb.IngestWebhookResponse()
        salons: dict[str, Salon | None] = {"": None}
        unknown: set[str] = set()
        failed: dict[str, Exception] = {}
        checks = check_signature(request.payload, request.signature, self._secrets)
        async for number, change in self.changes(request.payload, checks):
            if number in failed:
                continue
            try:
                if number not in salons:
                    salons[number] = await self._salons.of_phone_number_id(number)
                if (salon := salons[number]) is not None:
                    await self._record(request, salon, change, reply)
                else:
                    unknown |= {number} - {""}
                    await self._store_without_salon(request, number, change, reply)
            except Exception as error:
                failed[number] = error
        for error in failed.values():
            raise error
        reply.unknown_phone_number_ids.extend(sorted(unknown)[:MOST_UNKNOWN_IDS])
        return reply

    async def changes(self, payload: bytes, checks: Iterable[None] = ()) -> AsyncIterator[tuple[str, Change]]:
        """Yield the changes of a body; those of a large one in slices, between which other tasks run.

        The steps `checks` run first.
        """
        steps = chain(checks, read_webhook(payload))
        if is_small(payload):
            for found in steps:
                if found is not None:
                    yield found
        else:
            async for found in self._slices.each(steps):
                yield found

    async def _record(self, request: Any, salon: Salon, change: Change, reply: pb.IngestWebhookResponse) -> None:
        """Record a change as `record` does; if the database refuses an item, it becomes a failure."""
        try:
            await self.record(request, salon, change, reply)
        except REFUSALS:
            for one in change.apart():
                try:
                    await self.record(request, salon, one, reply)
                except REFUSALS:
                    await self.record(request, salon, one.refused(), reply)

    async def record(
        self,
        request: Any,
        salon: Salon,
        change: Change,
        reply: pb.IngestWebhookResponse,
        before: Sequence[Statement[Any]] = (),
    ) -> None:
        """Record a change of a salon in one transaction, and count what is new.

        The statements `before` are executed first in the transaction; their results do not matter.
        """
        salon_id = salon.salon_id
        items = Items.of(salon, change)
        statements = items.statements()
        if not statements and not before:
            return
        locks = {message_lock(salon_id, name) for name in items.names() if name}
        first = [*before, *statements.values()]
        writing = self._write.of_customers(
            request, salon_id, items.claims(), locks=locks, first=first, alone=bool(items.facts)
        )
        async with writing as write:
            found = dict(zip(statements, write.first[len(before) :], strict=True))
            written = [message for name in WRITTEN for message in found.get(name, ())]
            if amended := [message.whatsapp_id for message in written if message.is_amended]:
                await write.conn.run(fold_amendments(salon_id, amended))
            conversations = map(attrgetter("conversation"), written)
            keys = chain(found.get("touched", ()), conversations)
            write.invalidate(*self._tags.of_conversations(salon_id, *keys))
            write.invalidate(*self._tags.of_facts(salon_id, found.get("facts", ())))
        items.count(found, reply)

    async def _store_without_salon(
        self, request: pb.IngestWebhookRequest, number: str, change: Change, reply: pb.IngestWebhookResponse
    ) -> None:
        """Store the items of a phone_number_id that belongs to no known salon."""
        unknown = sum(failure.is_unknown_kind and failure.kind == "OTHER" for failure in change.failures)
        if failures := change.without_salon(number):
            async with self._write(request, "", first=[insert_failures("", number, failures)]):
                pass
        reply.unknown += unknown
        reply.rejected += len(failures) - unknown
