"""The expected result of each body in tests/data/whatsapp; the bodies follow Meta's reference of webhooks."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.stack import Fields

BODIES = Path(__file__).parent / "data" / "whatsapp"
PHONE_NUMBER_ID = "106540352242922"
SHEENA, PABLO, JOERG, JOAO = "+16505551234", "+16505555678", "+4915112345678", "+5511987654321"
PABLO_ID, ANA_ID, MIKA_ID = "US.13491208655302741918", "BR.2093847561029384", "FI.7719203348817720"
# Sent by the salon, and named in statuses; the message that it replies to is not always recorded.
REMINDER = "wamid.HRYLMTY1MDU1NTEyMzQVAgARGBIzN0FDM0E1QTJGODNCREYwN0Y2QgA="
EDITED = "wamid.HBgLMTY1MDM4Nzk0MzkVAgASGBQzQTRBNjU5OUFFRTAzODEwMTQ0RgA="
OWN: Fields = {"cost_micros": 50_000, "currency_code": "EUR"}
FREE: Fields = {"billable": False, "cost_micros": 0, "currency_code": ""}


@dataclass
class Case:
    """The counts of a body, and the expected final fields of its messages and of its statuses' messages, in order."""

    counts: dict[str, int]
    messages: list[Fields] = field(default_factory=list)
    statuses: list[Fields] = field(default_factory=list)


def inbound(kind: str, content: str = "", **fields: Any) -> Case:
    """Return the case of one message, by default from Sheena."""
    return Case({"unknown" if kind == "UNKNOWN" else "messages": 1}, [message(kind, content, **fields)])


def message(kind: str, content: str = "", **fields: Any) -> Fields:
    """Return all expected fields of a message."""
    return {"type": f"MESSAGE_TYPE_{kind}", "content": content, "phone_number": SHEENA, **fields}


def outbound(state: str, count: int = 1, **fields: Any) -> Case:
    """Return the case of `count` statuses of one message that was recorded with the cost OWN."""
    return Case({"statuses": count}, [], [{"status": f"MESSAGE_STATUS_{state}", **OWN, **fields}])


def failure(code: int, title: str) -> Fields:
    return {"error_code": code, "error_title": title}


