"""Reads the changes of a webhook body, by what is in their value.

`messages`, `statuses` and `errors` come with the field messages. `message_echoes` are what a person sent on the phone
app, `history` is what was said before the number was connected, `calls` are calls; `statuses` with them are those of
calls by the salon. `user_preferences` and `state_sync` say something of customers. Anything else is a failure.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

from services.messaging.kinds import CALL, ECHO, HISTORY, MISSED_CALL, NO_EFFECT
from services.messaging.webhook.change import Change
from services.messaging.webhook.content import text_field
from services.messaging.webhook.details import is_count
from services.messaging.webhook.facts import read_contact, read_preference
from services.messaging.webhook.items import Incoming, Status, read_message
from services.messaging.webhook.json_scanner import Unreadable, elements, json_text, load_or_none, members
from services.messaging.webhook.senders import Senders

LISTS = ("contacts", "messages", "statuses", "errors", "message_echoes", "calls", "user_preferences", "state_sync")
_OF_HISTORY = {"SENT": "SENT", "DELIVERED": "DELIVERED", "READ": "READ", "PLAYED": "READ", "ERROR": "FAILED"}
_CALL_STATUSES = {"RINGING": "STARTED", "ACCEPTED": "STARTED", "REJECTED": "MISSED"}
Current: TypeAlias = Callable[[], Change]  # the change to add to: a full one is followed by another


def read_change(item: Any, value: Mapping[str, Any], change: Current) -> Iterator[None]:
    """Add the items of a change, whose `value` is an object, to `change`; yield after each."""
    field = str(load_or_none((members(item) or {}).get("field")))
    if not value.keys() & _KINDS.keys():
        change().fail("OTHER", f"field: {field[:64]!a} is not known", item, is_unknown_kind=True)
    parts = {name: listed(value, name, kind, change) for name, kind in _KINDS.items() if name in value}
    messages = parts.get("messages", ())
    persons = sum(len(parts.get(name, ())) for name in ("messages", "calls", "user_preferences"))
    senders = Senders(is_only_message=persons == 1)
    for contact in elements(value.get("contacts")) or ():
        senders.add(load_or_none(contact))
        yield
    if field == "history":
        yield from _read_media(messages, value, senders, change)
    else:
        for message in messages:
            change().add(message, partial(_live, senders=senders), senders.names)
            yield
    for echo in parts.get("message_echoes", ()):
        stored = partial(_in_change, "smb_message_echoes", "message_echoes")
        _add_echo(change, echo, senders, stored)
        yield
    for call in parts.get("calls", ()):
        change().add(
            call, partial(_call, senders=senders), senders.names, "OTHER", partial(_in_change, "calls", "calls")
        )
        yield
    for preference in parts.get("user_preferences", ()):
        stored = partial(_in_change, "user_preferences", "user_preferences")
        change().add_fact(preference, partial(read_preference, senders=senders), stored)
        yield
    for contact in parts.get("state_sync", ()):
        change().add_fact(contact, read_contact, partial(_in_change, "smb_app_state_sync", "state_sync"))
        yield
    for chunk in parts.get("history", ()):
        yield from _read_chunk(chunk, value, senders, change)
    for status in parts.get("statuses", ()):
        if field == "calls":
            stored = partial(_in_change, "calls", "statuses")
            change().add(status, partial(_call_status, senders=senders), senders.names, "OTHER", stored)
        else:
            change().add_status(status)
        yield
    for error in parts.get("errors", ()):
        change().fail("OTHER", "errors: WhatsApp reports an error", error, is_unknown_kind=True)
        yield


_KINDS = {
    "messages": "MESSAGE",
    "message_echoes": "OTHER",
    "calls": "OTHER",
    "history": "OTHER",
    "statuses": "STATUS",
    "errors": "OTHER",
    "user_preferences": "OTHER",
    "state_sync": "OTHER",
}


def listed(holder: Any, name: str, kind: str, change: Current) -> Sequence[Any]:
    """Return a list of a JSON object, empty if it has none; anything else there counts as one unreadable item."""
    fields = members(holder)
    found = elements(fields.get(name, [])) if fields is not None else None
    if found is None:
        change().fail(kind, f"{name}: is not a list", holder if fields is None else fields[name])
        return []
    return found


def _in_change(field: str, name: str, item: Any) -> Any:
    """Return an item in a separate change, which says what kind it is; an unreadable item as it is."""
    return {"field": field, "value": {name: [item]}} if isinstance(item, dict) else item


def _live(item: Any, senders: Senders) -> Incoming:
    return read_message(item, senders.of(_object(item)), json_text(item))


def _object(item: Any) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise Unreadable("is not an object")
    return item


def _add_echo(change: Current, item: Any, senders: Senders, stored: Callable[[Any], Any]) -> None:
    """Add what a person of the salon sent on the phone app: it counts as sent, even if no status follows."""

    def read(item: Any) -> Incoming:
        customer = senders.named(_object(item).get("to"), text_field(item, "to_user_id"))
        message = read_message(item, customer, json_text(item), direction="OUTBOUND", rule=ECHO)
        return _with_origin(message, "PHONE_APP")

    message = change().add(item, read, lambda item: senders.names(_with_sender(item, "to")), "OTHER", stored)
    if message is not None and not message.is_amendment:
        change().derived.append(_status(message, "SENT"))


def _with_sender(item: Any, name: str) -> Any:
    return {"from": item.get(name), "from_user_id": item.get(f"{name}_user_id")} if isinstance(item, dict) else item


def _with_origin(message: Incoming, origin: str) -> Incoming:
    message.details = {**(message.details or {}), "origin": f"MESSAGE_ORIGIN_{origin}"}
    return message


def _status(message: Incoming, status: str) -> Status:
    """Return a status event of a message at the message's own time."""
    values: dict[str, Any] = dict.fromkeys(Status.model_fields)
    time = None if "time_adjusted" in (message.details or {}) else message.created_at
    values |= {"whatsapp_id": message.whatsapp_id, "status": status, "occurred_at": time}
    return Status.model_construct(None, **values)


