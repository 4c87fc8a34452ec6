"""Reads the JSON of a webhook body: a short one by `json.loads`, a large one in parts.

`json.loads` takes 0.3 s for 8 MB, which would block every other RPC. `scan` finds where the parts of a body are,
without building objects; `load` builds the object of one part. So a body needs little more memory than its bytes, and a
part that can't be read does not affect the others.
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
WINDOW = 8_192  # bytes scanned before other tasks may run
MOST_STORED = 65_536  # characters of an item that can't be recorded
LARGEST_SMALL = 65_536  # bytes of a body that json.loads reads: it takes less than a millisecond

Steps: TypeAlias = Generator[None, None, "Part"]
# The parts to find: of an object by name, of a list by its one element. None: the value is one part.
Shape: TypeAlias = "Mapping[str, Shape] | Sequence[Shape] | None"

_SPACE = re.compile(rb"[ \t\n\r]*+")
_SCALAR = re.compile(rb"[-+.0-9A-Za-z]++")
# A string, whose group is empty if it continues after the window; an opening bracket; a closing bracket.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+("?)|([{\[])|[}\]]', re.DOTALL)
_STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+("?)', re.DOTALL)
_MOST_DIGITS = 309


class Unreadable(Exception):
    """An item can't be recorded; the text names the field and the reason."""


class HugeNumber(float):
    """A number that JSON allows and Python's float does not hold, such as 1e400, with its text."""

    def __init__(self, text: str) -> None:
        """Keep the text."""
        self.text = text


class Part:
    """A part of a body: its position, its depth of nesting, and its own parts if the shape names them."""

    __slots__ = ("depth", "end", "parts", "payload", "start")

    def __init__(self, payload: bytes, start: int, end: int, depth: int, parts: Any = None) -> None:
        """Describe a part of `payload`; `parts` are those of an object by name, or those of a list."""
        self.payload = payload
        self.start = start
        self.end = end
        self.depth = depth
        self.parts = parts

    @property
    def raw(self) -> bytes:
        """The bytes of the part."""
        return self.payload[self.start : self.end]


class Leaves(Sequence[Part]):
    """The elements of a list, held as numbers: 100,000 objects would slow down the garbage collector."""

    def __init__(self, payload: bytes) -> None:
        """Begin with no element."""
        self._payload = payload
        self._positions = array("Q")

    def add(self, part: Part) -> None:
        """Add an element."""
        self._positions.extend((part.start, part.end, part.depth))

    def __len__(self) -> int:
        """Return the number of elements."""
        return len(self._positions) // 3

    def __getitem__(self, index: Any) -> Any:
        """Return an element."""
        if index >= len(self):
            raise IndexError
        return Part(self._payload, *self._positions[3 * index : 3 * index + 3])


def is_small(payload: bytes) -> bool:
    """Return whether a body is read in one step: it is short, has few items and can't be nested too deeply."""
    return len(payload) <= LARGEST_SMALL and payload.count(b"[") + payload.count(b"{") <= MOST_NESTED


def read_json(payload: bytes, shape: Shape) -> Generator[None, None, Any]:
    """Return a body: as objects if it is short, else as the parts that `shape` names. Raises: ValueError."""
    if len(payload) <= LARGEST_SMALL:
        try:
            body = _DECODER.decode(payload.decode())
            if is_small(payload) or not _is_deep(body):
                return body
        except (ValueError, RecursionError):
            pass  # perhaps only one item is malformed
    return (yield from scan(payload, shape))


def _is_deep(value: Any) -> bool:
    """Return whether a value is nested more than MOST_NESTED deep."""
    level = [value]
    for _ in range(MOST_NESTED):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True


def scan(payload: bytes, shape: Shape) -> Steps:
    """Return a body as the parts that `shape` names; yield where other tasks may run.

    Raises: ValueError if the body is not JSON.
    """
    scanner = _Scanner(payload)
    part = yield from scanner.part(scanner.space(0), shape)
    if scanner.space(part.end) != len(payload):
        raise ValueError("there is something after the body")
    return part


