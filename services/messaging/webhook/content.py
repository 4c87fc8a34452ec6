"""What a message says, by its type: the text to show, the media it has, the message it answers.

Source: Meta, "Webhooks, messages reference", one page a type.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
_MEDIA = frozenset(("image", "audio", "video", "document", "sticker"))


def word(holder: Any, name: str, most: int = 256) -> str | None:
    """Return a text of a JSON object; None if it is none, longer than `most` characters, or can't be stored."""
    found = holder.get(name) if isinstance(holder, dict) else None
    return found if isinstance(found, str) and 0 < len(found) <= most and not _UNSTORABLE.search(found) else None


class Parts:
    """The parts of a message that its type decides about."""

    def __init__(self, item: Mapping[str, Any]) -> None:
        """Take a message; an edit shows the text and media that the message has now."""
        self._item = item
        edited = part.get("message") if isinstance(part := _part(item), dict) and _kind(item) == "edit" else None
        self._shown: Mapping[str, Any] = edited if isinstance(edited, dict) and _kind(edited) != "edit" else item

    @property
    def content(self) -> Any:
        """The text, the caption, or the title of what was chosen; no str where the item has none in its place."""
        kind, part = _kind(self._shown), _part(self._shown)
        reader = _READERS.get(kind)
        if reader is None:
            return word(part, "body", 65_536) or word(part, "caption", 65_536) or ""
        return reader(part) or "" if isinstance(part, dict) or kind == "contacts" else ""

    @property
    def media_id(self) -> str | None:
        """WhatsApp's id of the media."""
        return word(_part(self._shown), "id") if _kind(self._shown) in _MEDIA else None

    @property
    def reply_to(self) -> str | None:
        """WhatsApp's id of the message that this one reacts to, changes or answers."""
        part = _part(self._item)
        of_kind = word(part, "message_id") if _kind(self._item) == "reaction" else word(part, "original_message_id")
        return of_kind or word(self._item.get("context"), "id")


def _kind(item: Mapping[str, Any]) -> str:
    kind = item.get("type")
    return kind if isinstance(kind, str) else ""


def _part(item: Mapping[str, Any]) -> Any:
    return item.get(_kind(item))


def _document(part: Mapping[str, Any]) -> Any:
    return part.get("caption") or part.get("filename")


def _location(part: Mapping[str, Any]) -> Any:
    named = [text for name in ("name", "address") if (text := word(part, name, 1000))]
    place = [part.get("latitude"), part.get("longitude")]
    return ", ".join(named or (str(degrees) for degrees in place if isinstance(degrees, float | int)))


def _contacts(part: Any) -> Any:
    """Return the names on contact cards; of a card without one its first phone number."""
    cards = [card for card in part if isinstance(card, dict)] if isinstance(part, list) else []
    return ", ".join(name for card in cards if (name := word(card.get("name"), "formatted_name", 1000) or _phone(card)))


def _phone(card: Mapping[str, Any]) -> str | None:
    phones = card.get("phones")
    return word(phones[0], "phone") if isinstance(phones, list) and phones else None


def _interactive(part: Mapping[str, Any]) -> Any:
    """Return the title of the button or the row that was chosen, or what a flow answered."""
    chosen = _part(part)
    return word(chosen, "title", 65_536) or word(chosen, "body", 65_536)


def _order(part: Mapping[str, Any]) -> Any:
    items = part.get("product_items")
    count = len(items) if isinstance(items, list) else 0
    return part.get("text") or f"{count} product{'' if count == 1 else 's'}"


def _field(name: str) -> Callable[[Any], Any]:
    return lambda part: part.get(name)


_READERS: dict[str, Callable[[Any], Any]] = {
    "text": _field("body"),
    **dict.fromkeys(("image", "audio", "video", "sticker"), _field("caption")),
    "document": _document,
    "location": _location,
    "contacts": _contacts,
    "reaction": _field("emoji"),
    "interactive": _interactive,
    "button": _field("text"),
    "order": _order,
    "system": _field("body"),
}
