"""Garbage under the keys of the cache: values of every type, and strings that look almost like ours."""

from typing import Any

from hypothesis import strategies as st

from tests.cache.servers import reaching

KINDS = ("string", "list", "hash", "set", "zset", "stream")

# Strings that almost are a tag version record: its version, "1" or "0", a transaction ID, a checksum.
VERSION = b"0123456789abcdef0123456789abc"
ALMOST_RECORDS = [
    b"",
    b"garbage",
    VERSION,
    VERSION + b"0",
    VERSION + b"0123",
    VERSION + b"2" + b"123",
    VERSION + b"0" + b"-123",
    VERSION + b"0" + b"1e3",
    VERSION + b"0" + b"9" * 40,
    VERSION + b"0" + "١٢".encode(),
    b"\0" * 64,
    b"x" * 100_000,
]


def command(key: str | bytes, kind: str, value: bytes) -> tuple[str | bytes, ...]:
    """Return the command that writes a value of this type to a missing key."""
    return {
        "string": ("SET", key, value),
        "list": ("RPUSH", key, value),
        "hash": ("HSET", key, "field", value),
        "set": ("SADD", key, value),
        "zset": ("ZADD", key, "1", value),
        "stream": ("XADD", key, "*", "field", value),
    }[kind]


def write(client: Any, key: str | bytes, kind: str, value: bytes = b"garbage") -> None:
    """Replace the value of a key by one of this type."""
    client.delete(key)
    client.execute_command(*command(key, kind, value))


def write_to(url: str, key: str) -> None:
    """Replace the value of a key by a list."""
    with reaching(url) as client:
        write(client, key, "list")


def spoiled(value: bytes, how: str, at: int) -> bytes:
    """Return a value with one byte changed, removed or added; `at` wraps."""
    at %= len(value) or 1
    if how == "change":
        return value[:at] + bytes([(value[at] + 1) % 256]) + value[at + 1 :] if value else b"\1"
    if how == "cut":
        return value[:at]
    return value[:at] + b"0" + value[at:]


strings = st.one_of(st.sampled_from(ALMOST_RECORDS), st.binary(max_size=64))
kinds = st.sampled_from(KINDS)
