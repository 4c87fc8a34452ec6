"""Webhook items of each kind, for tests that make their own."""

import json
from typing import Any

from tests.test_webhook import text

NUMBER = "15550001111"  # of the salon
PERSON = "16505551234"
Item = dict[str, Any]


def body(phone_number_id: str, field: str, **value: Any) -> bytes:
    """Return a webhook body of one change of this field."""
    metadata = {"display_phone_number": NUMBER, "phone_number_id": phone_number_id}
    change = {"field": field, "value": {"messaging_product": "whatsapp", "metadata": metadata, **value}}
    return json.dumps({"object": "whatsapp_business_account", "entry": [{"id": "1", "changes": [change]}]}).encode()


def message(name: str, kind: str, second: int, part: Any, **fields: Any) -> Item:
    """Return a message of a type; `part` is the member that the type names."""
    return text(**{"id": name, "timestamp": str(second), "type": kind, "text": None, kind: part, **fields})


def reaction(name: str, target: str, second: int, emoji: str | None = "❤️", **fields: Any) -> Item:
    """Return a reaction to a message; one without an emoji takes it back."""
    part = {"message_id": target} | ({"emoji": emoji} if emoji else {})
    return message(name, "reaction", second, part, **fields)


def edit(name: str, target: str, second: int, content: str, **fields: Any) -> Item:
    """Return an edit of a message."""
    edited = {"type": "text", "text": {"body": content}}
    return message(name, "edit", second, {"original_message_id": target, "message": edited}, **fields)


def revoke(name: str, target: str, second: int, **fields: Any) -> Item:
    """Return the deletion of a message by its sender."""
    return message(name, "revoke", second, {"original_message_id": target}, **fields)


def system(name: str, second: int, kind: str = "customer_identity_changed", **notice: Any) -> Item:
    """Return what WhatsApp says about a customer; `notice` has more members of it."""
    return message(name, "system", second, {"body": "A notice", "type": kind, **notice})


def call(name: str, event: str, second: int, duration: int | None = None, **fields: Any) -> Item:
    """Return an event of a call by the customer, `connect` or `terminate`."""
    item = {"id": name, "to": NUMBER, "from": PERSON, "event": event, "timestamp": str(second)}
    item |= {"direction": "USER_INITIATED", **fields}
    return item if duration is None else {**item, "duration": duration}


def echo(name: str, second: int, content: str = "From the app", **fields: Any) -> Item:
    """Return what a person of the salon sent on the phone app."""
    return text(
        **{"id": name, "from": NUMBER, "to": PERSON, "timestamp": str(second), "text": {"body": content}, **fields}
    )


def past(name: str, second: int, *, sent: bool = False, status: str = "READ", **fields: Any) -> Item:
    """Return a message of the history, from or to the customer."""
    sides = {"from": NUMBER, "to": PERSON} if sent else {}
    return text(**{"id": name, "timestamp": str(second), **sides, "history_context": {"status": status}, **fields})


def history(phone_number_id: str, *messages: Item, person: str = PERSON, chunk: int = 1, phase: int = 0) -> bytes:
    """Return a chunk of the history: messages of one customer."""
    metadata = {"phase": phase, "chunk_order": chunk, "progress": 50}
    chunks = [{"metadata": metadata, "threads": [{"id": person, "messages": list(messages)}]}]
    return body(phone_number_id, "history", history=chunks)
