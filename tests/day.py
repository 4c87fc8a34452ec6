"""A day of one salon as webhook changes of all kinds, and what it should come to.

No two events have the same second, so that the order of messages does not depend on that of delivery.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

from tests.kinds import NUMBER, Item, call, edit, message, past, reaction, revoke, system
from tests.test_webhook import text

DAY = 86_400
BEGIN = 1_749_340_800  # of the day
EVENTS = 2_000
GROUPS = ("R3JvdXAx", "R3JvdXAy")
EMOJI = ("❤️", "👍", "😂", None)


@dataclass
class Person:
    """A customer, as WhatsApp names them: by a number, a user ID or both."""

    phone: str | None
    user_id: str | None
    name: str

    @property
    def key(self) -> str:
        """The identity by which replies name their conversation."""
        return f"+{self.phone}" if self.phone else self.user_id or ""

    def as_sender(self, side: str = "from") -> Item:
        """Return the fields of an item that name the person."""
        return {side: self.phone, f"{side}_user_id": self.user_id}

    @property
    def contact(self) -> Item:
        """Return the person's element of `contacts`."""
        found = {"profile": {"name": self.name}, "wa_id": self.phone, "user_id": self.user_id}
        return {name: value for name, value in found.items() if value}


@dataclass
class Event:
    """A change of a webhook body; or the request of a message that the salon sends, as `record`."""

    second: int
    field: str
    value: Item
    record: Item | None = None


def people(random: Random) -> list[Person]:
    """Return 40 customers."""
    found = []
    for number in range(40):
        phone = f"491511{random.randrange(10**6, 10**7)}" if number % 4 != 3 else None
        user_id = f"DE.{random.randrange(10**15, 10**16)}" if number % 4 >= 2 else None
        found.append(Person(phone, user_id, f"Customer {number}"))
    return found