def _call(item: Any, senders: Senders) -> Incoming:
    """Return an event of a call as a message with the call's ID; it is missed if it ends without a talk."""
    event, duration = _object(item).get("event"), item.get("duration")
    if event not in ("connect", "terminate"):
        raise Unreadable("event: is neither connect nor terminate")
    by_salon = item.get("direction") == "BUSINESS_INITIATED"
    seconds = duration if is_count(duration) else 0
    person = senders.of(_with_sender(item, "to" if by_salon else "from"))
    status = "STARTED" if event == "connect" else "COMPLETED" if seconds else "MISSED"
    return _call_message(item, person, status, seconds, by_salon=by_salon)


def _call_status(item: Any, senders: Senders) -> Incoming:
    """Return a status of a call by the salon as an event of the call."""
    status = _CALL_STATUSES.get(str(_object(item).get("status")))
    if status is None:
        raise Unreadable("status: is none of a call")
    person = senders.named(item.get("recipient_id"), text_field(item, "recipient_user_id"))
    return _call_message(item, person, status, 0, by_salon=True)


def _call_message(
    item: dict[str, Any], person: tuple[Any, str | None, str], status: str, seconds: int, *, by_salon: bool
) -> Incoming:
    message = read_message(
        {**{name: item.get(name) for name in ("id", "timestamp", "group_id")}, "type": "call"},
        person,
        json_text(item),
        direction="OUTBOUND" if by_salon else "INBOUND",
        rule=NO_EFFECT if by_salon else MISSED_CALL if status == "MISSED" else CALL,
    )
    call = {"status": f"CALL_STATUS_{status}", "duration_seconds": seconds}
    message.details = {**(message.details or {}), "call": call}
    return message


def _read_chunk(chunk: Any, value: Mapping[str, Any], senders: Senders, change: Current) -> Iterator[None]:
    """Add the messages of a part of the history; or its errors, such as that the salon does not share it."""
    if "errors" in (members(chunk) or {}):
        for error in listed(chunk, "errors", "OTHER", change):
            change().fail("OTHER", "errors: WhatsApp reports an error", error, is_unknown_kind=True)
            yield
    for thread in listed(chunk, "threads", "OTHER", change):
        fields = members(thread) or {}
        context = load_or_none(fields.get("context"))
        wanted = {"id": load_or_none(fields.get("id"))} | ({"context": context} if context else {})
        for message in listed(thread, "messages", "OTHER", change):
            _add_past(change, message, _own_number(value), wanted, senders)
            yield
        yield


def _read_media(messages: Sequence[Any], value: Mapping[str, Any], senders: Senders, change: Current) -> Iterator[None]:
    """Add messages of the history whose media come later, without their thread."""
    for message in messages:
        _add_past(change, message, _own_number(value), {}, senders)
        yield


def _own_number(value: Mapping[str, Any]) -> str:
    """Return the digits of the salon's own number, "" if it is not known."""
    metadata = load_or_none(value.get("metadata"))
    return "".join(filter(str.isdigit, text_field(metadata, "display_phone_number") or ""))


def _add_past(change: Current, item: Any, own_number: str, thread: dict[str, Any], senders: Senders) -> None:
    """Add a message of the history; the customer is the thread's, and what the salon's number sent is OUTBOUND."""

    def is_sent(item: dict[str, Any]) -> bool:
        sender = item.get("from")
        return bool(item.get("to")) or (sender == own_number if sender else bool(item.get("to_user_id")))

    def read(item: Any) -> Incoming:
        sent = is_sent(_object(item))
        context = thread.get("context")
        named = senders.of(_with_sender(item, "to" if sent else "from"))
        phone = thread.get("id") or text_field(context, "wa_id") or named[0]
        customer = senders.named(phone, text_field(context, "user_id") or named[1])
        message = read_message(
            item, customer, json_text(item), direction="OUTBOUND" if sent else "INBOUND", rule=HISTORY
        )
        return _with_origin(message, "HISTORY")

    def stored(item: Any) -> Any:
        if not isinstance(item, dict):
            return item
        metadata = {"metadata": {"display_phone_number": own_number}}
        placed = {"history": [{"threads": [{**thread, "messages": [item]}]}]} if thread else {"messages": [item]}
        return {"field": "history", "value": metadata | placed}

    message = change().add(item, read, senders.names, "OTHER", stored)
    if message is not None and message.direction == "OUTBOUND" and not message.is_amendment:
        context = load_or_none(item).get("history_context")
        status = _OF_HISTORY.get(str(text_field(context, "status")).upper())
        if status:
            change().derived.append(_status(message, status))
