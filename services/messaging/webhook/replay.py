"""Records again the webhook items that could not be recorded, for example after an upgrade or once a salon exists."""

import json

from libs.db import Database
from libs.server import page
from parlor.booking.v1.booking_pb2 import Salon
from parlor.messaging.v1 import messaging_pb2 as pb
from services.messaging.salons import Salons
from services.messaging.webhook.change import Change
from services.messaging.webhook.failure_queries import StoredFailure, delete_failure, failures_after
from services.messaging.webhook.ingest import REFUSALS, WebhookIngest


class WebhookReplay:
    """Replays webhook failures."""

    def __init__(self, database: Database, salons: Salons, webhooks: WebhookIngest) -> None:
        """Prepare."""
        self._database = database
        self._salons = salons
        self._webhooks = webhooks

    async def replay(self, request: pb.ReplayWebhookFailuresRequest) -> pb.ReplayWebhookFailuresResponse:
        """Record the failures of a page, oldest first, and delete those that could be recorded.

        Each is recorded in a separate transaction. If one fails, those before it are recorded; a repeat goes on with
        the rest.
        Raises: as ReplayWebhookFailures.
        """
        list_page = page(request.page_size, request.page_token, "ReplayWebhookFailures", request.salon_id)
        salons: dict[str, Salon | None] = {"": await self._salons.get(request.salon_id) if request.salon_id else None}
        async with self._database.connection() as conn:
            failures = await failures_after(conn, request.salon_id, list_page)
        reply = pb.ReplayWebhookFailuresResponse()
        shown = failures[: list_page.size]
        for failure in shown:
            number = failure.phone_number_id
            if number not in salons:
                salons[number] = await self._salons.of_phone_number_id(number)
            salon = salons[number]
            try:
                recorded = salon is not None and await self._record(request, failure, salon, reply)
            except REFUSALS:
                recorded = False
            reply.failures += not recorded
        if len(failures) > len(shown):
            last = shown[-1]
            reply.next_page_token = list_page.token(last.created_micros, last.webhook_failure_id)
        return reply

    async def _record(
        self,
        request: pb.ReplayWebhookFailuresRequest,
        failure: StoredFailure,
        salon: Salon,
        reply: pb.ReplayWebhookFailuresResponse,
    ) -> bool:
        """Record the items of a failure and delete it; return False if it stays as it is."""
        payload = _body(failure)
        if payload is None:
            return False
        found = self._webhooks.changes(payload)
        changes = [change async for _, change in found if change.items or change.failures]
        if any(failed.digest == failure.digest for change in changes for failed in change.failures):
            return False
        counts = pb.IngestWebhookResponse()
        *first, last = changes or [Change()]
        for change in first:
            await self._webhooks.record(request, salon, change, counts)
        await self._webhooks.record(request, salon, last, counts, [delete_failure(failure)])
        failures = [failed for change in changes for failed in change.failures]
        unknown_types = counts.unknown - sum(failed.is_unknown_kind for failed in failures)
        reply.messages += counts.messages + unknown_types
        reply.statuses += counts.statuses
        reply.customers += counts.customers
        reply.duplicates += counts.duplicates
        reply.failures += len(failures)
        return True


def _body(failure: StoredFailure) -> bytes | None:
    """Return a webhook body with the item of a failure and its sender; None if it is not the item of a body."""
    names = {"wa_id": failure.phone_number.removeprefix("+"), "user_id": failure.user_id}
    contacts = [{name: value for name, value in names.items() if value}]
    try:
        item = json.loads(failure.item)
        if failure.kind == "OTHER":
            if not isinstance(item, dict) or "value" not in item:
                return None
            change = item
        else:
            items = {"MESSAGE": "messages", "STATUS": "statuses"}[failure.kind]
            change = {"field": "messages", "value": {items: [item], "contacts": contacts}}
        return json.dumps({"entry": [{"changes": [change]}]}, allow_nan=False).encode()
    except (ValueError, RecursionError):  # truncated, not JSON, or nested too deeply
        return None
