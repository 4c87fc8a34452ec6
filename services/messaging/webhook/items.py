"""The items of a webhook body, read: messages and statuses.

What an item needs to be recorded (its id, its time, its sender, its text) must be right; what else it tells is taken
where it can be and left where not, since the raw item is kept.
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, NamedTuple, TypeVar

from pydantic import BaseModel, BeforeValidator, Field, StringConstraints, ValidationError

from services.messaging.webhook.content import Parts, word
from services.messaging.webhook.json_scanner import Unreadable
from services.messaging.webhook.pricing import price

TYPES = frozenset(
    "text image audio video document sticker location contacts reaction interactive button order system template"
    " unsupported".split()
)
STATUSES = frozenset(("sent", "delivered", "read", "failed"))
MOST_ERROR = 1000
M = TypeVar("M", bound=BaseModel)
_PHONE = re.compile(r"\+?[1-9][0-9]{6,14}")
_USER_ID = re.compile(r"[A-Z]{2}\.(ENT\.)?[A-Za-z0-9]{1,128}")


def _e164(value: Any) -> Any:
    """Read a phone number as WhatsApp writes it: E.164 without its `+`."""
    if value is not None and not (isinstance(value, str) and _PHONE.fullmatch(value)):
        raise ValueError("no phone number")
    return value and "+" + value.removeprefix("+")


def _moment(value: Any) -> datetime:
    """Read WhatsApp's timestamp: seconds since 1970, as a string."""
    try:
        seconds = int(value) if isinstance(value, str | int) else -1
    except ValueError:
        seconds = -1
    if not 0 <= seconds < 253_370_764_800:
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
Phone = Annotated[str | None, BeforeValidator(_e164)]
Moment = Annotated[datetime, BeforeValidator(_moment)]


class Incoming(BaseModel):
    """An inbound message; `item` is the JSON that it came as."""

    whatsapp_id: Identifier = Field(alias="id")
    phone_number: Phone = Field(alias="from")
    user_id: str | None
    customer_name: str
    type: Identifier
    created_at: Moment = Field(alias="timestamp")
    content: Annotated[Text, StringConstraints(max_length=65_536)]
    media_id: str | None
    reply_to_whatsapp_id: str | None
    error_code: int | None
    error_title: str | None
    item: str

    @property
    def type_name(self) -> str:
        """The type as the database has it; UNKNOWN if it is none of ours."""
        return self.type.upper() if self.type in TYPES else "UNKNOWN"


class Status(BaseModel):
    """What became of an outbound message."""

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


class _Contact(NamedTuple):
    """A sender, as a change tells it."""

    wa_id: str | None
    user_id: str | None
    name: str


_NOBODY = _Contact(None, None, "")


class Senders:
    """Who wrote the messages of a change: its `contacts` by WhatsApp's ids."""

    def __init__(self, *, is_lone: bool) -> None:
        """Begin with none; `is_lone` says that there is one message."""
        self._is_lone = is_lone
        self._count = 0
        # Plain tuples: 100,000 objects of a class of ours hold up the garbage collector.
        self._last: tuple[str | None, str | None, str] = (None, None, "")
        self._by_id: dict[str, tuple[str | None, str | None, str]] = {}

    def add(self, contact: Any) -> None:
        """Take a contact, as it came."""
        if not isinstance(contact, dict):
            return
        self._count += 1
        profile = contact.get("profile")
        name = word(profile, "name", 1000) or word(profile, "username") or ""
        self._last = word(contact, "wa_id"), word(contact, "user_id"), name
        for identifier in filter(None, self._last[:2]):
            self._by_id[identifier] = self._last

    def _contact(self, phone: Any, user_id: str | None) -> "_Contact":
        """Return the contact with an id; else the only contact of a lone message, in any spelling of its wa_id."""
        found = self._by_id.get(user_id or "") or self._by_id.get(str(phone))
        if found is None and self._is_lone and self._count == 1:
            found = self._last
        return _NOBODY if found is None else _Contact(*found)

    def of(self, item: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of a message that name its sender. Raises: Unreadable."""
        phone, user_id, contact = self._found(item)
        if not phone and not user_id:
            raise Unreadable("from: neither a phone number nor a user id")
        return {"from": phone, "user_id": user_id, "customer_name": contact.name}

    def names(self, item: Any) -> tuple[str | None, str | None]:
        """Return the phone number (E.164) and user_id of the sender of an unreadable item, each None if not known."""
        if not isinstance(item, dict):
            return None, None
        phone, user_id, _ = self._found(item)
        known = isinstance(phone, str) and _PHONE.fullmatch(phone)
        return _e164(phone) if known else None, user_id

    def _found(self, item: Mapping[str, Any]) -> tuple[Any, str | None, _Contact]:
        phone, user_id = item.get("from") or None, word(item, "from_user_id")
        if isinstance(phone, str) and _USER_ID.fullmatch(phone):
            phone, user_id = None, user_id or phone
        contact = self._contact(phone, user_id)
        told = contact.wa_id or ""
        phone, user_id = phone or (told if _PHONE.fullmatch(told) else None), user_id or contact.user_id
        return phone, user_id, contact


def read_message(item: Any, senders: Senders, raw: str) -> Incoming:
    """Return a message. Raises: Unreadable."""
    if not isinstance(item, dict):
        raise Unreadable("is no object")
    parts = Parts(item)
    fields = {
        **_given(item, "id", "type", "timestamp"),
        **senders.of(item),
        **_error(item),
        "content": parts.content,
        "media_id": parts.media_id,
        "reply_to_whatsapp_id": parts.reply_to,
        "item": raw,
    }
    return _validated(Incoming, fields)


def read_status(item: Any) -> Status:
    """Return a status. Raises: Unreadable."""
    if not isinstance(item, dict):
        raise Unreadable("is no object")
    conversation = item.get("conversation")
    origin = conversation.get("origin") if isinstance(conversation, dict) else None
    fields = {
        **_given(item, "id", "status", "timestamp"),
        **_error(item),
        **price(item.get("pricing"))._asdict(),
        "conversation_origin": word(origin, "type", 64),
    }
    return _validated(Status, fields)


def _given(item: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: item[name] for name in names if name in item}


def _error(item: Mapping[str, Any]) -> dict[str, Any]:
    """Return the code and the title of an item's first error."""
    errors = item.get("errors")
    error = errors[0] if isinstance(errors, list) and errors else None
    code = error.get("code") if isinstance(error, dict) else None
    known = isinstance(code, int) and 0 < code < 2**31 and not isinstance(code, bool)
    title = word(error, "title", MOST_ERROR) or word(error, "message", MOST_ERROR)
    return {"error_code": code if known else None, "error_title": title}


def _validated(kind: type[M], fields: dict[str, Any]) -> M:
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        reason = first["msg"].removeprefix("Value error, ")
        raise Unreadable(f"{'.'.join(map(str, first['loc']))}: {reason}") from None
