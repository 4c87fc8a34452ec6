"""Webhook bodies of the WhatsApp Cloud API: their signature, and the messages and statuses in them.

Source: Meta, "WhatsApp Business Platform, Webhooks": a body holds entries, an entry changes, a change messages and
statuses of one phone_number_id. An item that can't be read does not lose its neighbours.
"""

import hashlib
import hmac
import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc

from libs.rpc import RpcError
from libs.rpc.errors import invalid_fields
from services.messaging.webhook_items import (
    STATUSES,
    Incoming,
    Senders,
    Status,
    Unreadable,
    read_message,
    read_status,
)

MOST_ITEM = 65_536
MOST_DIGITS = 4300  # of an integer: Python reads no longer one
_PHONE_NUMBER_ID = re.compile("[A-Za-z0-9_-]{1,64}")


@dataclass(slots=True)
class Failure:
    """An item that can't be recorded: as JSON, with the reason; `unknown` if it is only of a kind that is not known.

    `phone_number` and `user_id` name the sender if the body does; the item itself may not.
    """

    kind: str
    reason: str
    item: str
    unknown: bool
    phone_number: str | None = None
    user_id: str | None = None

    @property
    def digest(self) -> bytes:
        """What the same item has again."""
        return hashlib.blake2b(f"{self.kind} {self.item}".encode(), digest_size=32).digest()

    @property
    def excerpt(self) -> str:
        """As much of the item as is kept."""
        return self.item[:MOST_ITEM]


@dataclass(slots=True)
class Change:
    """What one phone_number_id received."""

    messages: list[Incoming] = field(default_factory=list)
    statuses: list[Status] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def fail(self, kind: str, reason: str, item: Any, *sender: str | None, unknown: bool = False) -> None:
        """Add an item that can't be recorded; `sender` is its phone_number and user_id, if known."""
        self.failures.append(Failure(kind, reason, _json(item, sort_keys=True), unknown, *sender))


class _Far(float):
    """A number that JSON has and Python does not hold, such as 1e400: it keeps its text."""

    def __init__(self, text: str) -> None:
        self.text = text


def _number(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _Far(text)


def _integer(text: str) -> int | _Far:
    return int(text) if len(text) < MOST_DIGITS else _Far(text)


def check_signature(payload: bytes, signature: str, secret: str) -> None:
    """Raise INVALID_SIGNATURE unless the signature is WhatsApp's over these very bytes."""
    expected = "sha256=" + hmac.digest(secret.encode(), payload, "sha256").hex()
    if not hmac.compare_digest(expected.encode(), signature.encode()):
        raise RpcError(
            grpc.StatusCode.UNAUTHENTICATED, "INVALID_SIGNATURE", "the signature is not that of this payload"
        )


def read(payload: bytes) -> dict[str, Change]:
    """Return what is in a body, by phone_number_id, "" where there is none.

    Raises: INVALID_FIELD for what is no webhook body.
    """
    try:
        body = json.loads(payload, parse_int=_integer, parse_float=_number, parse_constant=_Far)
    except (ValueError, RecursionError) as error:
        raise invalid_fields([("payload", "is no JSON")]) from error
    if not isinstance(body, dict) or not isinstance(body.get("entry"), list):
        raise invalid_fields([("payload", "is no webhook body: it has no list of entries")])
    changes: defaultdict[str, Change] = defaultdict(Change)
    for entry in body["entry"]:
        for item in _list(entry, "changes", "OTHER", changes[""]):
            _read_change(item, changes)
    return changes


def _read_change(item: Any, changes: defaultdict[str, Change]) -> None:
    value = item.get("value") if isinstance(item, dict) else None
    if not isinstance(value, dict):
        changes[""].fail("OTHER", "value: is no object", item)
        return
    change = changes[_phone_number_id(value)]
    if not value.keys() & {"messages", "statuses", "errors"}:
        change.fail("OTHER", f"field: {str(item.get('field'))[:64]!a} is not known", item, unknown=True)
    senders = Senders(value.get("contacts"), value.get("messages"))
    for message in _list(value, "messages", "MESSAGE", change):
        _read_message(message, senders, change)
    for status in _list(value, "statuses", "STATUS", change):
        _read_status(status, change)
    for error in _list(value, "errors", "OTHER", change):
        change.fail("OTHER", "errors: WhatsApp reports an error", error, unknown=True)


def _phone_number_id(value: Mapping[str, Any]) -> str:
    metadata = value.get("metadata")
    found = metadata.get("phone_number_id") if isinstance(metadata, dict) else None
    return found if isinstance(found, str) and _PHONE_NUMBER_ID.fullmatch(found) else ""


def _read_message(item: Any, senders: Senders, change: Change) -> None:
    try:
        change.messages.append(read_message(item, senders, _json(item)))
    except Unreadable as error:
        change.fail("MESSAGE", str(error), item, *senders.names(item))


def _read_status(item: Any, change: Change) -> None:
    try:
        status = read_status(item)
    except Unreadable as error:
        change.fail("STATUS", str(error), item)
        return
    if status.status in STATUSES:
        change.statuses.append(status)
    else:
        change.fail("STATUS", f"status: {status.status[:64]!a} is not known", item, unknown=True)


def _list(holder: Any, name: str, kind: str, change: Change) -> list[Any]:
    """Return a list of a JSON object, empty if it has none; what is no list counts as one item that can't be read."""
    found = holder.get(name, []) if isinstance(holder, dict) else None
    if isinstance(found, list):
        return found
    change.fail(kind, f"{name}: is no list", found if isinstance(holder, dict) else holder)
    return []


def _json(item: Any, *, sort_keys: bool = False) -> str:
    """Return an item as JSON, numbers that Python does not hold as texts; "" if it is nested too deeply."""
    try:
        try:
            return json.dumps(item, allow_nan=False, sort_keys=sort_keys)
        except ValueError:
            return json.dumps(_plain(item), sort_keys=sort_keys)
    except RecursionError:
        return ""


def _plain(item: Any) -> Any:
    if isinstance(item, dict):
        return {name: _plain(part) for name, part in item.items()}
    if isinstance(item, list):
        return [_plain(part) for part in item]
    return item.text if isinstance(item, _Far) else item
