"""Reads the items of a webhook body: messages and statuses.

The fields that an item needs to be recorded (its id, time, sender and text) must be valid. Other fields are left out if
they are not, since the raw item is kept.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, StringConstraints, ValidationError

from services.messaging.webhook.content import LONGEST_TEXT, read_content, text_field
from services.messaging.webhook.json_scanner import Unreadable
from services.messaging.webhook.pricing import read_pricing
from services.phones import whatsapp_number

TYPES = frozenset(
    "text image audio video document sticker location contacts reaction interactive button order system template"
    " unsupported".split()
)
STATUSES = frozenset(("sent", "delivered", "read", "failed"))
LONGEST_ERROR = 1000
_AFTER_9998 = 253_370_764_800  # s since 1970
_PHONE = re.compile(r"\+?[1-9][0-9]{6,14}")
_USER_ID = re.compile(r"[A-Z]{2}\.(ENT\.)?[A-Za-z0-9]{1,128}")


def _e164(value: Any) -> Any:
    """Read a phone number as WhatsApp writes it: E.164 without its `+`."""
    if value is not None and not (isinstance(value, str) and _PHONE.fullmatch(value)):
        raise ValueError("not a phone number")
    return value and whatsapp_number("+" + value.removeprefix("+"))


def _moment(value: Any) -> datetime:
    """Read WhatsApp's timestamp: seconds since 1970, as a string."""
    try:
        seconds = int(value) if isinstance(value, str | int) else -1
    except ValueError:
        seconds = -1
    if not 0 <= seconds < _AFTER_9998:
        raise ValueError("not from 1970 to 9998")
    return datetime.fromtimestamp(seconds, UTC)


def _storable(value: Any) -> Any:
    """Refuse what Postgres can't store: NUL, and halves of surrogate pairs."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError("contains half a surrogate pair") from None
        if "\0" in value:
            raise ValueError("contains NUL")
    return value


Text = Annotated[str, BeforeValidator(_storable)]
Identifier = Annotated[Text, StringConstraints(min_length=1, max_length=256)]
MessageType = Annotated[Identifier, AfterValidator(lambda kind: kind.upper() if kind in TYPES else "UNKNOWN")]
Phone = Annotated[str | None, BeforeValidator(_e164)]
Moment = Annotated[datetime, BeforeValidator(_moment)]


class Incoming(BaseModel):
    """An inbound message, with the names and values of the database's columns; `item` is its JSON."""

    whatsapp_id: Identifier = Field(alias="id")
    phone_number: Phone = Field(alias="from")
    user_id: str | None
    customer_name: str
    type: MessageType
    created_at: Moment = Field(alias="timestamp")
    content: Annotated[Text, StringConstraints(max_length=LONGEST_TEXT)]
    media_id: str | None
    reply_to_whatsapp_id: str | None
    error_code: int | None
    error_title: str | None
    details: dict[str, Any] | None = None
    item: str


class Status(BaseModel):
    """A status event of an outbound message, with the names and values of the database's columns."""

    whatsapp_id: Identifier = Field(alias="id")
    status: Identifier
    occurred_at: Moment = Field(alias="timestamp")
    error_code: int | None
    error_title: str | None
    pricing_category: str | None
    billable: bool | None
    cost_micros: int | None
    currency_code: str | None
    conversation_origin: str | None
    details: dict[str, Any] | None = None


# A contact's wa_id, user_id and name. 100,000 objects of a class would slow down the garbage collector.
Contact: TypeAlias = tuple[str | None, str | None, str]


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
        name = text_field(profile, "name", 1000) or text_field(profile, "username") or ""
        self._last = text_field(contact, "wa_id"), text_field(contact, "user_id"), name
        for identifier in filter(None, self._last[:2]):
            self._by_id[identifier] = self._last

    def of(self, item: Mapping[str, Any]) -> tuple[Any, str | None, str]:
        """Return the phone number (not validated), the user_id and the name of a message's sender.

        The only contact belongs to the only message, even if it spells the phone number in another way.
        """
        phone, user_id = item.get("from") or None, text_field(item, "from_user_id")
        if isinstance(phone, str) and _USER_ID.fullmatch(phone):
            phone, user_id = None, user_id or phone
        contact = self._by_id.get(user_id or "") or self._by_id.get(str(phone))
        if contact is None and self.is_only_message and self._count == 1:
            contact = self._last
        if contact is None:
            return phone, user_id, ""
        wa_id, contact_user_id, name = contact
        return phone or (wa_id if _PHONE.fullmatch(wa_id or "") else None), user_id or contact_user_id, name

    def names(self, item: Any) -> tuple[str | None, str | None]:
        """Return the phone number (E.164) and user_id of the sender of an unreadable item, each None if not known."""
        if not isinstance(item, dict):
            return None, None
        phone, user_id, _ = self.of(item)
        return _e164(phone) if isinstance(phone, str) and _PHONE.fullmatch(phone) else None, user_id


def read_message(item: Any, senders: Senders, raw: str) -> Incoming:
    """Return a message. Raises: Unreadable; ValidationError."""
    if not isinstance(item, dict):
        raise Unreadable("is not an object")
    content = read_content(item)
    phone, user_id, name = senders.of(item)
    if not phone and not user_id:
        raise Unreadable("from: neither a phone number nor a user id")
    sender = {"from": phone, "user_id": user_id, "customer_name": name}
    return Incoming.model_validate({**item, **sender, **_first_error(item), **content, "item": raw})


def read_status(item: Any) -> Status:
    """Return a status event. Raises: Unreadable; ValidationError."""
    if not isinstance(item, dict):
        raise Unreadable("is not an object")
    conversation = item.get("conversation")
    origin = conversation.get("origin") if isinstance(conversation, dict) else None
    conversation_origin = {"conversation_origin": text_field(origin, "type", 64)}
    price = read_pricing(item.get("pricing"))
    return Status.model_validate({**item, **_first_error(item), **price, **conversation_origin})


def reason_of(error: Unreadable | ValidationError) -> str:
    """Return the field that made an item unreadable, and why."""
    if isinstance(error, Unreadable):
        return str(error)
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg'].removeprefix('Value error, ')}"


def _first_error(item: Mapping[str, Any]) -> dict[str, Any]:
    """Return the code and the title of an item's first error."""
    errors = item.get("errors")
    error = errors[0] if isinstance(errors, list) and errors else None
    code = error.get("code") if isinstance(error, dict) else None
    is_code = isinstance(code, int) and 0 < code < 2**31 and not isinstance(code, bool)
    title = text_field(error, "title", LONGEST_ERROR) or text_field(error, "message", LONGEST_ERROR)
    return {"error_code": code if is_code else None, "error_title": title}
