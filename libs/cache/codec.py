"""What the cache keeps on the server, byte by byte.

A meta is `generation | cold | highest | checksum`: 29 characters made by the server, 8 of them the epoch, `1` while the
tag's past is unknown, the highest transaction id registered, in decimal digits (below 2^53, since Lua counts in
doubles), and 8 hexadecimal digits of the SHA-1 of its key and the rest. The checksum finds damaged metas and those of
other keys; it is no protection against someone who can write to the server (docs/decisions/0032). An entry is
`generation | digest | loaded at, in ms | found | bytes`; its digest is of its key, or of all that it says (see Codec).

What can't be read is missing.
"""

import re
import struct
import time
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b, sha1
from typing import NamedTuple

from libs.cache.keys import Key

GENERATION = 29
EPOCH = slice(13, 21)  # of a generation

_META = re.compile(rb"(.{29})([01])(\d{1,16})([0-9a-f]{8})", re.DOTALL)
_DIGEST = 16
_HEADER = struct.Struct(f">{_DIGEST}sQ?")
_SEALED_HEADER = struct.Struct(">Q?")
_SEALED = GENERATION + _DIGEST  # from here on, what a secret seals
_BODY = GENERATION + _HEADER.size


class Meta(NamedTuple):
    """What a tag's meta says."""

    generation: bytes
    cold: bool
    highest: int

    @classmethod
    def parse(cls, key: str, value: bytes) -> "Meta | None":
        """Read the value of a meta's key; None if it is no meta of this key."""
        if not (match := _META.fullmatch(value)):
            return None
        generation, cold, highest, checksum = match.groups()
        if sha1(key.encode() + value[:-8], usedforsecurity=False).hexdigest()[:8].encode() != checksum:
            return None
        return cls(generation, cold == b"1", int(highest))


class Entry(NamedTuple):
    """One cached reply: None where there is nothing, and when it was loaded, in ms since 1970."""

    body: bytes | None
    loaded_ms: int


@dataclass(eq=False, slots=True)
class Fill:
    """What a FILL needs to know of a load."""

    key: Key
    generation: bytes
    xmin: int
    barrier: int
    ttl_ms: int
    entry: Entry


class Found(NamedTuple):
    """What a look found: the value of the tag's meta, and the entry if it is of the meta's generation."""

    value: bytes | None
    entry: Entry | None

    def meta(self, key: Key) -> Meta | None:
        """Return the tag's meta. A hit does without: its entry was stored under the generation it names."""
        return None if self.value is None else Meta.parse(key.tag.meta, self.value)


class Codec:
    """Reads and writes the values of entries.

    With a secret an entry's digest also covers its generation and its bytes, so that an attacker who can write to the
    server cannot forge a reply without the secret. It costs 1 us an entry, and 1 us more for each kilobyte.
    """

    def __init__(self, secret: str) -> None:
        """Use a secret, or none if it is empty. `epoch` is that of the metas that count."""
        self._secret = blake2b(secret.encode()).digest() if secret else b""
        self.epoch = b""

    def decode(self, key: str, meta: bytes | None, entry: bytes | None) -> Found:
        """Read the values of a meta and an entry; one of another epoch or stored under another key is none."""
        if meta is None or meta[EPOCH] != self.epoch:
            return Found(None, None)
        if entry is None or len(entry) < _BODY or entry[:GENERATION] != meta[:GENERATION]:
            return Found(meta, None)
        digest, loaded_ms, found = _HEADER.unpack_from(entry, GENERATION)
        if digest != (self._seal(key, entry[:GENERATION], entry[_SEALED:]) if self._secret else _check(key)):
            return Found(meta, None)
        return Found(meta, Entry(entry[_BODY:] if found else None, loaded_ms))

    def encode(self, key: str, generation: bytes, entry: Entry) -> bytes:
        """Return the value of an entry without its generation, which FILL puts before it."""
        sealed = _SEALED_HEADER.pack(entry.loaded_ms, entry.body is not None) + (entry.body or b"")
        return (self._seal(key, generation, sealed) if self._secret else _check(key)) + sealed

    def _seal(self, key: str, generation: bytes, sealed: bytes) -> bytes:
        name = key.encode()
        return blake2b(
            b"".join((generation, len(name).to_bytes(4), name, sealed)), digest_size=_DIGEST, key=self._secret
        ).digest()


@lru_cache(4096)
def _check(key: str) -> bytes:
    """Return what an entry says of its key, so that a reply meant for another is never taken for it."""
    return blake2b(key.encode(), digest_size=_DIGEST).digest()


def now_ms() -> int:
    """Return the time that entries are dated by, in ms since 1970."""
    return time.time_ns() // 1_000_000
