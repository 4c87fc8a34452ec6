"""The fields of a message that only some kinds have, as the proto names them; see Message.

Source: Meta, "Webhooks, messages reference", one page for each type. What can't be read is left out, since the raw item
is kept. Lists and texts are limited, so that a page of messages stays small.
"""

from collections.abc import Callable, Mapping
from typing import Any

from services.messaging.webhook.content import clean, shown_text, text_field, typed_part
from services.messaging.webhook.json_scanner import json_text
from services.messaging.webhook.pricing import micros
from services.messaging.webhook.senders import e164, is_number

MOST_ELEMENTS = 100
MOST_NUMBERS = 20  # of a contact card
LONGEST = 4096
LONGEST_FORM = 65_536

Details = dict[str, Any]


def read_details(item: Mapping[str, Any]) -> Details | None:
    """Return the details of a message, None if it has none."""
    kind, part = typed_part(item)
    details: Details = {}
    if (reader := _READERS.get(kind)) is not None and (found := reader(part)):
        details[_FIELDS.get(kind, kind)] = found
    if "referral" in item and (referral := _referral(item["referral"])):
        details["referral"] = referral
    context = item.get("context")
    if isinstance(context, dict) and "referred_product" in context:
        product = _texts(context["referred_product"], "catalog_id", "product_retailer_id")
        details |= {"referred_product": product} if product else {}
    return details or None


def first_error(item: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return an item's first error, an empty one if it has none."""
    errors = item.get("errors")
    error = errors[0] if isinstance(errors, list) and errors else None
    return error if isinstance(error, dict) else {}


def error_details(item: Mapping[str, Any]) -> str | None:
    """Return WhatsApp's details of an item's first error."""
    return shown_text(first_error(item).get("error_data"), "details", LONGEST)


def status_details(item: Mapping[str, Any]) -> Details | None:
    """Return the details of a status event, None if it has none."""
    details = {
        "error_details": error_details(item) if "errors" in item else None,
        "biz_opaque_callback_data": shown_text(item, "biz_opaque_callback_data", 512),
        "pricing_type": text_field(item.get("pricing"), "type", 64),
        "pricing_model": text_field(item.get("pricing"), "pricing_model", 64),
    }
    return {name: text for name, text in details.items() if text} or None


def is_count(value: Any) -> bool:
    """Return whether a value is a whole number above 0 that an int32 holds."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31


def _texts(holder: Any, *names: str, longest: int = LONGEST) -> Details:
    """Return the texts of a JSON object that are not empty."""
    return {name: text for name in names if (text := shown_text(holder, name, longest))}


def _interactive(part: Any) -> Details:
    kind, chosen = typed_part(part) if isinstance(part, dict) else ("", None)
    if not isinstance(chosen, dict):
        return {}
    reply = {"kind": clean(kind[:64]), **_texts(chosen, "id", "title", "description")}
    if kind == "nfm_reply":
        answers = chosen.get("response_json")
        text = answers if isinstance(answers, str) else json_text(answers) if isinstance(answers, dict) else ""
        reply |= _texts({"title": chosen.get("name")}, "title")
        reply |= _texts({"flow_json": text}, "flow_json", longest=LONGEST_FORM)
    elif kind == "call_permission_reply":
        reply |= _texts({"title": chosen.get("response")}, "title")
    return reply


def _button(part: Any) -> Details:
    if not isinstance(part, dict):
        return {}
    return {"kind": "button", **_texts({"id": part.get("payload"), "title": part.get("text")}, "id", "title")}


def _location(part: Any) -> Details:
    if not isinstance(part, dict):
        return {}
    degrees = {name: float(part[name]) for name in ("latitude", "longitude") if _is_degree(part.get(name))}
    return {**degrees, **_texts(part, "name", "address", "url")}


def _is_degree(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -180 <= value <= 180


def _order(part: Any) -> Details:
    items = part.get("product_items") if isinstance(part, dict) else None
    products = [_product(item) for item in items[:MOST_ELEMENTS]] if isinstance(items, list) else []
    found = [product for product in products if product]
    return {**_texts(part, "catalog_id", "text"), **({"items": found} if found else {})}


def _product(item: Any) -> Details:
    product = _texts(item, "product_retailer_id")
    if not product:
        return {}
    quantity, currency = item.get("quantity"), text_field(item, "currency", 3)
    if is_count(quantity):
        product["quantity"] = quantity
    price = micros(item.get("item_price"))
    return product | ({"item_price_micros": price, "currency_code": currency} if price and currency else {})


def _contacts(part: Any) -> list[Details]:
    cards = [_card(card) for card in part[:MOST_ELEMENTS]] if isinstance(part, list) else []
    return [card for card in cards if card]


def _card(card: Any) -> Details:
    if not isinstance(card, dict):
        return {}
    texts = {
        "name": shown_text(card.get("name"), "formatted_name", 1000),
        "company": shown_text(card.get("org"), "company", 1000),
        "phones": _each(card.get("phones"), "phone"),
        "emails": _each(card.get("emails"), "email"),
    }
    return {name: value for name, value in texts.items() if value}


def _each(entries: Any, name: str) -> list[str]:
    texts = [shown_text(entry, name, 320) for entry in entries[:MOST_NUMBERS]] if isinstance(entries, list) else []
    return [text for text in texts if text]


def _referral(part: Any) -> Details:
    if not isinstance(part, dict):
        return {}
    named = ("source_url", "source_id", "source_type", "headline", "body", "media_type", "thumbnail_url", "ctwa_clid")
    referral = _texts(part, *named)
    media = shown_text(part, "image_url", LONGEST) or shown_text(part, "video_url", LONGEST)
    welcome = shown_text(part.get("welcome_message"), "text", LONGEST)
    return referral | {name: text for name, text in (("media_url", media), ("welcome_message", welcome)) if text}


def _system(part: Any) -> Details:
    """Return what a system message says; older ones name the new number `new_wa_id`."""
    notice = _texts({"kind": part.get("type")} if isinstance(part, dict) else None, "kind", longest=64)
    if not notice:
        return {}
    number = text_field(part, "wa_id") or text_field(part, "new_wa_id") or ""
    if "changed_number" in notice["kind"] and is_number(number):
        notice["phone_number"] = e164(number)
    return notice | _texts(part, "user_id", "previous_user_id", longest=256)


_FIELDS = {"interactive": "interactive_reply", "button": "interactive_reply"}
_READERS: dict[str, Callable[[Any], Any]] = {
    "interactive": _interactive,
    "button": _button,
    "location": _location,
    "order": _order,
    "contacts": _contacts,
    "system": _system,
}
