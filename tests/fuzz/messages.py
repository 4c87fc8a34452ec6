"""Requests of an RPC, made from its descriptor and from a valid request: valid, nearly so, spoiled, or mere bytes."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any
from uuid import UUID

from buf.validate import validate_pb2
from google.protobuf.message import Message

from tests.fuzz.words import NANOS, SECONDS, Words

DEEPEST = 4
HOUR = 3600
IDS = ("booking_code", "conversation_id", "customer_id", "message_id", "resource_id", "service_id", "time_off_id")
TIMES = ("google.protobuf.Timestamp", "google.protobuf.Duration")


class Messages:
    """Makes messages. All randomness comes from one Random."""

    def __init__(self, random: Random, words: Words) -> None:
        """Take texts of other fields from `words`."""
        self._random = random
        self._words = words
        self._count = 0

    def valid(self, message: Any) -> Any:
        """Return a copy of a valid request, which is likely valid too: with new IDs, at another time."""
        random = self._random
        copy = _copy(message)
        self._count += 1
        names = {field.name for field in copy.DESCRIPTOR.fields}
        shift = random.randrange(100_000) * HOUR
        for name in ("start_time", "end_time"):
            if name in names and copy.HasField(name) and random.random() < 0.9:
                getattr(copy, name).seconds += shift
        if "request_id" in names and random.random() < 0.5:
            copy.request_id = str(UUID(int=random.choice((self._count, random.randrange(50)))))
        if "salon_id" in names and random.random() < 0.1:
            copy.salon_id = self._words.text("salon_id")
        if "whatsapp_id" in names and random.random() < 0.7:
            copy.whatsapp_id = f"wamid.{random.choice((self._count, random.randrange(50)))}"
        for name in ("phone_number", "customer_phone"):
            if name in names and getattr(copy, name) and random.random() < 0.5:
                setattr(copy, name, f"+4915112{random.randrange(3000):06}")
        if "page_token" in names and random.random() < 0.2:
            copy.page_token = self._words.text("page_token")
        if "etag" in names and random.random() < 0.7:
            copy.etag = ""
        for name in IDS:
            if name in names and getattr(copy, name) and random.random() < 0.5:
                self._replace_id(copy, name)
        return copy

    def _replace_id(self, message: Any, name: str) -> None:
        """Set an ID that was seen; then the request names its customer, message or last message by nothing else."""
        if (known := self._words.seen(name)) is not None:
            setattr(message, name, known)
            for other in ("phone_number", "user_id", "whatsapp_id", "up_to_message_id"):
                _empty(message, other)

    def nearly_valid(self, message: Any) -> Any:
        """Return a valid request with a few wrong fields, at any depth."""
        copy = self.valid(message)
        for _ in range(self._random.choice((1, 1, 1, 2, 4))):
            self._change(copy)
        return copy

    def arbitrary(self, kind: Any, depth: int = 0) -> Any:
        """Return a message of a kind with arbitrary fields."""
        message = kind()
        for field in message.DESCRIPTOR.fields:
            if self._random.random() < 0.6:
                self._set(message, field, depth)
        return message

    def _change(self, message: Any) -> None:
        """Change one field of a message, or of a message in it."""
        fields = message.DESCRIPTOR.fields
        if not fields:
            return
        field = self._random.choice(fields)
        inner = list(_inner(message, field))
        if inner and self._random.random() < 0.7:
            self._change(self._random.choice(inner))
        elif self._random.random() < 0.2:
            message.ClearField(field.name)
        else:
            self._set(message, field, 0)

    def _set(self, message: Any, field: Any, depth: int) -> None:
        random, value = self._random, getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            return  # no request has a map
        if field.is_repeated:
            if random.random() < 0.3:
                message.ClearField(field.name)
            for _ in range(random.choice((0, 1, 1, 2, 3, 20 if depth else 70, 10 if depth else 300))):
                if field.message_type is None:
                    value.append(self._words.scalar(field))
                elif depth < DEEPEST:
                    self._fill(value.add(), depth + 1)
        elif field.message_type is None:
            setattr(message, field.name, self._words.scalar(field))
        elif depth < DEEPEST:
            value.SetInParent()
            self._fill(value, depth + 1)

    def _fill(self, message: Any, depth: int) -> None:
        if message.DESCRIPTOR.full_name in TIMES:
            random = self._random
            message.seconds = random.choice((*SECONDS, 1_700_000_000 + random.randrange(10**9)))
            message.nanos = random.choice(NANOS)
        else:
            message.CopyFrom(self.arbitrary(type(message), depth))

    def spoilt(self, data: bytes) -> bytes:
        """Return the bytes of a message with errors in its encoding."""
        random = self._random
        for _ in range(random.choice((1, 1, 2, 5))):
            place, more = random.randrange(len(data) + 1), random.choice(_PIECES)
            match random.randrange(5):
                case 0:
                    data = data[:place]
                case 1:
                    data = data[:place] + more + data[place:]
                case 2:
                    data = data[:place] + random.randbytes(random.choice((1, 1, 4))) + data[place + 1 :]
                case 3:
                    data += more
                case _:
                    data = data[:place] + data[place // 2 :]
        return data

    def raw(self) -> bytes:
        """Return bytes that are no message, or one by chance."""
        random = self._random
        if random.random() < 0.5:
            return random.randbytes(random.choice((1, 2, 10, 100, 5000)))
        return random.choice(_PIECES) * random.choice((1, 3, 100, 5000))


# Unknown fields, groups, wrong wire types, varints that are too long, lengths beyond the end, invalid UTF-8.
_PIECES = (
    *(b"\xff", b"\0", b"\x0a", b"\x0a\xff\xff\xff\xff\x0f", b"\x0b", b"\x0c", b"\x0b\x0c", b"\x80" * 10, b"\x80" * 11),
    *(b"\x0a\x02\xff\xfe", b"\x0a\x03\xed\xa0\x80", b"\x0a\x02\xc0\x80", b"\x12\x01\0", b"\x08\x01", b"\x0d1234"),
    *(b"\x0912345678", b"\xfa\xff\xff\xff\x0f\x01x", b"\x0e", b"\x0f", b"\x1a\x00", b"\x0a" + b"\x7f" + b"\x0a" * 127),
)


def _copy(message: Any) -> Any:
    copy = type(message)()
    copy.CopyFrom(message)
    return copy


def _empty(message: Any, name: str) -> None:
    """Clear a text field of a message, if there is one that may be empty."""
    field = message.DESCRIPTOR.fields_by_name.get(name)
    if field is not None and not field.GetOptions().Extensions[validate_pb2.field].string.min_len:
        message.ClearField(name)


def _inner(message: Any, field: Any) -> Iterator[Message]:
    """Yield the messages of a field that are set."""
    if field.message_type is None or field.message_type.GetOptions().map_entry:
        return
    if field.is_repeated:
        yield from getattr(message, field.name)[:5]
    elif message.HasField(field.name):
        yield getattr(message, field.name)
