"""The expected result of each body in tests/data/whatsapp; the bodies follow Meta's reference of webhooks."""

import json
from pathlib import Path
from typing import Any

from tests.stack import Fields
from tests.whatsapp_cases import (
    AMENDMENT,
    FREE,
    JOAO,
    JOERG,
    NINA,
    OWN,
    PABLO,
    REGULAR,
    REMINDER,
    Case,
    at,
    choice,
    failure,
    inbound,
    message,
    outbound,
    prices,
    product,
)
from tests.whatsapp_fields import OTHER_FIELDS

BODIES = Path(__file__).parent / "data" / "whatsapp"
PHONE_NUMBER_ID = "106540352242922"

CASES = {
    "text": inbound("TEXT", edited_time=at(1749421740), revoked_time=at(1749421800)),
    "image": inbound("IMAGE", "Like in this picture, please", media_id=""),
    "image_without_caption": inbound("IMAGE", media_id=""),
    "audio": inbound("AUDIO", media_id=""),
    "voice": inbound("AUDIO", media_id=""),
    "video": inbound("VIDEO", "My hair moves too much", media_id=""),
    "document": inbound("DOCUMENT", "The list of my allergies", media_id=""),
    "document_filename": inbound("DOCUMENT", "voucher 2025.pdf", media_id=""),
    "sticker": inbound("STICKER", media_id=""),
    "sticker_animated": inbound("STICKER", media_id=""),
    "location_named": inbound(
        "LOCATION",
        "Alexanderplatz, 10178 Berlin",
        location={
            "latitude": 52.5200066,
            "longitude": 13.404954,
            "name": "Alexanderplatz",
            "address": "10178 Berlin",
            "url": "https://example.com/alex",
        },
    ),
    "location": inbound(
        "LOCATION", "-23.5505199, -46.6333094", location={"latitude": -23.5505199, "longitude": -46.6333094}
    ),
    "contact": inbound(
        "CONTACTS",
        "Barbara J. Johnson",
        contacts=[{"name": "Barbara J. Johnson", "company": "Social Tsunami", "phones": ["+1 650 555 9999"]}],
    ),
    "contacts": inbound(
        "CONTACTS",
        "Mum, Dad 🎸, +49 30 654321",
        contacts=[
            {"name": "Mum", "phones": ["+49 30 123456"], "emails": ["mum@example.com"]},
            {"name": "Dad 🎸"},
            {"phones": ["+49 30 654321"]},
        ],
    ),
    "contact_shared": inbound("CONTACTS", "+5511987654321", phone_number="", contacts=[{"phones": ["+5511987654321"]}]),
    "reaction": AMENDMENT,
    "reaction_removed": AMENDMENT,
    "button_reply": inbound(
        "INTERACTIVE", "Friday 10:00", **choice("button_reply", id="slot-10", title="Friday 10:00")
    ),
    "list_reply": inbound(
        "INTERACTIVE",
        "Cut and colour",
        **choice("list_reply", id="svc-3", title="Cut and colour", description="120 minutes"),
    ),
    "flow_reply": inbound(
        "INTERACTIVE",
        "Sent",
        **choice("nfm_reply", title="flow", flow_json='{"flow_token":"f-77","date":"2025-06-13"}'),
    ),
    "call_permission_reply": inbound("INTERACTIVE", **choice("call_permission_reply", title="accept")),
    "template_button": inbound(
        "BUTTON", "Cancel my appointment", **choice("button", id="CANCEL-83KMAT", title="Cancel my appointment")
    ),
    "order": inbound(
        "ORDER",
        "For both of us, please",
        order={
            "catalog_id": "194836987003835",
            "text": "For both of us, please",
            "items": [product("shampoo-1", 2, 9_990_000)],
        },
    ),
    "order_without_text": inbound(
        "ORDER",
        "2 products",
        order={
            "catalog_id": "194836987003835",
            "items": [product("shampoo-1", 1, 9_990_000), product("wax-7", 3, 14_500_000)],
        },
    ),
    "number_change": inbound(
        "SYSTEM",
        "User Nina Mendez changed from 16505550199 to 12195555358",
        phone_number=NINA,
        system={"kind": "user_changed_number", "phone_number": "+12195555358"},
    ),
    "identity_change": inbound(
        "SYSTEM",
        "The security code of Jörg Weiß changed",
        phone_number=JOERG,
        system={"kind": "customer_identity_changed"},
    ),
    "unsupported": inbound(
        "UNSUPPORTED", **failure(131051, "Message type unknown", "Message type is currently not supported.")
    ),
    "unsupported_unavailable": inbound(
        "UNSUPPORTED",
        **failure(131060, "This message is currently unavailable.", "The message can't be shown."),
    ),
    "unknown_with_errors": inbound("UNKNOWN", phone_number=JOERG, **failure(131051, "Message type unknown")),
    "edit": AMENDMENT,
    "revoke": AMENDMENT,
    "request_welcome": inbound("UNKNOWN", phone_number=JOERG),
    "forwarded": inbound("TEXT", "50 % off everything!"),
    "forwarded_often": inbound("IMAGE", media_id=""),
    "reply": inbound("TEXT", "Yes, that one", reply_to_whatsapp_id=REMINDER),
    "referral": inbound(
        "TEXT",
        "I saw your ad",
        phone_number=JOERG,
        referral={
            "source_url": "https://fb.me/3cr4Wqqkv",
            "source_id": "120226305854810726",
            "source_type": "ad",
            "headline": "Chat with us",
            "body": "Summer cuts",
            "media_type": "image",
            "media_url": "https://scontent.example.com/ad.jpg",
            "ctwa_clid": "Aff-n8ZTODiE79d22KtAwQKj9e",
            "welcome_message": "Hi! What can we do for you?",
        },
    ),
    "product_enquiry": inbound(
        "TEXT",
        "Is this still there?",
        reply_to_whatsapp_id=REMINDER,
        referred_product={"catalog_id": "194836987003835", "product_retailer_id": "shampoo-1"},
    ),
    "group": inbound(
        "TEXT", "Can we all come at once?", phone_number="", sender={"phone_number": JOERG, "name": "Jörg Weiß 💈"}
    ),
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
        [{"status": "MESSAGE_STATUS_DELIVERED", "pricing_category": "utility", "billable": True, **OWN, **REGULAR}],
    ),
    **dict.fromkeys(
        ("sent", "delivered", "read"),
        outbound(
            "READ", pricing_category="service", conversation_origin="service", **FREE, **prices("free_customer_service")
        ),
    ),
    "status_marketing": outbound(
        "SENT", pricing_category="marketing", billable=True, conversation_origin="marketing", **prices(model="CBP")
    ),
    "status_free_entry_point": outbound(
        "DELIVERED",
        pricing_category="referral_conversion",
        conversation_origin="referral_conversion",
        **FREE,
        **prices(model="CBP"),
    ),
    "status_pmp_regular": outbound("DELIVERED", pricing_category="authentication", billable=True, **REGULAR),
    "status_type_only": outbound("READ", pricing_category="utility", **FREE, **prices("free_customer_service")),
    "status_with_amount": outbound(
        "DELIVERED",
        pricing_category="marketing_lite",
        billable=True,
        cost_micros=113_100,
        currency_code="EUR",
        **REGULAR,
    ),
    "status_with_decimal": outbound(
        "DELIVERED", pricing_category="utility", billable=True, cost_micros=45_600, currency_code="USD", **REGULAR
    ),
    "status_with_a_bad_price": outbound("READ"),
    "status_failed": outbound("FAILED", **failure(131026, "Message undeliverable", "The recipient can't be reached.")),
    "status_failed_then_read": outbound(
        "READ",
        2,
        pricing_category="marketing",
        billable=True,
        **failure(131049, "Held back to keep people engaged"),
        **REGULAR,
    ),
    "status_to_user_id": outbound("DELIVERED", pricing_category="service", **FREE, **prices("free_customer_service")),
    "status_in_group": outbound("READ", 2),
    "status_with_callback_data": outbound("SENT", biz_opaque_callback_data="campaign-7"),
    "status_played": outbound("READ"),
    "status_payment": Case({"unknown": 1}, [], [{"status": "MESSAGE_STATUS_READ", **OWN}]),
    "status_of_the_future": Case({"unknown": 1, "statuses": 1}, [], [{"status": "MESSAGE_STATUS_READ", **OWN}]),
    **OTHER_FIELDS,
}


