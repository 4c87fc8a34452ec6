"""Webhook bodies of the WhatsApp Cloud API: their signature, and the messages and statuses in them.

Source: Meta, "WhatsApp Business Platform, Webhooks": a body holds entries, an entry changes, a change messages and
statuses of one phone_number_id. An item that can't be read does not lose its neighbours.
"""

import hashlib
import hmac
import json
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any

import grpc
from pydantic import BaseModel, BeforeValidator, Field, StringConstraints, ValidationError

from libs.rpc import RpcError
from libs.rpc.errors import invalid_fields

TYPES = frozenset(
    "text image audio video document sticker location contacts reaction interactive button order system template"
    " unsupported".split()
)
STATUSES = frozenset(("sent", "delivered", "read", "failed"))
_PHONE_NUMBER_ID = re.compile("[A-Za-z0-9_-]{1,64}")


def _e164(value: Any) -> Any:
    return "+" + value.removeprefix("+") if isinstance(value, str) else value


def _moment(value: Any) -> datetime:
    """Read WhatsApp's timestamp: seconds since 1970, as a string."""
    if not isinstance(value, str | int):
        raise ValueError("neither a string nor an integer")
    seconds = int(value)
    if not 0 <= seconds < 253_370_764_800:
        raise ValueError("not from 1970 to 9998")
    return datetime.fromtimestamp(seconds, UTC)


def _storable(value: Any) -> Any:
    """Refuse what Postgres can't store: NUL, and halves of surrogate pairs."""
    if isinstance(value, str):
        value.encode()
        if "\0" in value:
            raise ValueError("contains NUL")
    return value


Text = Annotated[str, BeforeValidator(_storable)]
Identifier = Annotated[Text, StringConstraints(min_length=1, max_length=256)]
Phone = Annotated[str, BeforeValidator(_e164), StringConstraints(pattern=r"^\+[1-9][0-9]{6,14}$")]
Moment = Annotated[datetime, BeforeValidator(_moment)]


class Incoming(BaseModel):
    """An inbound message."""

    whatsapp_id: Identifier = Field(alias="id")
    phone_number: Phone = Field(alias="from")
    type: Identifier
    created_at: Moment = Field(alias="timestamp")
    content: Annotated[Text, StringConstraints(max_length=65_536)] = ""


class Status(BaseModel):
    """What became of an outbound message."""

    whatsapp_id: Identifier = Field(alias="id")
    status: Identifier
    occurred_at: Moment = Field(alias="timestamp")


@dataclass(slots=True)
class Change:
    """What one phone_number_id received: messages and statuses, and how many items could not be read or are unknown."""

    messages: list[Incoming] = field(default_factory=list)
    statuses: list[Status] = field(default_factory=list)
    unknown: int = 0
    rejected: int = 0


def check_signature(payload: bytes, signature: str, secret: str) -> None:
    """Raise INVALID_SIGNATURE unless the signature is WhatsApp's over these very bytes."""
    expected = "sha256=" + hmac.new(secret.encode(), payload, hashlib.sha256).hexdigest()
    if not hmac.compare_digest(expected.encode(), signature.encode()):
        raise RpcError(
            grpc.StatusCode.UNAUTHENTICATED, "INVALID_SIGNATURE", "the signature is not that of this payload"
        )


def read(payload: bytes) -> dict[str, Change]:
    """Return what is in a body, by phone_number_id, "" where there is none.

    Raises: INVALID_FIELD for what is no webhook body.
    """
    try:
        body = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise invalid_fields([("payload", "is no JSON")]) from error
    if not isinstance(body, dict) or not isinstance(body.get("entry"), list):
        raise invalid_fields([("payload", "is no webhook body: it has no list of entries")])
    changes: defaultdict[str, Change] = defaultdict(Change)
    nowhere = changes[""]
    for entry in body["entry"]:
        for item in _list(entry, "changes", nowhere):
            value = item.get("value") if isinstance(item, Mapping) else None
            if not isinstance(value, Mapping):
                nowhere.rejected += 1
            elif "messages" in value or "statuses" in value:
                _read_value(value, changes[_phone_number_id(value)])
            else:
                nowhere.unknown += 1
    return changes


def _phone_number_id(value: Mapping[str, Any]) -> str:
    metadata = value.get("metadata")
    found = metadata.get("phone_number_id") if isinstance(metadata, Mapping) else None
    return found if isinstance(found, str) and _PHONE_NUMBER_ID.fullmatch(found) else ""


def _read_value(value: Mapping[str, Any], change: Change) -> None:
    for item in _list(value, "messages", change):
        _read_message(item, change)
    for item in _list(value, "statuses", change):
        _read_status(item, change)


def _read_message(item: Any, change: Change) -> None:
    try:
        message = Incoming.model_validate(item)
        part = item.get(message.type)
        if isinstance(part, Mapping):
            message = Incoming.model_validate({**item, "content": part.get("body") or part.get("caption") or ""})
    except (ValidationError, UnicodeError):
        change.rejected += 1
        return
    if message.type in TYPES:
        change.messages.append(message)
    else:
        change.unknown += 1


def _read_status(item: Any, change: Change) -> None:
    try:
        status = Status.model_validate(item)
    except (ValidationError, UnicodeError):
        change.rejected += 1
        return
    if status.status in STATUSES:
        change.statuses.append(status)
    else:
        change.unknown += 1


def _list(holder: Any, name: str, change: Change) -> list[Any]:
    """Return a list of a JSON object, empty if it has none; what is no list counts as one rejected item."""
    found = holder.get(name, []) if isinstance(holder, Mapping) else None
    if isinstance(found, list):
        return found
    change.rejected += 1
    return []
