"""Who sent the messages of a webhook body: phone numbers, user_ids and names, as WhatsApp writes them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from services.messaging.webhook.content import shown_text, text_field
from services.phones import whatsapp_number

_PHONE = re.compile(r"\+?[1-9][0-9]{6,14}")
_USER_ID = re.compile(r"[A-Z]{2}\.(ENT\.)?[A-Za-z0-9]{1,128}")

# A contact's wa_id, user_id and name. 100,000 objects of a class would slow down the garbage collector.
Contact: TypeAlias = tuple[str | None, str | None, str]


def is_number(value: Any) -> bool:
    """Return whether a value is a phone number as WhatsApp writes it: E.164 without its `+`."""
    return isinstance(value, str) and _PHONE.fullmatch(value) is not None


def e164(value: Any) -> Any:
    """Return a phone number that WhatsApp has written as E.164; None for None. Raises: ValueError."""
    if value is not None and not is_number(value):
        raise ValueError("not a phone number")
    return value and whatsapp_number("+" + value.removeprefix("+"))


@dataclass(slots=True)
class Senders:
    """The senders of a change's messages: its `contacts`, by WhatsApp's ids. `is_only_message`: it has one message."""

    is_only_message: bool
    _count: int = 0
    _last: Contact = (None, None, "")
    _by_id: dict[str, Contact] = field(default_factory=dict)

    def add(self, contact: Any) -> None:
        """Add an element of `contacts`."""
        if not isinstance(contact, dict):
            return
        self._count += 1
        profile = contact.get("profile")
        name = shown_text(profile, "name", 1000) or shown_text(profile, "username") or ""
        self._last = text_field(contact, "wa_id"), text_field(contact, "user_id"), name
        for identifier in filter(None, self._last[:2]):
            self._by_id[identifier] = self._last

    def of(self, item: Mapping[str, Any]) -> tuple[Any, str | None, str]:
        """Return the phone number (not validated), the user_id and the name of a message's sender."""
        return self.named(item.get("from"), text_field(item, "from_user_id"))

    def named(self, phone: Any, user_id: str | None) -> tuple[Any, str | None, str]:
        """Return the phone number (not validated), the user_id and the name of a person.

        The only contact belongs to the only message, even if it spells the phone number in another way.
        """
        phone = phone or None
        if isinstance(phone, str) and _USER_ID.fullmatch(phone):
            phone, user_id = None, user_id or phone
        contact = self._by_id.get(user_id or "") or self._by_id.get(str(phone))
        if contact is None and self.is_only_message and self._count == 1:
            contact = self._last
        if contact is None:
            return phone, user_id, ""
        wa_id, contact_user_id, name = contact
        return phone or (wa_id if is_number(wa_id) else None), user_id or contact_user_id, name

    def names(self, item: Any) -> tuple[str | None, str | None]:
        """Return the phone number (E.164) and user_id of the sender of an unreadable item, each None if not known."""
        if not isinstance(item, dict):
            return None, None
        phone, user_id, _ = self.of(item)
        return e164(phone) if is_number(phone) else None, user_id
