"""Webhook bodies that are scanned in parts equal those that `json.loads` reads."""

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from services.messaging.webhook import json_scanner
from services.messaging.webhook.json_scanner import Part, Shape, Unreadable, elements, json_text, load, members, scan

RANDOM = settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None)
SHAPE: Shape = {"a": [{"b": {"c": (None,)}}], "d": {"a": None}}
NAMES = st.sampled_from(["a", "b", "c", "d", "", '"', "\\", "a\\", "ä", "{", "]"])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4))


def parsed(payload: bytes, shape: Shape = SHAPE) -> Any:
    """Return the result of `scan` as objects."""
    steps = scan(payload, shape)
    try:
        while True:
            next(steps)
    except StopIteration as end:
        return parent_key(end.value)


def parent_key(part: Any) -> Any:
    """Return a part as objects; scanned parts have only the requested members."""
    if isinstance(part, Part) and isinstance(part.parts, dict):
        return {name: parent_key(one) for name, one in part.parts.items()}
    if isinstance(part, Part) and part.parts is not None:
        return [parent_key(one) for one in part.parts]
    return load(part)


def asked(value: Any, shape: Shape = SHAPE) -> Any:
    """Return the members of a value that a shape names."""
    if isinstance(shape, dict) and isinstance(value, dict):
        return {name: asked(value[name], shape[name]) for name in value.keys() & shape.keys()}
    if isinstance(shape, list | tuple) and isinstance(value, list):
        return [asked(one, shape[0]) for one in value]
    return value


@settings(RANDOM, max_examples=500)
@given(value=VALUES, ascii=st.booleans(), indent=st.sampled_from([None, 1]), window=st.integers(9, 40))
@example(value={"a": [{"b": {"c": ["x" * 20_000, "\\" * 9_001, '"' * 9_001]}}]}, ascii=True, indent=None, window=8192)
def test_any_json_is_read_as_by_json_loads(value: Any, ascii: bool, indent: int | None, window: int) -> None:
    payload = json.dumps(value, ensure_ascii=ascii, indent=indent).encode("utf-8", "surrogatepass")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_scanner, "WINDOW", window if len(payload) < 10_000 else 8192)
        patch.setattr(json_scanner, "MOST_NESTED", 1000)
        found = parsed(payload)
    assert found == asked(json.loads(payload))


@settings(RANDOM, max_examples=300)
@given(payload=st.binary(max_size=40) | st.text('{}[]",:\\ a1', max_size=40).map(str.encode))
def test_anything_but_json_is_an_error(payload: bytes) -> None:
    try:
        found = parsed(payload, None)
    except (ValueError, Unreadable):
        found = ValueError
    try:
        assert found == json.loads(payload)
    except ValueError:
        assert found is ValueError


@settings(RANDOM, max_examples=200)
@given(value=VALUES, cut=st.integers(1, 10_000))
def test_a_truncated_body_is_not_json(value: Any, cut: int) -> None:
    payload = json.dumps([value]).encode()
    with pytest.raises((ValueError, Unreadable)):
        parsed(payload[: -1 - cut % len(payload)], [None])


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"[" * 65 + b"]" * 65, "is nested too deeply"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, "is nested too deeply"),
        (b"[" + b"1," * 70_000 + b"1]", "is larger than 131072 bytes"),
        (b'"' + b"x" * 131_072 + b'"', "is larger than 131072 bytes"),
        (b"9" * 140_000, "is larger than 131072 bytes"),
        (b"{1}", "is not JSON"),
        (b"[1}", "is not JSON"),
        (b'"\\x"', "is not JSON"),
        (b"nul", "is not JSON"),
    ],
)
def test_an_unreadable_part_is_an_error_and_its_neighbors_are_read(payload: bytes, reason: str) -> None:
    steps = scan(b"[1, " + payload + b", 2]", [None])
    while True:
        try:
            next(steps)
        except StopIteration as end:
            first, part, last = end.value.parts
            break
    assert (load(first), load(last)) == (1, 2)
    assert members(part) is None
    assert elements(part) is None
    with pytest.raises(Unreadable, match=f"^{reason}$"):
        json_text(part)


def test_too_many_parts_are_refused() -> None:
    assert len(parsed(b"[" + b"1," * 99_998 + b"1]", [None])) == 99_999
    with pytest.raises(ValueError, match="too many"):
        parsed(b"[" + b"1," * 99_999 + b"1]", [None])
