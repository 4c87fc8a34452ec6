"""Values of fields: those that fields of a name have held, and those that servers stumble over."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from random import Random
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from tests.hostile import WORDS
from tests.stack import PHONE, SALON

KEPT = 30  # texts of a name
LONGEST_KEPT = 1000
MARK = "kept-from-others-"  # in texts that only some callers may read; no request has it
SALONS = (SALON, SALON, SALON, "salon-2", "salon-3", "nobody")
RIGHT = (
    PHONE,
    "Europe/Berlin",
    "EUR",
    "wamid.1",
    "update_time",
    "stats",
    "query:*",
    "DE.1",
    "anna",
    "notes",
    "1",
    "hi",
)
INTEGERS = (0, 1, 2, 5, 10, 200, 201, -1, 10**6, 2**31 - 1, -(2**31), 2**32 - 1, 2**53 + 1, 2**63 - 1, -(2**63))
FLOATS = (0.0, -1.0, 1e300, float("nan"), float("inf"))
SECONDS = (
    *(0, 1, 60, 600, 3600, 86_400, -1, -1, -(2**63), 2**63 - 1, 315_576_000_000, 315_576_000_001),
    *(1_700_000_000, 1_800_000_000, 253_370_764_799, 253_370_764_800, 253_402_300_799, 253_402_300_800),
    *(-62_135_596_800, -62_135_596_801),
)
NANOS = (0, 0, 0, 1, 1000, 999_999_999, 10**9, -1, 2**31 - 1, -(2**31))
# The texts that a name's fields take besides their own.
ALIASES = {
    "next_page_token": "page_token",
    "customer_phone": "phone_number",
    "customer_user_id": "user_id",
    "customer_id": "conversation_id",
}
RANGES = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_ENUM: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
}


class Words:
    """Texts by the names of their fields, learned from replies: IDs, codes, tokens of other lists and salons."""

    def __init__(self, random: Random) -> None:
        """Know nothing yet."""
        self._random = random
        self._known: defaultdict[str, list[str]] = defaultdict(list)
        self._planted: defaultdict[str, list[str]] = defaultdict(list)

    def plant(self, message: Message) -> None:
        """Keep the texts of a message to the end."""
        for name, text in _texts(message):
            self._planted[name].append(text)

    def learn(self, message: Message) -> None:
        """Keep the texts of a message in place of some learned before."""
        for name, text in _texts(message):
            self._keep(name, text)

    def _keep(self, name: str, text: str) -> None:
        known = self._known[name]
        if not text or len(text) > LONGEST_KEPT or MARK in text:
            return
        if len(known) < KEPT:
            known.append(text)
        else:
            known[self._random.randrange(KEPT)] = text

    def seen(self, name: str) -> str | None:
        """Return a text that a field of this name had in a planted message or in a reply, None if there is none."""
        known = self._random.choice((self._planted, self._known)).get(ALIASES.get(name, name))
        return self._random.choice(known) if known else None

    def scalar(self, field: Any) -> Any:
        """Return a value for a field that is no message."""
        random, kind = self._random, field.cpp_type
        if field.type == FieldDescriptor.TYPE_BYTES:
            return random.choice((b"", b"\0", b"{}", random.randbytes(random.choice((1, 30, 1000)))))
        if kind == FieldDescriptor.CPPTYPE_STRING:
            return self.text(field.name)
        if kind == FieldDescriptor.CPPTYPE_BOOL:
            return random.random() < 0.5
        if kind in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
            return random.choice(FLOATS)
        least, most = RANGES[kind]
        if kind == FieldDescriptor.CPPTYPE_ENUM and random.random() < 0.8:
            return random.randrange(8)
        return min(max(random.choice((*INTEGERS, random.randrange(100))), least), most)

    def text(self, name: str) -> str:
        """Return a text for a field."""
        random, choice = self._random, self._random.random()
        if name == "salon_id" and choice < 0.8:
            return random.choice(SALONS)
        known = self._known.get(ALIASES.get(name, name))
        if known and choice < 0.5:
            return random.choice(known)
        if self._known and choice < 0.6:
            return random.choice(self._known[random.choice(list(self._known))] or RIGHT)
        if choice < 0.75:
            return random.choice(RIGHT)
        if choice < 0.97:
            return random.choice(WORDS)[:2000]
        return self.any_text(random.choice((1, 5, 63, 64, 65, 256, 257, 5000)))

    def any_text(self, length: int) -> str:
        """Return a text of random characters."""
        random = self._random
        if random.random() < 0.3:
            return random.choice("0123456789+-x'\"\\%\0\n\u0663\U0001f487") * length
        return "".join(map(chr, random.choices((*range(256), *range(0x600, 0x6FF), *range(0xFF00, 0xFFFE)), k=length)))


def _texts(message: Message) -> Iterator[tuple[str, str]]:
    """Yield the names of a message's fields, as in ALIASES, and their texts."""
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_STRING and not field.is_repeated:
            yield ALIASES.get(field.name, field.name), value
        elif field.message_type is not None and not field.message_type.GetOptions().map_entry:
            for inner in value[:3] if field.is_repeated else [value]:
                yield from _texts(inner)