def payload(name: str, phone_number_id: str = PHONE_NUMBER_ID) -> bytes:
    """Return a body for a phone_number_id."""
    return (BODIES / f"{name}.json").read_bytes().replace(PHONE_NUMBER_ID.encode(), phone_number_id.encode())


def items(name: str, kind: str) -> list[Any]:
    """Return the `messages` or the `statuses` of messages in a body."""
    return [item for field, value in _values(name) if field != "calls" for item in value.get(kind, [])]


def messages(name: str) -> list[Any]:
    """Return the items of a body that become messages, without those that change or complete one."""
    first: dict[str, Any] = {}
    for item in _sent_or_called(name):
        if item.get("type") not in ("reaction", "edit", "revoke", "media_placeholder"):
            first.setdefault(item["id"], item)
    return list(first.values())


def first_time(name: str, whatsapp_id: str) -> Fields:
    """Return the earliest time of the items of a body that have this ID: those of a call."""
    return at(min(int(item["timestamp"]) for item in _sent_or_called(name) if item["id"] == whatsapp_id))


def _sent_or_called(name: str) -> list[Any]:
    """Return the messages, echoes, messages of the history and events of calls in a body."""
    found = []
    for field, value in _values(name):
        found += [*value.get("messages", []), *value.get("message_echoes", []), *value.get("calls", [])]
        found += value.get("statuses", []) if field == "calls" else []
        threads = [thread for chunk in value.get("history", []) for thread in chunk.get("threads", [])]
        found += [message for thread in threads for message in thread["messages"]]
    return found


def _values(name: str) -> list[tuple[str, Any]]:
    """Return the field and the value of each change of a body."""
    entries = json.loads(payload(name))["entry"]
    return [(change["field"], change["value"]) for entry in entries for change in entry["changes"]]


def names_salon(name: str) -> bool:
    """Return whether a body has the salon's phone_number_id."""
    return PHONE_NUMBER_ID in payload(name).decode()
