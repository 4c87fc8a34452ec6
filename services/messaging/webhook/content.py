"""The content of a message, by its type: the text to show, its media, the message that it answers.

Source: Meta, "Webhooks, messages reference", one page for each type.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

LONGEST_TEXT = 65_536  # characters
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
_MEDIA = frozenset(("image", "audio", "video", "document", "sticker"))


def text_field(holder: Any, name: str, longest: int = 256) -> str | None:
    """Return a text of a JSON object; None if it is not a text, longer than `longest`, or can't be stored."""
    text = holder.get(name) if isinstance(holder, dict) else None
    return text if isinstance(text, str) and 0 < len(text) <= longest and not _UNSTORABLE.search(text) else None


def clean(text: str) -> str:
    """Return a text with U+FFFD for what Postgres can't store: NUL, and halves of surrogate pairs."""
    return _UNSTORABLE.sub("\ufffd", text)


def shown_text(holder: Any, name: str, longest: int = 256) -> str | None:
    """Return a text to show, cleaned; None if it is not a text, or longer than `longest`."""
    text = holder.get(name) if isinstance(holder, dict) else None
    return clean(text) if isinstance(text, str) and 0 < len(text) <= longest else None


def read_content(item: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields content, media_id and reply_to_whatsapp_id of a message.

    `content` is the text, the caption, or the title of what was chosen; not a str if the item has something else there.
    An edit has the text and the media that the message has now.
    """
    kind, part = typed_part(item)
    reply_to = text_field(part, "message_id" if kind == "reaction" else "original_message_id")
    if kind == "edit" and isinstance(part, dict) and isinstance(edited := part.get("message"), dict):
        kind, part = typed_part(edited) if edited.get("type") != "edit" else (kind, part)
    if (name := _TEXT_FIELDS.get(kind)) is not None:
        content = part.get(name) or "" if isinstance(part, dict) else ""
    elif (reader := _READERS.get(kind)) is not None:
        content = reader(part) or "" if isinstance(part, dict) or kind == "contacts" else ""
    else:
        content = shown_text(part, "body", LONGEST_TEXT) or shown_text(part, "caption", LONGEST_TEXT) or ""
    return {
        "content": content,
        "media_id": text_field(part, "id") if kind in _MEDIA else None,
        "reply_to_whatsapp_id": reply_to or text_field(item.get("context"), "id"),
    }


def typed_part(item: Mapping[str, Any]) -> tuple[str, Any]:
    """Return the type of an item, and the member that its type names."""
    kind = item.get("type")
    kind = kind if isinstance(kind, str) else ""
    return kind, item.get(kind)


def _document(part: Mapping[str, Any]) -> Any:
    return part.get("caption") or part.get("filename")


def _location(part: Mapping[str, Any]) -> str:
    names = [text for name in ("name", "address") if (text := shown_text(part, name, 1000))]
    degrees = [part.get("latitude"), part.get("longitude")]
    return ", ".join(names or (str(degree) for degree in degrees if isinstance(degree, float | int)))


def _contacts(part: Any) -> str:
    """Return the names on contact cards; the first phone number of a card without a name."""
    names = []
    for card in part if isinstance(part, list) else []:
        if isinstance(card, dict):
            phones = card.get("phones")
            phone = text_field(phones[0], "phone") if isinstance(phones, list) and phones else None
            names.append(shown_text(card.get("name"), "formatted_name", 1000) or phone)
    return ", ".join(filter(None, names))


def _interactive(part: Mapping[str, Any]) -> Any:
    """Return the title of the chosen button or row, or the answer of a flow."""
    _, chosen = typed_part(part)
    return shown_text(chosen, "title", LONGEST_TEXT) or shown_text(chosen, "body", LONGEST_TEXT)


def _order(part: Mapping[str, Any]) -> Any:
    items = part.get("product_items")
    count = len(items) if isinstance(items, list) else 0
    return part.get("text") or f"{count} product{'' if count == 1 else 's'}"


_TEXT_FIELDS = {
    "text": "body",
    "image": "caption",
    "audio": "caption",
    "video": "caption",
    "sticker": "caption",
    "reaction": "emoji",
    "button": "text",
    "system": "body",
}
_READERS: dict[str, Callable[[Any], Any]] = {
    "document": _document,
    "location": _location,
    "contacts": _contacts,
    "interactive": _interactive,
    "order": _order,
}
