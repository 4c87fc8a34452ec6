"""Reads webhook bodies of the WhatsApp Cloud API: checks their signature, finds the messages and statuses in them.

Source: Meta, "WhatsApp Business Platform, Webhooks": a body has entries, an entry has changes, a change has messages
and statuses of one phone_number_id. An item that can't be read does not affect the others.
"""

import hashlib
import hmac
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
from pydantic import ValidationError

from libs.server import RpcError
from libs.server.errors import invalid_fields
from services.messaging.webhook.items import STATUSES, Incoming, Senders, Status, read_message, read_status, reason_of
from services.messaging.webhook.json_scanner import (
    Shape,
    Unreadable,
    elements,
    json_text,
    load,
    load_or_none,
    members,
    read_json,
    stored_item,
)

# Of a change, which one transaction records.
MOST_ITEMS = 100
MOST_BYTES = 262_144
MOST_HELD = 1000  # items of a body that are read before any is recorded
SIGNED_BYTES = 262_144  # signed before other tasks may run
_SHAPE: Shape = {
    "entry": [
        {
            "changes": [
                {
                    "field": None,
                    "value": {
                        "metadata": None,
                        **dict.fromkeys(("contacts", "messages", "statuses", "errors"), (None,)),
                    },
                }
            ]
        }
    ]
}
_PHONE_NUMBER_ID = re.compile("[A-Za-z0-9_-]{1,64}")


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
    """Items that one phone_number_id received; `items` are the messages and statuses with their kind and sender.

    `size` is about the number of bytes to be stored.
    """

    messages: list[Incoming] = field(default_factory=list)
    statuses: list[Status] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    items: list[tuple[str, Any, str | None, str | None]] = field(default_factory=list)
    size: int = 0

    @property
    def is_full(self) -> bool:
        """Whether it is as much as a transaction records."""
        return len(self.items) + len(self.failures) >= MOST_ITEMS or self.size >= MOST_BYTES

    def add_message(self, item: Any, senders: Senders) -> None:
        """Add a message, or its failure."""
        try:
            item = load(item)
            message = read_message(item, senders, json_text(item))
        except (Unreadable, ValidationError) as error:
            self.fail("MESSAGE", reason_of(error), item, *senders.names(item))
            return
        self.messages.append(message)
        self.items.append(("MESSAGE", item, message.phone_number, message.user_id))
        self.size += len(message.item)

    def add_status(self, item: Any) -> None:
        """Add a status, or its failure."""
        try:
            item = load(item)
            status = read_status(item)
        except (Unreadable, ValidationError) as error:
            self.fail("STATUS", reason_of(error), item)
            return
        if status.status in STATUSES:
            status.status = status.status.upper()
            self.statuses.append(status)
            self.items.append(("STATUS", item, None, None))
        else:
            self.fail("STATUS", f"status: {status.status[:64]!a} is not known", item, is_unknown_kind=True)

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


def read_webhook(payload: bytes, signature: str, secrets: Sequence[str]) -> Iterator[tuple[str, Change] | None]:
    """Yield the changes of a body with their phone_number_id, "" if they have none; None where other tasks may run.

    A change has about MOST_ITEMS items and MOST_BYTES bytes at most; more of its phone_number_id may follow.
    Raises, before it yields any change: INVALID_SIGNATURE unless WhatsApp has signed exactly these bytes, by any of the
    secrets; INVALID_FIELD for what is not a webhook body.
    """
    signed = [hmac.new(secret.encode(), digestmod="sha256") for secret in secrets]
    for start in range(0, len(payload), SIGNED_BYTES):
        for each in signed:
            each.update(payload[start : start + SIGNED_BYTES])
        yield None
    valid = [hmac.compare_digest(f"sha256={each.hexdigest()}".encode(), signature.encode()) for each in signed]
    if not any(valid):
        raise RpcError(
            grpc.StatusCode.UNAUTHENTICATED, "INVALID_SIGNATURE", "the signature is not that of this payload"
        )
    try:
        body = yield from read_json(payload, _SHAPE)
    except ValueError as error:
        raise invalid_fields([("payload", "is not JSON, or has more than 100,000 items")]) from error
    entries = elements((members(body) or {}).get("entry"))
    if entries is None:
        raise invalid_fields([("payload", "is not a webhook body: it has no list of entries")])
    changes: defaultdict[str, Change] = defaultdict(Change)
    for count, phone_number_id in enumerate(_read_entries(entries, changes), 1):
        if phone_number_id in changes and changes[phone_number_id].is_full:
            yield phone_number_id, changes.pop(phone_number_id)
        elif count % MOST_HELD == 0:
            yield from changes.items()
            changes.clear()
        else:
            yield None
    yield from changes.items()


def _read_entries(entries: Sequence[Any], changes: defaultdict[str, Change]) -> Iterator[str]:
    """Add the items of entries to `changes`; yield the phone_number_id after each item."""
    for entry in entries:
        for item in _list(entry, "changes", "OTHER", changes, ""):
            value = members((members(item) or {}).get("value"))
            if value is None:
                changes[""].fail("OTHER", "value: is not an object", item)
            else:
                yield from _read_change(item, value, changes)
            yield ""
        yield ""


def _read_change(item: Any, value: Mapping[str, Any], changes: defaultdict[str, Change]) -> Iterator[str]:
    found = (members(value.get("metadata")) or {}).get("phone_number_id")
    number = found if isinstance(found, str) and _PHONE_NUMBER_ID.fullmatch(found) else ""
    if not value.keys() & {"messages", "statuses", "errors"}:
        kind = str(load_or_none((members(item) or {}).get("field")))
        changes[number].fail("OTHER", f"field: {kind[:64]!a} is not known", item, is_unknown_kind=True)
    messages = _list(value, "messages", "MESSAGE", changes, number)
    senders = Senders(is_only_message=len(messages) == 1)
    for contact in elements(value.get("contacts")) or ():
        senders.add(load_or_none(contact))
        yield number
    for message in messages:
        changes[number].add_message(message, senders)
        yield number
    for status in _list(value, "statuses", "STATUS", changes, number):
        changes[number].add_status(status)
        yield number
    for error in _list(value, "errors", "OTHER", changes, number):
        changes[number].fail("OTHER", "errors: WhatsApp reports an error", error, is_unknown_kind=True)
        yield number
    changes[number]  # also an empty change reports a phone_number_id that is not known
    yield number


def _list(holder: Any, name: str, kind: str, changes: Mapping[str, Change], number: str) -> Sequence[Any]:
    """Return a list of a JSON object, empty if it has none; anything else there counts as one unreadable item."""
    fields = members(holder)
    found = elements(fields.get(name, [])) if fields is not None else None
    if found is None:
        changes[number].fail(kind, f"{name}: is not a list", holder if fields is None else fields[name])
        return []
    return found
