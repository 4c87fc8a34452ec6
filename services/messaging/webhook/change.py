"""What a transaction records of a webhook body: messages, what changes messages, statuses, and failures."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from services.messaging.customer_queries import CustomerFact
from services.messaging.webhook.items import STATUSES, Incoming, Status, read_status, reason_of
from services.messaging.webhook.json_scanner import Unreadable, load, stored_item

MOST_ITEMS = 100
MOST_BYTES = 262_144


@dataclass(slots=True)
class Failure:
    """An item that can't be recorded, as JSON, with the reason.

    `is_unknown_kind`: the item is valid but of a kind that we do not know. Equal items have the same `digest`.
    `phone_number` and `user_id` name the sender, if the body does.
    """

    kind: str
    reason: str
    item: str
    digest: bytes
    is_unknown_kind: bool
    phone_number: str | None = None
    user_id: str | None = None

    @classmethod
    def of(cls, kind: str, reason: str, item: Any, *sender: str | None, is_unknown_kind: bool = False) -> "Failure":
        """Return the failure of an item; `sender` is its phone_number and user_id, if known."""
        text, identity = stored_item(item)
        digest = hashlib.blake2b(f"{kind} ".encode() + identity, digest_size=32).digest()
        return cls(kind, reason, text, digest, is_unknown_kind, *sender)


@dataclass(slots=True)
class Change:
    """Items that one phone_number_id received.

    `amendments` are reactions, edits and revokes; `calls` are events of calls; `derived` are statuses that messages
    bring with them; `facts` are what is said of customers. `items` are the items with their kind and sender. `size` is
    about the number of bytes to be stored.
    """

    messages: list[Incoming] = field(default_factory=list)
    amendments: list[Incoming] = field(default_factory=list)
    calls: list[Incoming] = field(default_factory=list)
    statuses: list[Status] = field(default_factory=list)
    derived: list[Status] = field(default_factory=list)
    facts: list[CustomerFact] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    items: list[tuple[str, Any, str | None, str | None]] = field(default_factory=list)
    size: int = 0

    @property
    def is_full(self) -> bool:
        """Whether it is as much as a transaction records."""
        return len(self.items) + len(self.failures) >= MOST_ITEMS or self.size >= MOST_BYTES

    def add_message(
        self, item: Any, read: Callable[[Any], Incoming], names: Callable[[Any], tuple[str | None, str | None]]
    ) -> Incoming | None:
        """Add the message that `read` finds in an item and return it, or add its failure; `names` finds its sender."""
        return self.add(item, read, names, "MESSAGE", lambda item: item)

    def add(
        self,
        item: Any,
        read: Callable[[Any], Incoming],
        names: Callable[[Any], tuple[str | None, str | None]],
        kind: str,
        stored: Callable[[Any], Any],
    ) -> Incoming | None:
        """Add a message as `add_message` does; as a failure it is of this kind and `stored` returns its JSON."""
        try:
            item = load(item)
            message = read(item)
        except (Unreadable, ValidationError) as error:
            self.fail(kind, reason_of(error), stored(item), *names(item))
            return None
        held = self.amendments if message.is_amendment else self.calls if message.type == "CALL" else self.messages
        held.append(message)
        self.items.append((kind, stored(item), message.phone_number, message.user_id))
        self.size += len(message.item)
        return message

    def add_status(self, item: Any) -> None:
        """Add a status, or its failure."""
        try:
            item = load(item)
            status = read_status(item)
        except (Unreadable, ValidationError) as error:
            self.fail("STATUS", reason_of(error), item)
            return
        if isinstance(item, dict) and item.get("type") == "payment":  # of an order; its `failed` is not the message's
            self.fail("STATUS", "type: 'payment' is not known", item, is_unknown_kind=True)
        elif status.status in STATUSES:
            status.status = STATUSES[status.status]
            self.statuses.append(status)
            self.items.append(("STATUS", item, None, None))
        else:
            self.fail("STATUS", f"status: {status.status[:64]!a} is not known", item, is_unknown_kind=True)

    def add_fact(self, item: Any, read: Callable[[Any], CustomerFact], stored: Callable[[Any], Any]) -> None:
        """Add what `read` finds in an item, or its failure; `stored` returns its JSON."""
        try:
            item = load(item)
            fact = read(item)
        except (Unreadable, ValidationError) as error:
            self.fail("OTHER", reason_of(error), stored(item))
            return
        self.facts.append(fact)
        self.items.append(("OTHER", stored(item), fact.phone_number, fact.user_id))

    def fail(self, kind: str, reason: str, item: Any, *sender: str | None, is_unknown_kind: bool = False) -> None:
        """Add an item that can't be recorded; `sender` is its phone_number and user_id, if known."""
        failure = Failure.of(kind, reason, item, *sender, is_unknown_kind=is_unknown_kind)
        self.failures.append(failure)
        self.size += len(failure.item)

    def without_salon(self, phone_number_id: str) -> list[Failure]:
        """Return all items as failures, because no salon has the phone_number_id."""
        reason = "phone_number_id: belongs to no salon"
        failures = [*self.failures, *(Failure.of(kind, reason, *item) for kind, *item in self.items)]
        for failure in failures:
            failure.digest = hashlib.blake2b(failure.digest + phone_number_id.encode(), digest_size=32).digest()
        return failures
