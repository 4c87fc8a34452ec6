"""The statements that record a change of a salon, and the counts of what was new."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from libs.db import Statement
from parlor.booking.v1.booking_pb2 import Salon
from parlor.messaging.v1 import messaging_pb2 as pb
from services.messaging import amendment_queries, merge_queries, message_write_queries, status_queries
from services.messaging.customer_queries import CustomerFact, write_facts
from services.messaging.identities import Claim
from services.messaging.message_ids import message_ids
from services.messaging.message_write_queries import NewMessage
from services.messaging.status_queries import NewStatus
from services.messaging.webhook.change import Change, Failure
from services.messaging.webhook.failure_queries import insert_failures
from services.messaging.webhook.items import Incoming

# The results of statements that are messages: inserted ones, merged ones, and those that others changed.
INSERTED, MERGED, CHANGED = ("messages", "of_groups"), ("called", "filled"), ("changed", "folded")
WRITTEN = (*INSERTED, *MERGED, *CHANGED)


@dataclass(slots=True)
class Items:
    """The items of a change as rows: messages of customers and of groups, what amends messages, events of calls."""

    salon_id: str
    messages: list[NewMessage]
    of_groups: list[NewMessage]
    amendments: list[NewMessage]
    calls: list[NewMessage]
    statuses: list[NewStatus]
    derived: list[NewStatus]
    facts: list[CustomerFact]
    failures: list[Failure]

    @classmethod
    def of(cls, salon: Salon, change: Change) -> "Items":
        """Return the items of a change; messages get their ids in the order in which they stand in the body."""
        messages = [_new_message(salon, message) for message in (*change.messages, *change.calls)]
        statuses, derived = (
            [NewStatus(salon_id=salon.salon_id, **vars(status)) for status in found]
            for found in (change.statuses, change.derived)
        )
        return cls(
            salon_id=salon.salon_id,
            messages=[message for message in messages if message.group_id is None],
            of_groups=[message for message in messages if message.group_id is not None],
            amendments=[_new_message(salon, amendment) for amendment in change.amendments],
            calls=messages[len(change.messages) :],
            statuses=statuses,
            derived=derived,
            facts=change.facts,
            failures=change.failures,
        )

    def names(self) -> Iterator[str | None]:
        """Yield the names to lock: those of messages, their senders and groups, and what they change."""
        for message in (*self.messages, *self.of_groups, *self.amendments):
            yield from (message.whatsapp_id, message.user_id, message.phone_number, message.group_id)
        for amendment in self.amendments:
            yield amendment.reply_to_whatsapp_id
        for status in self.statuses:
            yield status.whatsapp_id

    def claims(self) -> list[Claim]:
        """Return what the items say of who the customers are."""
        said: list[NewMessage | CustomerFact] = [*self.messages, *self.amendments, *self.facts]
        return [claim for one in said if (claim := one.claim)]

    def statements(self) -> dict[str, Statement[Any]]:
        """Return the statements that record the items, in their order, by the name of their result."""
        found: dict[str, Statement[Any]] = {}
        if self.messages:
            found["messages"] = message_write_queries.insert_messages(self.messages, briefly=True)
        if self.of_groups:
            found["of_groups"] = message_write_queries.insert_group_messages(self.of_groups)
        if self.calls:
            found["called"] = merge_queries.fold_calls(self.calls)
        if media := [one for one in self.messages if one.media_id and not one.counted]:
            found["filled"] = merge_queries.fill_media(media)
            found["items"] = merge_queries.insert_media_items(media)
        if self.statuses:
            found["statuses"] = status_queries.insert_statuses(self.statuses)
        if self.derived:
            found["derived"] = status_queries.insert_statuses(self.derived)
        if self.statuses or self.derived:
            found["changed"] = status_queries.fold_statuses([*self.statuses, *self.derived])
        if self.amendments:
            found |= self._amend()
        if self.facts:
            found["facts"] = write_facts(self.salon_id, self.facts)
        if self.failures:
            found["failures"] = insert_failures(self.salon_id, "", self.failures)
        return found

    def _amend(self) -> dict[str, Statement[Any]]:
        """Return the statements for reactions, edits and revokes."""
        found: dict[str, Statement[Any]] = {"amendments": amendment_queries.insert_amendments(self.amendments)}
        if touching := [one for one in self.amendments if one.opens_window]:
            found["touched"] = amendment_queries.touch_conversations(touching)
        return found | {"folded": amendment_queries.fold_new_amendments(self.amendments)}

    def count(self, found: Mapping[str, Any], reply: pb.IngestWebhookResponse) -> None:
        """Add to a reply what the statements have found to be new."""
        inserted = [message for name in INSERTED for message in found.get(name, ())]
        merged = sum(len(found.get(name, ())) for name in MERGED)
        failed = found.get("failures", set())
        unknown_kinds = failed.intersection(one.digest for one in self.failures if one.is_unknown_kind)
        unknown_types = sum(message.is_of_unknown_type for message in inserted)
        recorded = len(inserted) + merged + len(found.get("amendments", ()))
        statuses, customers = len(found.get("statuses", ())), len(found.get("facts", ()))
        reply.messages += recorded - unknown_types
        reply.statuses += statuses
        reply.customers += customers
        reply.unknown += unknown_types + len(unknown_kinds)
        reply.rejected += len(failed) - len(unknown_kinds)
        given = len(self.messages) + len(self.of_groups) + len(self.amendments) + len(self.statuses)
        given += len(self.facts) + len(self.failures)
        reply.duplicates += given - recorded - statuses - customers - len(failed)


def _new_message(salon: Salon, message: Incoming) -> NewMessage:
    """Return a message as a row. One of a group does not belong to its sender, whom its details name."""
    new = NewMessage(
        message_id=message_ids.new(message.created_at),
        salon_id=salon.salon_id,
        salon_known=True,
        cost_micros=0,
        currency_code=None,
        language=salon.language_code,
        in_window=False,
        **vars(message),
    )
    if message.group_id is None or message.is_amendment:
        return new
    return new._replace(phone_number=None, user_id=None, customer_name="")
