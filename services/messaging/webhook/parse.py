"""Webhook bodies of the WhatsApp Cloud API: their signature, and the messages and statuses in them.

Source: Meta, "WhatsApp Business Platform, Webhooks": a body holds entries, an entry changes, a change messages and
statuses of one phone_number_id. An item that can't be read does not lose its neighbours.
"""

import hashlib
import hmac
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc

from libs.server import RpcError
from libs.server.errors import invalid_fields
from services.messaging.webhook.items import STATUSES, Incoming, Senders, Status, read_message, read_status
from services.messaging.webhook.json_scanner import (
    Shape,
    Unreadable,
    elements,
    is_small,
    kept,
    load,
    members,
    parse,
    peek,
    text_of,
)

__all__ = ["Change", "Failure", "check_signature", "is_small", "read"]

# What is recorded by one transaction, and what is held of a body before it is.
MOST_ITEMS = 100
MOST_BYTES = 262_144
MOST_HELD = 1000
SIGNED_BYTES = 262_144  # signed before others may run
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
    """An item that can't be recorded: as JSON, with the reason; `unknown` if it is only of a kind that is not known.

    The same item again has the same `digest`. `phone_number` and `user_id` name the sender if the body does; the item
    itself may not.
    """

    kind: str
    reason: str
    excerpt: str
    digest: bytes
    unknown: bool
    phone_number: str | None = None
    user_id: str | None = None

    @classmethod
    def of(cls, kind: str, reason: str, item: Any, *sender: str | None, unknown: bool = False) -> "Failure":
        """Return the failure of an item; `sender` is its phone_number and user_id, if known."""
        excerpt, whole = kept(item)
        digest = hashlib.blake2b(f"{kind} ".encode(), digest_size=32)
        digest.update(whole)
        return cls(kind, reason, excerpt, digest.digest(), unknown, *sender)


@dataclass(slots=True)
class Change:
    """What one phone_number_id received; `items` are its messages and statuses, with kind and sender.

    `size` is about the bytes of what is to be stored.
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

    def take_message(self, item: Any, senders: Senders) -> None:
        """Take a message."""
        try:
            item = load(item)
            message = read_message(item, senders, text_of(item))
        except Unreadable as error:
            self.fail("MESSAGE", str(error), item, *senders.names(item))
            return
        self.messages.append(message)
        self.items.append(("MESSAGE", item, message.phone_number, message.user_id))
        self.size += len(message.item)

    def take_status(self, item: Any) -> None:
        """Take a status."""
        try:
            item = load(item)
            status = read_status(item)
        except Unreadable as error:
            self.fail("STATUS", str(error), item)
            return
        if status.status in STATUSES:
            self.statuses.append(status)
            self.items.append(("STATUS", item, None, None))
        else:
            self.fail("STATUS", f"status: {status.status[:64]!a} is not known", item, unknown=True)

    def fail(self, kind: str, reason: str, item: Any, *sender: str | None, unknown: bool = False) -> None:
        """Add an item that can't be recorded; `sender` is its phone_number and user_id, if known."""
        self.failures.append(failure := Failure.of(kind, reason, item, *sender, unknown=unknown))
        self.size += len(failure.excerpt)

    def unplaced(self, phone_number_id: str) -> list[Failure]:
        """Return all of it as failures, since there is no salon to record it in."""
        reason = "phone_number_id: belongs to no salon"
        failures = [*self.failures, *(Failure.of(kind, reason, *item) for kind, *item in self.items)]
        for failure in failures:
            failure.digest = hashlib.blake2b(failure.digest + phone_number_id.encode(), digest_size=32).digest()
        return failures


def check_signature(payload: bytes, signature: str, secret: str) -> Iterator[None]:
    """Raise INVALID_SIGNATURE unless the signature is WhatsApp's over these very bytes; yield where others may run."""
    signed = hmac.new(secret.encode(), digestmod="sha256")
    for start in range(0, len(payload), SIGNED_BYTES):
        signed.update(payload[start : start + SIGNED_BYTES])
        yield
    if not hmac.compare_digest(f"sha256={signed.hexdigest()}".encode(), signature.encode()):
        raise RpcError(
            grpc.StatusCode.UNAUTHENTICATED, "INVALID_SIGNATURE", "the signature is not that of this payload"
        )


def read(payload: bytes) -> Iterator[tuple[str, Change] | None]:
    """Yield what is in a body, by phone_number_id, "" where there is none; None where others may run.

    A change has about MOST_ITEMS and MOST_BYTES at most; more of its phone_number_id may follow.
    Raises: INVALID_FIELD for what is no webhook body, before it yields any change.
    """
    try:
        body = yield from parse(payload, _SHAPE)
    except ValueError as error:
        raise invalid_fields([("payload", "is no JSON, or has more than 100,000 items")]) from error
    entries = elements((members(body) or {}).get("entry"))
    if entries is None:
        raise invalid_fields([("payload", "is no webhook body: it has no list of entries")])
    changes: defaultdict[str, Change] = defaultdict(Change)
    for count, name in enumerate(_read_entries(entries, changes), 1):
        if changes[name].is_full:
            yield name, changes.pop(name)
        elif count % MOST_HELD == 0:
            yield from changes.items()
            changes.clear()
        else:
            yield None
    yield from changes.items()


def _read_entries(entries: Sequence[Any], changes: Mapping[str, Change]) -> Iterator[str]:
    """Read entries, and yield the phone_number_id of what was read."""
    for entry in entries:
        for item in _list(entry, "changes", "OTHER", changes[""]):
            yield from _read_change(item, changes)
        yield ""


def _read_change(item: Any, changes: Mapping[str, Change]) -> Iterator[str]:
    value = members((members(item) or {}).get("value"))
    if value is None:
        changes[""].fail("OTHER", "value: is no object", item)
        yield ""
        return
    name = _phone_number_id(value)
    if not value.keys() & {"messages", "statuses", "errors"}:
        kind = str(peek((members(item) or {}).get("field")))
        changes[name].fail("OTHER", f"field: {kind[:64]!a} is not known", item, unknown=True)
    messages = _list(value, "messages", "MESSAGE", changes[name])
    senders = Senders(is_lone=len(messages) == 1)
    for contact in elements(value.get("contacts")) or ():
        senders.add(peek(contact))
        yield name
    for message in messages:
        changes[name].take_message(message, senders)
        yield name
    for status in _list(value, "statuses", "STATUS", changes[name]):
        changes[name].take_status(status)
        yield name
    for error in _list(value, "errors", "OTHER", changes[name]):
        changes[name].fail("OTHER", "errors: WhatsApp reports an error", error, unknown=True)
        yield name
    yield name


def _phone_number_id(value: Mapping[str, Any]) -> str:
    found = (members(value.get("metadata")) or {}).get("phone_number_id")
    return found if isinstance(found, str) and _PHONE_NUMBER_ID.fullmatch(found) else ""


def _list(holder: Any, name: str, kind: str, change: Change) -> Sequence[Any]:
    """Return a list of a JSON object, empty if it has none; what is no list counts as one item that can't be read."""
    holds = members(holder)
    found = elements(holds.get(name, [])) if holds is not None else None
    if found is None:
        change.fail(kind, f"{name}: is no list", holder if holds is None else holds[name])
        return []
    return found
