"""What the cache keeps on the server, byte by byte.

A meta is `generation | cold | highest`: 29 characters made by the server, `1` while the group's past is unknown, and
the highest transaction id registered, in decimal digits (below 2^53, since Lua counts in doubles). An entry is
`generation | check of its key | loaded at, in ms | found | bytes`.
"""

import struct
import time
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple

from libs.cache.keys import Key

GENERATION = 29

_HEADER = struct.Struct(">8sQ?")


class Meta(NamedTuple):
    """What a group's meta says."""

    generation: bytes
    cold: bool
    highest: int

    @classmethod
    @lru_cache(4096)
    def parse(cls, meta: bytes) -> "Meta":
        """Read a meta as the scripts write it."""
        return cls(meta[:GENERATION], meta[GENERATION] == ord("1"), int(meta[GENERATION + 1 :]))


class Entry(NamedTuple):
    """One cached reply: None where there is nothing, and when it was loaded, in ms since 1970."""

    body: bytes | None
    loaded_ms: int


@dataclass(eq=False, slots=True)
class Fill:
    """What a FILL needs to know of a load."""

    key: Key
    generation: bytes
    stamp: int
    barrier: int
    ttl_ms: int
    entry: Entry


class Found(NamedTuple):
    """What a look found: the group's meta, and the entry if it is of the meta's generation."""

    meta: Meta | None
    entry: Entry | None


def decode(key: str, meta: bytes | None, entry: bytes | None) -> Found:
    """Read the values of a meta and an entry; an entry that was stored under another key is none."""
    if meta is None:
        return Found(None, None)
    parsed = Meta.parse(meta)
    if entry is None or entry[:GENERATION] != parsed.generation:
        return Found(parsed, None)
    named, loaded_ms, found = _HEADER.unpack_from(entry, GENERATION)
    if named != _check(key):
        return Found(parsed, None)
    return Found(parsed, Entry(entry[GENERATION + _HEADER.size :] if found else None, loaded_ms))


def encode(key: str, entry: Entry) -> bytes:
    """Return the value of an entry without its generation, which FILL puts before it."""
    return _HEADER.pack(_check(key), entry.loaded_ms, entry.body is not None) + (entry.body or b"")


@lru_cache(4096)
def _check(key: str) -> bytes:
    """Return what an entry says of its key, so that a reply meant for another is never taken for it."""
    return blake2b(key.encode(), digest_size=8).digest()


def now_ms() -> int:
    """Return the time that entries are dated by, in ms since 1970."""
    return time.time_ns() // 1_000_000