def load(value: Any) -> Any:
    """Return the object of a part; return any other value as it is. Raises: Unreadable."""
    if not isinstance(value, Part):
        return value
    if value.depth > MOST_NESTED:
        raise Unreadable("is nested too deeply")
    if value.end - value.start > LARGEST_PART:
        raise Unreadable(f"is larger than {LARGEST_PART} bytes")
    try:
        return _DECODER.decode(value.raw.decode("utf-8", "surrogatepass"))
    except ValueError:
        raise Unreadable("is not JSON") from None


def load_or_none(value: Any) -> Any:
    """Return the object of a part, None if it can't be read."""
    try:
        return load(value)
    except Unreadable:
        return None


def members(value: Any) -> Mapping[str, Any] | None:
    """Return the members of an object (of a part, those that the shape names), None if it is not a readable object."""
    if isinstance(value, Part):
        value = load_or_none(value) if value.parts is None else value.parts
    return value if isinstance(value, dict) else None


def elements(value: Any) -> Sequence[Any] | None:
    """Return the elements of a list, None if it is not a readable list."""
    if isinstance(value, Part):
        value = load_or_none(value) if value.parts is None else value.parts
    return value if isinstance(value, list | Leaves) else None


def json_text(value: Any, *, sort_keys: bool = False) -> str:
    """Return JSON in ASCII, with strings for numbers that Python does not hold. Raises: Unreadable."""
    value = load(value)
    try:
        return json.dumps(value, allow_nan=False, sort_keys=sort_keys)
    except ValueError:
        return json.dumps(_without_huge_numbers(value), sort_keys=sort_keys)


def stored_item(value: Any) -> tuple[str, bytes]:
    """Return the text to store of an item that can't be recorded, in ASCII, and the bytes that identify the item."""
    try:
        text = json_text(value, sort_keys=True)
    except Unreadable:
        raw = value.raw
        return raw[:MOST_STORED].replace(b"\0", b" ").decode("ascii", "backslashreplace")[:MOST_STORED], raw
    return text[:MOST_STORED], text.encode()


class _Scanner:
    """Scans a body. Its methods raise ValueError if the body is not JSON."""

    def __init__(self, payload: bytes) -> None:
        self._payload = payload
        self._parts = 0

    def space(self, at: int) -> int:
        """Return the first position from `at` on that is not white space."""
        found = _SPACE.match(self._payload, at)
        return found.end() if found else at

    def part(self, at: int, shape: Shape) -> Steps:
        """Return the part that begins at a position."""
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
            key = str(load_or_none(name) or "") if name.end - name.start < WINDOW else ""
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
        """Return where the first element begins, or the end of an empty list or object, and whether it is the end."""
        at = self.space(start + 1)
        return (at + 1, True) if self._payload[at : at + 1] == closing else (at, False)

    def _next(self, end: int, closing: bytes) -> tuple[int, bool]:
        """Return where the next element begins, or the end if there is none, and whether it is the end."""
        at = self.space(end)
        found = self._payload[at : at + 1]
        if found == closing:
            return at + 1, True
        if found != b",":
            raise ValueError("a comma is missing")
        return self.space(at + 1), False

    def _leaf(self, start: int) -> Steps:
        """Return a string, list or object as one part: its strings and brackets show where it ends."""
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
        """Return the end of a string; `at` is inside it."""
        while found := _STRING.match(self._payload, at, at + WINDOW):
            if found[1]:
                return found.end()
            if found.end() == at:
                break
            at = found.end()
            yield
        raise ValueError("the end of a string is missing")


def _integer(text: str) -> int | HugeNumber:
    return int(text) if len(text) < _MOST_DIGITS else HugeNumber(text)


def _number(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else HugeNumber(text)


def _without_huge_numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_huge_numbers(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_without_huge_numbers(part) for part in value]
    return value.text if isinstance(value, HugeNumber) else value


_DECODER = json.JSONDecoder(parse_int=_integer, parse_float=_number, parse_constant=HugeNumber)
