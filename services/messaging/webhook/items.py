"""Reads the items of a webhook body: messages and statuses.

The fields that an item needs to be recorded (its id, time, sender and text) must be valid. Other fields are left out if
they are not, since the raw item is kept.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, StringConstraints, ValidationError

from services.messaging.kinds import AMENDMENTS, Rule
from services.messaging.kinds import rule as rule_of
from services.messaging.webhook.content import LONGEST_TEXT, clean, read_content, shown_text, text_field
from services.messaging.webhook.details import error_details, first_error, is_count, read_details, status_details
from services.messaging.webhook.json_scanner import Unreadable
from services.messaging.webhook.pricing import read_pricing
from services.messaging.webhook.senders import e164
from services.messaging.webhook.times import clamped, moment

TYPES = frozenset(
    "text image audio video document sticker location contacts reaction interactive button order system template"
    " unsupported edit revoke call".split()
)
# A voice message that was played was read.
STATUSES = {"sent": "SENT", "delivered": "DELIVERED", "read": "READ", "played": "READ", "failed": "FAILED"}
LONGEST_ERROR = 1000


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


def type_of(kind: Any) -> str:
    """Return the type of a message as it is stored, UNKNOWN if WhatsApp's name of it is not among TYPES."""
    return kind.upper() if isinstance(kind, str) and kind in TYPES else "UNKNOWN"


Text = Annotated[str, BeforeValidator(_storable)]
# A text with U+FFFD for what can't be stored: one odd character must not hide a message.
Cleaned = Annotated[str, BeforeValidator(lambda value: clean(value) if isinstance(value, str) else value)]
Identifier = Annotated[Text, StringConstraints(min_length=1, max_length=256)]
MessageType = Annotated[Identifier, AfterValidator(type_of)]
Phone = Annotated[str | None, BeforeValidator(e164)]
Moment = Annotated[datetime, BeforeValidator(moment)]


class Incoming(BaseModel):
    """A message, a reaction, an edit or a revoke, with the names and values of the database's columns.

    `group_id`: it was sent in that group, by the named person. `details`: fields of a Message. `item`: its JSON. The
    effects on its conversation are those of a `Rule`.
    """

    whatsapp_id: Identifier = Field(alias="id")
    phone_number: Phone = Field(alias="from")
    user_id: str | None
    customer_name: str
    direction: str
    group_id: str | None
    type: MessageType
    created_at: Moment = Field(alias="timestamp")
    content: Annotated[Cleaned, StringConstraints(max_length=LONGEST_TEXT)]
    media_id: str | None
    reply_to_whatsapp_id: str | None
    error_code: int | None
    error_title: str | None
    unread: bool
    reopens: bool
    opens_window: bool
    counted: bool
    details: dict[str, Any] | None
    item: str

    @property
    def is_amendment(self) -> bool:
        """Whether it changes another message instead of being one."""
        return self.type in AMENDMENTS


class Status(BaseModel):
    """A status event of an outbound message, with the names and values of the database's columns."""

    whatsapp_id: Identifier = Field(alias="id")
    status: Identifier
    occurred_at: Moment | None = Field(alias="timestamp")
    error_code: int | None
    error_title: str | None
    pricing_category: str | None
    billable: bool | None
    cost_micros: int | None
    currency_code: str | None
    conversation_origin: str | None
    details: dict[str, Any] | None


def read_message(
    item: Any, person: tuple[Any, str | None, str], raw: str, *, direction: str = "INBOUND", rule: Rule | None = None
) -> Incoming:
    """Return a message, or what changes one; `person` is the customer: phone number, user_id and name.

    `rule` None: that of its type. Raises: Unreadable; ValidationError.
    """
    if not isinstance(item, dict):
        raise Unreadable("is not an object")
    content, details = read_content(item), read_details(item)
    phone, user_id, name = person
    if not phone and not user_id:
        raise Unreadable("from: neither a phone number nor a user id")
    group_id = text_field(item, "group_id")
    if group_id is None and item.get("group_id") is not None:
        raise Unreadable("group_id: is not the ID of a group")
    if rule is None:
        rule = rule_of(direction, type_of(item.get("type")))
    if group_id is not None:
        rule = rule._replace(opens_window=False)  # a group has no service window
    given = {"from": phone, "user_id": user_id, "customer_name": name, "direction": direction, "group_id": group_id}
    message = Incoming.model_validate(
        {**item, **given, **_first_error(item), **content, **rule._asdict(), "details": details, "item": raw}
    )
    if message.is_amendment and not message.reply_to_whatsapp_id:
        raise Unreadable(f"{message.type.lower()}: names no message")
    if message.type == "EDIT" and not message.content and not message.media_id:
        raise Unreadable("edit: has no new text or media")
    if group_id is not None:
        sender = {"phone_number": message.phone_number, "user_id": user_id, "name": name}
        message.details = {**(details or {}), "sender": {key: text for key, text in sender.items() if text}}
    if "errors" in item and (text := error_details(item)):
        message.details = {**(message.details or {}), "error_details": text}
    message.created_at, adjusted = clamped(message.created_at)
    if adjusted:
        message.details = {**(message.details or {}), "time_adjusted": True}
    return message


def read_status(item: Any) -> Status:
    """Return a status event. Raises: Unreadable; ValidationError."""
    if not isinstance(item, dict):
        raise Unreadable("is not an object")
    conversation = item.get("conversation")
    origin = conversation.get("origin") if isinstance(conversation, dict) else None
    given = {"conversation_origin": text_field(origin, "type", 64), "details": status_details(item)}
    price = read_pricing(item.get("pricing"))
    status = Status.model_validate({**item, **_first_error(item), **price, **given})
    if status.occurred_at is None or clamped(status.occurred_at)[1]:
        status.occurred_at = None  # now; a repeat must be seen as one
        status.details = {**(status.details or {}), "time_adjusted": True}
    return status


def reason_of(error: Unreadable | ValidationError) -> str:
    """Return the field that made an item unreadable, and why."""
    if isinstance(error, Unreadable):
        return str(error)
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg'].removeprefix('Value error, ')}"


def _first_error(item: Mapping[str, Any]) -> dict[str, Any]:
    """Return the code and the title of an item's first error."""
    error = first_error(item)
    code = error.get("code")
    title = shown_text(error, "title", LONGEST_ERROR) or shown_text(error, "message", LONGEST_ERROR)
    return {"error_code": code if is_count(code) else None, "error_title": title}
