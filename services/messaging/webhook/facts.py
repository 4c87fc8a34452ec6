"""What a webhook body says of customers besides their messages: the salon's address book, and who opted out.

`smb_app_state_sync` has the contacts of the phone app, `user_preferences` the choices about marketing messages.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from services.messaging.customer_queries import CustomerFact
from services.messaging.webhook.content import shown_text, text_field
from services.messaging.webhook.json_scanner import Unreadable
from services.messaging.webhook.senders import e164
from services.messaging.webhook.times import clamped, moment

LONGEST_NAME = 1000
_OPTED_OUT = {"stop": True, "resume": False}


class UnknownKind(Unreadable):
    """An item is valid but of a kind that we do not know."""


def read_contact(item: Any) -> CustomerFact:
    """Return what an element of `state_sync` says: a contact was added or changed, or removed (an empty name).

    Raises: Unreadable.
    """
    entry = _object(item)
    action = text_field(entry, "action")
    if entry.get("type") != "contact" or action not in ("add", "edit", "remove"):
        raise UnknownKind(f"state_sync: {text_field(entry, 'type')!a} {action!a} is not known")
    contact = _object(entry.get("contact"))
    phone, user_id = _person(contact, "phone_number")
    names = (shown_text(contact, name, LONGEST_NAME) for name in ("full_name", "first_name"))
    name = "" if action == "remove" else next(filter(None, names), "")
    at = _moment(_object(entry.get("metadata")).get("timestamp"))
    return CustomerFact(phone, user_id, at, contact_name=name)


def read_preference(item: Any) -> CustomerFact:
    """Return what an element of `user_preferences` says: a customer opted out of marketing messages, or in again.

    Raises: Unreadable.
    """
    entry = _object(item)
    category, value = text_field(entry, "category"), text_field(entry, "value")
    if category != "marketing_messages" or value not in _OPTED_OUT:
        raise UnknownKind(f"user_preferences: {category!a} {value!a} is not known")
    phone, user_id = _person(entry, "wa_id")
    reason = shown_text(entry, "detail", LONGEST_NAME) or ""
    return CustomerFact(phone, user_id, _moment(entry.get("timestamp")), opted_out=_OPTED_OUT[value], reason=reason)


def _object(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise Unreadable("is not an object")
    return value


def _person(holder: Mapping[str, Any], name: str) -> tuple[str | None, str | None]:
    """Return the phone number and the user ID that an object has, the number under this name."""
    try:
        phone = e164(holder.get(name) or None)
    except ValueError as error:
        raise Unreadable(f"{name}: {error}") from None
    user_id = text_field(holder, "user_id")
    if not phone and not user_id:
        raise Unreadable(f"{name}: neither a phone number nor a user id")
    return phone, user_id


def _moment(value: Any) -> datetime:
    try:
        return clamped(moment(value))[0]
    except ValueError as error:
        raise Unreadable(f"timestamp: {error}") from None
