"""JSON of a webhook body, read a part at a time: what one call of `json.loads` does in 0.3 s for 8 MB.

`scan` finds where the parts of a body are, without making objects of them; `load` makes the object of one part. So a
body needs little more memory than its bytes, and a part that can't be read loses only itself.
"""

import json
import math
import re
from array import array
from collections.abc import Generator, Mapping, Sequence
from typing import Any, TypeAlias

MOST_NESTED = 64
LARGEST_PART = 131_072  # bytes
MOST_PARTS = 100_000  # of a body
WINDOW = 8_192  # bytes looked through before others may run
MOST_KEPT = 65_536  # characters of an item that can't be recorded
LARGEST_SMALL = 65_536  # bytes of a body that is read at once

Steps: TypeAlias = Generator[None, None, "Part"]
# What to look into: an object by its names, a list by its one element. None: it is one part.
Shape: TypeAlias = "Mapping[str, Shape] | Sequence[Shape] | None"

_SPACE = re.compile(rb"[ \t\n\r]*+")
_SCALAR = re.compile(rb"[-+.0-9A-Za-z]++")
# A string, whose last group is empty where it goes on behind the window; what opens; what closes.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+("?)|([{\[])|[}\]]', re.DOTALL)
_STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+("?)', re.DOTALL)
# A number that Python may not hold as JSON has it, or something that looks like one.
_FAR = re.compile(r"(?<![0-9])[0-9]{309}|[eE]\+?[0-9]{3}|NaN|Infinity")
_MOST_DIGITS = 309


class Unreadable(Exception):
    """An item that can't be recorded; its text says which field, and why."""


class Far(float):
    """A number that JSON has and Python does not hold, such as 1e400: it keeps its text."""

    def __init__(self, text: str) -> None:
        """Keep the text."""
        self.text = text


class Part:
    """A part of a body: where it is, how deeply it is nested, and its own parts if it was looked into."""

    __slots__ = ("depth", "end", "parts", "payload", "start")

    def __init__(self, payload: bytes, start: int, end: int, depth: int, parts: Any = None) -> None:
        """Make a part of `payload`; `parts` are those of an object by name, or those of a list."""
        self.payload = payload
        self.start = start
        self.end = end
        self.depth = depth
        self.parts = parts

    @property
    def raw(self) -> bytes:
        """Its bytes."""
        return self.payload[self.start : self.end]


def is_small(payload: bytes) -> bool:
    """Say whether a body takes so little time that it can be read at once, and nests too deeply in no way."""
    return len(payload) <= LARGEST_SMALL and payload.count(b"[") + payload.count(b"{") <= MOST_NESTED


class Leaves(Sequence[Part]):
    """The elements of a list that are not looked into: numbers, since 100,000 objects hold up the garbage collector."""

    def __init__(self, payload: bytes) -> None:
        """Begin with none."""
        self._payload = payload
        self._places = array("Q")

    def add(self, part: Part) -> None:
        """Take one more."""
        self._places.extend((part.start, part.end, part.depth))

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._places) // 3

    def __getitem__(self, index: Any) -> Any:
        """Return one of them."""
        if index >= len(self):
            raise IndexError
        return Part(self._payload, *self._places[3 * index : 3 * index + 3])


def parse(payload: bytes, shape: Shape) -> Generator[None, None, Any]:
    """Return a body: as objects if it is small, else as the parts that `shape` names. Raises: ValueError."""
    if is_small(payload):
        try:
            return _loads(payload.decode())
        except ValueError:
            pass  # perhaps but for one item
    return (yield from scan(payload, shape))


def scan(payload: bytes, shape: Shape) -> Steps:
    """Return a body as the parts that `shape` names, yielding now and then. Raises: ValueError for what is no JSON."""
    scanner = _Scanner(payload)
    part = yield from scanner.part(scanner.space(0), shape)
    if scanner.space(part.end) != len(payload):
        raise ValueError("there is something behind the body")
    return part


def load(value: Any) -> Any:
    """Return a part as an object; what is none is returned as it is. Raises: Unreadable."""
    if not isinstance(value, Part):
        return value
    if value.depth > MOST_NESTED:
        raise Unreadable("is nested too deeply")
    if value.end - value.start > LARGEST_PART:
        raise Unreadable(f"is larger than {LARGEST_PART} bytes")
    try:
        return _loads(value.raw.decode("utf-8", "surrogatepass"))
    except ValueError:
        raise Unreadable("is no JSON") from None


def peek(value: Any) -> Any:
    """Return a part as an object, None if it can't be read."""
    try:
        return load(value)
    except Unreadable:
        return None


def members(value: Any) -> Mapping[str, Any] | None:
    """Return the members of an object, those that the shape names; None if it is no object that can be read."""
    found = _inside(value)
    return found if isinstance(found, dict) else None


def elements(value: Any) -> Sequence[Any] | None:
    """Return the elements of a list; None if it is no list that can be read."""
    found = _inside(value)
    return found if isinstance(found, list | Leaves) else None


