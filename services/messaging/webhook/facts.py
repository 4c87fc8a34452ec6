"""Reads what WhatsApp says of customers besides their messages: opt-outs, and names in the salon's address book.

Source: Meta, "Webhooks, user_preferences reference" and "smb_app_state_sync reference".
"""

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel

from services.messaging.customer_queries import CustomerFact
from services.messaging.webhook.content import shown_text, text_field
from services.messaging.webhook.items import Moment, Phone
from services.messaging.webhook.json_scanner import Unreadable
from services.messaging.webhook.senders import Senders
from services.messaging.webhook.times import clamped

LONGEST = 1000


class _Said(BaseModel):
    """Of whom something is said, and when."""

    phone_number: Phone
    timestamp: Annotated[Moment, AfterValidator(lambda time: clamped(time)[0])]


def read_preference(item: Any, senders: Senders) -> CustomerFact:
    """Return the choice of a customer: to get marketing messages or not. Raises: Unreadable; ValidationError."""
    if not isinstance(item, dict):
        raise Unreadable("is not an object")
    if item.get("category") != "marketing_messages":
        raise Unreadable("category: is not known")
    if (value := item.get("value")) not in ("stop", "resume"):
        raise Unreadable("value: is neither stop nor resume")
    phone, user_id, _ = senders.named(item.get("wa_id"), text_field(item, "user_id"))
    if not phone and not user_id:
        raise Unreadable("wa_id: neither a phone number nor a user id")
    said = _Said.model_validate({"phone_number": phone, "timestamp": item.get("timestamp")})
    reason = shown_text(item, "detail", LONGEST) or ""
    return CustomerFact(said.phone_number, user_id, said.timestamp, None, value == "stop", reason)


def read_contact(item: Any) -> CustomerFact:
    """Return the name of a customer in the address book, empty if it was removed. Raises: as `read_preference`."""
    contact = item.get("contact") if isinstance(item, dict) else None
    if not isinstance(contact, dict) or item.get("type") != "contact":
        raise Unreadable("type: is not a contact")
    if (action := item.get("action")) not in ("add", "remove"):
        raise Unreadable("action: is neither add nor remove")
    phone, user_id = contact.get("phone_number"), text_field(contact, "user_id")
    if not phone and not user_id:
        raise Unreadable("phone_number: neither a phone number nor a user id")
    metadata = item.get("metadata")
    timestamp = metadata.get("timestamp") if isinstance(metadata, dict) else None
    said = _Said.model_validate({"phone_number": phone or None, "timestamp": timestamp})
    name = shown_text(contact, "full_name", LONGEST) or shown_text(contact, "first_name", LONGEST) or ""
    return CustomerFact(said.phone_number, user_id, said.timestamp, name if action == "add" else "")