class Day:
    """The events of a day in the order of their times, and what they come to."""

    def __init__(self, seed: int = 17) -> None:
        """Make the events."""
        self._random = Random(seed)
        self._people = people(self._random)
        self._names = 0
        self._seconds = iter(sorted(self._random.sample(range(BEGIN, BEGIN + DAY), EVENTS + 200)))
        self._received: list[tuple[Person, str]] = []  # texts
        self._echoed: list[tuple[Person, str]] = []
        self._sent: list[tuple[Person, str]] = []  # also those that RecordMessage records
        self._in_groups: list[tuple[str, str]] = []
        self._moved: set[str] = set()
        self._unread: Counter[str] = Counter()  # by the name of a customer, or the ID of a group
        self._window: dict[str, int] = {}
        self.inbound = 0  # messages that count
        self.outbound = 0
        self.events: list[Event] = []
        kinds, weights = zip(*_WEIGHTS.items(), strict=True)
        while len(self.events) < EVENTS:
            [kind] = self._random.choices(kinds, weights)
            self.events += kind(self)

    @property
    def unread(self) -> dict[str, int]:
        """The unread_count of each conversation with unread messages, by its identity."""
        return {self._identity(name): count for name, count in self._unread.items() if count}

    @property
    def window(self) -> dict[str, int]:
        """When the service window of each conversation closes, in s since 1970, by its identity."""
        return {self._identity(name): until for name, until in self._window.items()}

    def _identity(self, name: str) -> str:
        return next((person.key for person in self._people if person.name == name), name)

    def name(self) -> str:
        """Return a new whatsapp_id."""
        self._names += 1
        return f"wamid.day.{self._names}"

    def _person(self) -> Person:
        return self._random.choice(self._people)

    def _from(self, person: Person, item: Item, second: int) -> Event:
        item = {name: value for name, value in {**item, **person.as_sender()}.items() if value is not None}
        return Event(second, "messages", {"contacts": [person.contact], "messages": [item]})

    def _counts(self, person: Person, second: int, *, unread: bool = True, counted: bool = True) -> None:
        self._unread[person.name] += unread
        self.inbound += counted
        self._window[person.name] = second + DAY

    def written(self) -> Iterator[Event]:
        """A customer writes, sends media, chooses something..."""
        person, second, name = self._person(), next(self._seconds), self.name()
        kind, part = self._random.choice(_PARTS)
        if kind == "text":
            self._received.append((person, name))
            part = {"body": f"text {name}"}
        self._counts(person, second)
        extra = {"referral": {"source_id": "7", "ctwa_clid": "c"}} if self._random.random() < 0.05 else {}
        yield self._from(person, message(name, kind, second, part, **extra), second)

    def reacted(self) -> Iterator[Event]:
        """A customer reacts to what the salon sent, or takes it back."""
        if self._sent:
            person, target = self._random.choice(self._sent)
            second = next(self._seconds)
            self._counts(person, second, unread=False, counted=False)
            yield self._from(person, reaction(self.name(), target, second, self._random.choice(EMOJI)), second)

    def edited(self) -> Iterator[Event]:
        """A customer edits or deletes a text; sometimes one of the salon, which changes nothing."""
        if self._received and self._sent:
            person, target = self._random.choice(self._sent if self._random.random() < 0.1 else self._received)
            second, name = next(self._seconds), self.name()
            change = revoke(name, target, second) if self._random.random() < 0.3 else edit(name, target, second, name)
            yield self._from(person, change, second)

    def called(self) -> Iterator[Event]:
        """A customer calls; half of the calls are missed."""
        person, name, missed = self._person(), self.name(), self._random.random() < 0.5
        if person.phone is None:
            return
        begun, ended = next(self._seconds), next(self._seconds)
        events = [call(name, "connect", begun), call(name, "terminate", ended, None if missed else 30)]
        for second, item in zip((begun, ended), events, strict=True):
            item = {**item, **person.as_sender()}
            yield Event(second, "calls", {"contacts": [person.contact], "calls": [item]})
        self._counts(person, ended, unread=missed, counted=False)

    def noticed(self) -> Iterator[Event]:
        """WhatsApp sends a notice about a customer."""
        person, second = self._person(), next(self._seconds)
        yield self._from(person, system(self.name(), second), second)

    def moved(self) -> Iterator[Event]:
        """A customer gets another number, and another user ID if they have one."""
        person, second = self._person(), next(self._seconds)
        if person.phone is None or person.name in self._moved:
            return
        self._moved.add(person.name)
        phone, user_id = f"491711{second % 10**7:07}", f"DE.{second}" if person.user_id else None
        notice = {"wa_id": phone, "user_id": user_id}
        yield self._from(person, system(self.name(), second, "user_changed_number", **notice), second)
        person.phone, person.user_id = phone, user_id

    def in_group(self) -> Iterator[Event]:
        """Somebody writes in a group, or reacts there."""
        person, second, group = self._person(), next(self._seconds), self._random.choice(GROUPS)
        targets = [name for of_group, name in self._in_groups if of_group == group]
        if targets and self._random.random() < 0.3:
            target, emoji = self._random.choice(targets), self._random.choice(EMOJI)
            yield self._from(person, reaction(self.name(), target, second, emoji, group_id=group), second)
        else:
            name = self.name()
            self._in_groups.append((group, name))
            self._unread[group] += 1
            self.inbound += 1
            yield self._from(person, text(id=name, timestamp=str(second), group_id=group), second)

    def echoed(self) -> Iterator[Event]:
        """A person of the salon writes on the phone app, edits, deletes or reacts."""
        person, second, name = self._person(), next(self._seconds), self.name()
        choice = self._random.random()
        if choice < 0.2 and self._echoed:
            person, target = self._random.choice(self._echoed)
            item = edit(name, target, second, name) if choice < 0.14 else revoke(name, target, second)
        elif choice < 0.3 and self._received:
            person, target = self._random.choice(self._received)
            item = reaction(name, target, second, self._random.choice(EMOJI))
        else:
            self.outbound += 1
            self._echoed.append((person, name))
            self._sent.append((person, name))
            item = text(id=name, timestamp=str(second))
        item = {**item, "from": NUMBER, **person.as_sender("to")}
        echo = {name: value for name, value in item.items() if value is not None}
        yield Event(second, "smb_message_echoes", {"contacts": [person.contact], "message_echoes": [echo]})

    def sent(self) -> Iterator[Event]:
        """The salon sends a template, and WhatsApp reports what became of it."""
        person, name, second = self._person(), self.name(), next(self._seconds)
        self.outbound += 1
        self._sent.append((person, name))
        named = {"phone_number": f"+{person.phone}" if person.phone else "", "user_id": person.user_id or ""}
        yield Event(second, "", {}, {"whatsapp_id": name, **named})
        for status in ("sent", "failed") if self._random.random() < 0.1 else ("sent", "delivered", "read"):
            second = next(self._seconds)
            item: Item = {"id": name, "status": status, "timestamp": str(second), "recipient_id": person.phone}
            item["pricing"] = {"billable": True, "category": "utility", "type": "regular", "pricing_model": "PMP"}
            item["errors"] = [{"code": 131026, "title": "Undeliverable"}] if status == "failed" else []
            yield Event(second, "messages", {"statuses": [item]})

    def remembered(self) -> Iterator[Event]:
        """A chunk of the history comes: some of it with media that come apart."""
        person, second = self._person(), next(self._seconds)
        if person.phone is None:
            return
        items = [past(self.name(), second - 9 * DAY + place, sent=bool(place % 2)) for place in range(4)]
        sides = [{"to": person.phone} if item.get("to") else {"from": person.phone} for item in items]
        items = [{**item, **side} for item, side in zip(items, sides, strict=True)]
        media = {**items[0], "type": "image", "image": {"id": "77", "caption": "Look"}}
        items[0] = {**items[0], "type": "media_placeholder", "text": None}
        yield Event(second, "history", {"history": [{"threads": [{"id": person.phone, "messages": items}]}]})
        yield Event(second, "history", {"messages": [media]})

    def unplaced(self) -> Iterator[Event]:
        """Something comes that has no place."""
        second = next(self._seconds)
        yield Event(second, "group_settings_update", {"groups": [{"timestamp": str(second), "group_id": GROUPS[0]}]})


_PARTS: list[tuple[str, Any]] = [
    *[("text", None)] * 12,
    *((kind, {"id": "77"}) for kind in ("image", "audio", "video", "document", "sticker")),
    ("interactive", {"type": "button_reply", "button_reply": {"id": "1", "title": "Yes"}}),
    ("interactive", {"type": "nfm_reply", "nfm_reply": {"name": "flow", "response_json": '{"a": 1}'}}),
    ("button", {"payload": "1", "text": "Yes"}),
    ("order", {"catalog_id": "1", "product_items": [{"product_retailer_id": "p", "quantity": 1}]}),
    ("location", {"latitude": 1.5, "longitude": 2.5}),
    ("contacts", [{"name": {"formatted_name": "Ann"}}]),
    ("hologram", {}),
]
_WEIGHTS: dict[Callable[[Day], Iterator[Event]], int] = {
    Day.written: 400,
    Day.reacted: 80,
    Day.edited: 60,
    Day.called: 30,
    Day.noticed: 20,
    Day.moved: 8,
    Day.in_group: 60,
    Day.echoed: 80,
    Day.sent: 120,
    Day.remembered: 15,
    Day.unplaced: 8,
}
