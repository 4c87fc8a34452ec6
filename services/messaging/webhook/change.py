"""What a transaction records of a webhook body: messages, what changes messages, statuses, and failures."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

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


class Item(NamedTuple):
    """An item that can be recorded: what it is as a failure, and what was read in it."""

    kind: str
    item: Any
    phone_number: str | None
    user_id: str | None
    read: Incoming | Status | CustomerFact

    def failure(self, reason: str) -> Failure:
        """Return the item as a failure."""
        return Failure.of(self.kind, reason, self.item, self.phone_number, self.user_id)


def _as_it_is(item: Any) -> Any:
    return item


@dataclass(slots=True)
class Change:
    """Items that one phone_number_id received.

    `amendments` are reactions, edits and revokes; `calls` are events of calls; `derived` are statuses that messages
    bring with them; `facts` are what is said of customers. `items` are all of these but `derived`. `size` is about the
    number of bytes to be stored.
    """

    messages: list[Incoming] = field(default_factory=list)
    amendments: list[Incoming] = field(default_factory=list)
    calls: list[Incoming] = field(default_factory=list)
    statuses: list[Status] = field(default_factory=list)
    derived: list[Status] = field(default_factory=list)
    facts: list[CustomerFact] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    items: list[Item] = field(default_factory=list)
    size: int = 0

    @property
    def is_full(self) -> bool:
        """Whether it is as much as a transaction records."""
        return len(self.items) + len(self.failures) >= MOST_ITEMS or self.size >= MOST_BYTES

    def add(
        self,
        item: Any,
        read: Callable[[Any], Incoming],
        names: Callable[[Any], tuple[str | None, str | None]],
        kind: str = "MESSAGE",
        stored: Callable[[Any], Any] = _as_it_is,
    ) -> Incoming | None:
        """Add the message that `read` finds in an item and return it, or add its failure; `names` finds its sender.

        As a failure it is of this kind, and `stored` returns its JSON.
        """
        try:
            item = load(item)
            message = read(item)
        except (Unreadable, ValidationError) as error:
            self.fail(kind, reason_of(error), stored(item), *names(item))
            return None
        self._hold(Item(kind, stored(item), message.phone_number, message.user_id, message))
        self.size += len(message.item)
        return message

    def _hold(self, item: Item) -> None:
        """Add an item to `items` and to the list of what it is."""
        self.items.append(item)
        match item.read:
            case Status() as status:
                self.statuses.append(status)
            case CustomerFact() as fact:
                self.facts.append(fact)
            case message:
                held = self.amendments if message.is_amendment else self.messages
                (self.calls if message.type == "CALL" else held).append(message)

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
            self._hold(Item("STATUS", item, None, None, status))
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
        self._hold(Item("OTHER", stored(item), fact.phone_number, fact.user_id, fact))

    def fail(self, kind: str, reason: str, item: Any, *sender: str | None, is_unknown_kind: bool = False) -> None:
        """Add an item that can't be recorded; `sender` is its phone_number and user_id, if known."""
        failure = Failure.of(kind, reason, item, *sender, is_unknown_kind=is_unknown_kind)
        self.failures.append(failure)
        self.size += len(failure.item)

    def without_salon(self, phone_number_id: str) -> list[Failure]:
        """Return all items as failures, because no salon has the phone_number_id."""
        reason = "phone_number_id: belongs to no salon"
        failures = [*self.failures, *(item.failure(reason) for item in self.items)]
        for failure in failures:
            failure.digest = hashlib.blake2b(failure.digest + phone_number_id.encode(), digest_size=32).digest()
        return failures

    def apart(self) -> Iterator["Change"]:
        """Yield the failures as one change, then a change of each item with the statuses that it brings with it."""
        yield Change(failures=self.failures)
        for item in self.items:
            name = getattr(item.read, "whatsapp_id", None)
            derived = [] if isinstance(item.read, Status) else [one for one in self.derived if one.whatsapp_id == name]
            one = Change(derived=derived)
            one._hold(item)
            yield one

    def refused(self) -> "Change":
        """Return the items as failures, because the database refuses a value of theirs."""
        return Change(failures=[*self.failures, *(item.failure("the database can't store it") for item in self.items)])