def text_of(value: Any, *, sort_keys: bool = False) -> str:
    """Return JSON in ASCII, with texts for numbers that Python does not hold. Raises: Unreadable."""
    value = load(value)
    try:
        return json.dumps(value, allow_nan=False, sort_keys=sort_keys)
    except ValueError:
        return json.dumps(_plain(value), sort_keys=sort_keys)


def kept(value: Any) -> tuple[str, bytes]:
    """Return what to keep of an item that can't be recorded, in ASCII, and the bytes that tell it from others."""
    try:
        text = text_of(value, sort_keys=True)
    except Unreadable:
        raw = value.raw
        return raw[:MOST_KEPT].replace(b"\0", b" ").decode("ascii", "backslashreplace")[:MOST_KEPT], raw
    return text[:MOST_KEPT], text.encode()


class _Scanner:
    """Goes through a body. Its methods raise ValueError where that is no JSON."""

    def __init__(self, payload: bytes) -> None:
        self._payload = payload
        self._parts = 0

    def space(self, at: int) -> int:
        """Return the first place from `at` on that is no white space."""
        found = _SPACE.match(self._payload, at)
        return found.end() if found else at

    def part(self, at: int, shape: Shape) -> Steps:
        """Return the part that begins at a place."""
        yield
        self._parts += 1
        if self._parts > MOST_PARTS:
            raise ValueError("there are too many parts")
        first = self._payload[at : at + 1]
        if first == b"{" and isinstance(shape, Mapping):
            return (yield from self._object(at, shape))
        if first == b"[" and isinstance(shape, Sequence):
            return (yield from self._list(at, shape[0]))
        if first in (b"{", b"[", b'"'):
            return (yield from self._leaf(at))
        found = _SCALAR.match(self._payload, at)
        if not found:
            raise ValueError("a value is missing")
        return Part(self._payload, at, found.end(), 0)

    def _object(self, start: int, shape: Mapping[str, Shape]) -> Steps:
        parts: dict[str, Part] = {}
        deepest = 0
        at, closed = self._open(start, b"}")
        while not closed:
            if self._payload[at : at + 1] != b'"':
                raise ValueError("a name is missing")
            name = yield from self._leaf(at)
            at = self.space(name.end)
            if self._payload[at : at + 1] != b":":
                raise ValueError("a colon is missing")
            key = str(peek(name) or "") if name.end - name.start < WINDOW else ""
            part = yield from self.part(self.space(at + 1), shape.get(key))
            if key in shape:
                parts[key] = part
            deepest = max(deepest, part.depth)
            at, closed = self._next(part.end, b"}")
        return Part(self._payload, start, at, deepest + 1, parts)

    def _list(self, start: int, shape: Shape) -> Steps:
        parts: list[Part] = []
        leaves = Leaves(self._payload)
        add = leaves.add if shape is None else parts.append
        deepest = 0
        at, closed = self._open(start, b"]")
        while not closed:
            part = yield from self.part(at, shape)
            add(part)
            deepest = max(deepest, part.depth)
            at, closed = self._next(part.end, b"]")
        return Part(self._payload, start, at, deepest + 1, leaves if shape is None else parts)

    def _open(self, start: int, closing: bytes) -> tuple[int, bool]:
        """Return where the first element begins, or the end if there is none, and which of them it is."""
        at = self.space(start + 1)
        return (at + 1, True) if self._payload[at : at + 1] == closing else (at, False)

    def _next(self, end: int, closing: bytes) -> tuple[int, bool]:
        """Return where the next element begins, or the end if there is none, and which of them it is."""
        at = self.space(end)
        found = self._payload[at : at + 1]
        if found == closing:
            return at + 1, True
        if found != b",":
            raise ValueError("a comma is missing")
        return self.space(at + 1), False

    def _leaf(self, start: int) -> Steps:
        """Return a string, list or object that is not looked into: its end is found by its strings and brackets."""
        at, depth, deepest = start, 0, 0
        while at < len(self._payload):
            following = at + WINDOW
            for token in _TOKEN.finditer(self._payload, at, following):
                if token.lastindex == 2:
                    depth += 1
                    deepest = max(deepest, depth)
                    continue
                end = token.end()
                if token.lastindex is None:
                    depth -= 1
                elif not token[1]:  # the last one of the window
                    end = following = yield from self._string(end)
                if depth == 0:
                    return Part(self._payload, start, end, deepest)
            at = following
            yield
        raise ValueError("the end is missing")

    def _string(self, at: int) -> Generator[None, None, int]:
        """Return the end of a string, of which `at` is not the beginning."""
        while found := _STRING.match(self._payload, at, at + WINDOW):
            if found[1]:
                return found.end()
            if found.end() == at:
                break
            at = found.end()
            yield
        raise ValueError("the end of a string is missing")


def _inside(value: Any) -> Any:
    return value.parts if isinstance(value, Part) and value.parts is not None else peek(value)


def _loads(text: str) -> Any:
    if _FAR.search(text):
        return json.loads(text, parse_int=_integer, parse_float=_number, parse_constant=Far)
    return json.loads(text)


def _integer(text: str) -> int | Far:
    return int(text) if len(text) < _MOST_DIGITS else Far(text)


def _number(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else Far(text)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return value.text if isinstance(value, Far) else value