CASES = {
    "text": inbound("TEXT", "Do you have a slot on Friday? 💇"),
    "image": inbound("IMAGE", "Like in this picture, please", media_id=""),
    "image_without_caption": inbound("IMAGE", media_id=""),
    "audio": inbound("AUDIO", media_id=""),
    "voice": inbound("AUDIO", media_id=""),
    "video": inbound("VIDEO", "My hair moves too much", media_id=""),
    "document": inbound("DOCUMENT", "The list of my allergies", media_id=""),
    "document_filename": inbound("DOCUMENT", "voucher 2025.pdf", media_id=""),
    "sticker": inbound("STICKER", media_id=""),
    "sticker_animated": inbound("STICKER", media_id=""),
    "location_named": inbound("LOCATION", "Alexanderplatz, 10178 Berlin"),
    "location": inbound("LOCATION", "-23.5505199, -46.6333094"),
    "contact": inbound("CONTACTS", "Barbara J. Johnson"),
    "contacts": inbound("CONTACTS", "Mum, Dad 🎸, +49 30 654321"),
    "contact_shared": inbound("CONTACTS", "+5511987654321", phone_number=""),
    "reaction": inbound("REACTION", "❤️", reply_to_whatsapp_id=REMINDER),
    "reaction_removed": inbound("REACTION", reply_to_whatsapp_id=REMINDER),
    "button_reply": inbound("INTERACTIVE", "Friday 10:00", reply_to_whatsapp_id=REMINDER),
    "list_reply": inbound("INTERACTIVE", "Cut and colour", reply_to_whatsapp_id=REMINDER),
    "flow_reply": inbound("INTERACTIVE", "Sent", reply_to_whatsapp_id=REMINDER),
    "call_permission_reply": inbound("INTERACTIVE", reply_to_whatsapp_id=REMINDER),
    "template_button": inbound("BUTTON", "Cancel my appointment", reply_to_whatsapp_id=REMINDER),
    "order": inbound("ORDER", "For both of us, please"),
    "order_without_text": inbound("ORDER", "2 products"),
    "number_change": inbound("SYSTEM", "User Sheena Nelson changed from 16505551234 to 12195555358"),
    "identity_change": inbound("SYSTEM", "The security code of Jörg Weiß changed", phone_number=JOERG),
    "unsupported": inbound("UNSUPPORTED", **failure(131051, "Message type unknown")),
    "unsupported_unavailable": inbound("UNSUPPORTED", **failure(131060, "This message is currently unavailable.")),
    "unknown_with_errors": inbound("UNKNOWN", phone_number=JOERG, **failure(131051, "Message type unknown")),
    "edit": inbound("UNKNOWN", "Do you have a slot on Saturday?", reply_to_whatsapp_id=EDITED),
    "revoke": inbound("UNKNOWN", reply_to_whatsapp_id=EDITED),
    "request_welcome": inbound("UNKNOWN", phone_number=JOERG),
    "forwarded": inbound("TEXT", "50 % off everything!"),
    "forwarded_often": inbound("IMAGE", media_id=""),
    "reply": inbound("TEXT", "Yes, that one", reply_to_whatsapp_id=REMINDER),
    "referral": inbound("TEXT", "I saw your ad", phone_number=JOERG),
    "product_enquiry": inbound("TEXT", "Is this still there?", reply_to_whatsapp_id=REMINDER),
    "group": inbound("TEXT", "Can we all come at once?", phone_number=JOERG),
    "identity_key": inbound("TEXT", "New phone, same me"),
    "user_without_phone": inbound("TEXT", "Olá! Tem horário amanhã?", phone_number=""),
    "user_with_username_only": inbound("TEXT", "Moi", phone_number=""),
    "user_with_both": inbound("TEXT", "Hi, Pablo here", phone_number=PABLO),
    "user_with_both_hidden": inbound("IMAGE", "No number this time", phone_number=PABLO, media_id=""),
    "user_id_in_from": inbound("TEXT", "Old field, new id", phone_number=""),
    "wa_id_written_otherwise": inbound("TEXT", "Nove dígitos", phone_number=JOAO),
    "future_type": inbound("UNKNOWN", "Look at me from behind", phone_number=JOERG),
    "future_fields": inbound("TEXT", "Hello from the future"),
    "several_messages": Case(
        {"messages": 4},
        [
            message("TEXT", "one"),
            message("TEXT", "two", phone_number=PABLO),
            message("IMAGE", "three", phone_number="", media_id=""),
            message("TEXT", "four"),
        ],
    ),
    "several_entries": Case(
        {"messages": 3, "statuses": 2},
        [
            message("TEXT", "first change"),
            message("TEXT", "second change", phone_number=JOERG),
            message("TEXT", "second entry", phone_number=PABLO),
        ],
        [{"status": "MESSAGE_STATUS_DELIVERED", "pricing_category": "utility", "billable": True, **OWN}],
    ),
    **dict.fromkeys(
        ("sent", "delivered", "read"),
        outbound("READ", pricing_category="service", conversation_origin="service", **FREE),
    ),
    "status_marketing": outbound("SENT", pricing_category="marketing", billable=True, conversation_origin="marketing"),
    "status_free_entry_point": outbound(
        "DELIVERED", pricing_category="referral_conversion", conversation_origin="referral_conversion", **FREE
    ),
    "status_pmp_regular": outbound("DELIVERED", pricing_category="authentication", billable=True),
    "status_type_only": outbound("READ", pricing_category="utility", **FREE),
    "status_with_amount": outbound(
        "DELIVERED", pricing_category="marketing_lite", billable=True, cost_micros=113_100, currency_code="EUR"
    ),
    "status_with_decimal": outbound(
        "DELIVERED", pricing_category="utility", billable=True, cost_micros=45_600, currency_code="USD"
    ),
    "status_with_a_bad_price": outbound("READ"),
    "status_failed": outbound("FAILED", **failure(131026, "Message undeliverable")),
    "status_failed_then_read": outbound(
        "READ", 2, pricing_category="marketing", billable=True, **failure(131049, "Held back to keep people engaged")
    ),
    "status_to_user_id": outbound("DELIVERED", pricing_category="service", **FREE),
    "status_in_group": outbound("READ", 2),
    "status_with_callback_data": outbound("SENT"),
    "status_played": Case({"unknown": 1}, [], [{"status": "MESSAGE_STATUS_SENT", **OWN}]),
    "status_of_the_future": Case({"unknown": 1, "statuses": 1}, [], [{"status": "MESSAGE_STATUS_SENT", **OWN}]),
    "errors_of_the_account": Case({"unknown": 1}),
    "calls": Case({"unknown": 1}),
    "message_echo": Case({"unknown": 1}),
    "template_status": Case({"unknown": 1}),
}


def payload(name: str, phone_number_id: str = PHONE_NUMBER_ID) -> bytes:
    """Return a body for a phone_number_id."""
    return (BODIES / f"{name}.json").read_bytes().replace(PHONE_NUMBER_ID.encode(), phone_number_id.encode())


def items(name: str, kind: str) -> list[Any]:
    """Return the `messages` or `statuses` of a body."""
    body = json.loads(payload(name))
    return [item for entry in body["entry"] for change in entry["changes"] for item in change["value"].get(kind, [])]
