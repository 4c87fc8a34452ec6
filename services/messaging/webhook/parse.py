"""Webhook bodies of the WhatsApp Cloud API: checks their signature, finds the messages and statuses in them.

Source: Meta, "WhatsApp Business Platform, Webhooks": a body has entries, an entry has changes, a change has messages
and statuses of one phone_number_id. An item that can't be read does not affect the others.
"""

import hmac
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import grpc

from libs.server import RpcError
from libs.server.errors import invalid_fields
from services.messaging.webhook.change import Change
from services.messaging.webhook.fields import LISTS, listed, read_change
from services.messaging.webhook.json_scanner import Shape, elements, members, read_json

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
                        **dict.fromkeys(LISTS, (None,)),
                        "history": [
                            {"threads": [{"id": None, "context": None, "messages": (None,)}], "errors": (None,)}
                        ],
                    },
                }
            ]
        }
    ]
}
_PHONE_NUMBER_ID = re.compile("[A-Za-z0-9_-]{1,64}")


def check_signature(payload: bytes, signature: str, secrets: Sequence[str]) -> Iterator[None]:
    """Check that WhatsApp has signed exactly these bytes, by any of the secrets; yield where other tasks may run.

    Raises: INVALID_SIGNATURE.
    """
    signed = [hmac.new(secret.encode(), digestmod="sha256") for secret in secrets]
    for start in range(0, len(payload), SIGNED_BYTES):
        for each in signed:
            each.update(payload[start : start + SIGNED_BYTES])
        yield
    valid = [hmac.compare_digest(f"sha256={each.hexdigest()}".encode(), signature.encode()) for each in signed]
    if not any(valid):
        raise RpcError(
            grpc.StatusCode.UNAUTHENTICATED, "INVALID_SIGNATURE", "the signature is not that of this payload"
        )


def read_webhook(payload: bytes) -> Iterator[tuple[str, Change] | None]:
    """Yield the changes of a body with their phone_number_id, "" if they have none; None where other tasks may run.

    A change has about MOST_ITEMS items and MOST_BYTES bytes at most; more of its phone_number_id may follow.
    Raises, before it yields any change: INVALID_FIELD for what is not a webhook body.
    """
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
        for item in listed(entry, "changes", "OTHER", partial(changes.__getitem__, "")):
            value = members((members(item) or {}).get("value"))
            if value is None:
                changes[""].fail("OTHER", "value: is not an object", item)
            else:
                number = _phone_number_id(value)
                change = partial(changes.__getitem__, number)
                for _ in read_change(item, value, change):
                    yield number
                change()  # also an empty change reports a phone_number_id that is not known
                yield number
            yield ""
        yield ""


def _phone_number_id(value: Mapping[str, Any]) -> str:
    """Return the phone_number_id of a change, "" if it has none that is valid."""
    found = (members(value.get("metadata")) or {}).get("phone_number_id")
    return found if isinstance(found, str) and _PHONE_NUMBER_ID.fullmatch(found) else ""
