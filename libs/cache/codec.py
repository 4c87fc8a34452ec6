"""The format of what the cache keeps on the server.

A tag version record is `version | unverified | last_xid | checksum` (scripts/records.lua). An entry is
`version | digest | loaded at, in ms | found | body`: it counts while its version is that of its tag's record. The
digest covers its key, and with a secret all of it (Codec). Anything unreadable counts as missing
(docs/decisions/0032).
"""

import re
import struct
import time
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b, sha1
from typing import NamedTuple

from libs.cache.keys import Key

VERSION_BYTES = 29
EPOCH = slice(13, 21)  # of a version

_RECORD = re.compile(rb"(.{29})([01])(\d{1,16})([0-9a-f]{8})", re.DOTALL)
_DIGEST = 16
_HEADER = struct.Struct(f">{_DIGEST}sQ?")
_SEALED_HEADER = struct.Struct(">Q?")
_SEALED = VERSION_BYTES + _DIGEST  # offset of what a secret's digest covers, besides version and key
_BODY = VERSION_BYTES + _HEADER.size


class TagVersion(NamedTuple):
    """A tag version record."""

    version: bytes
    unverified: bool
    last_xid: int

    @classmethod
    def parse(cls, version_key: str, value: bytes) -> "TagVersion | None":
        """Read a record; None if it is none of this key."""
        if not (match := _RECORD.fullmatch(value)):
            return None
        version, unverified, last_xid, checksum = match.groups()
        if sha1(version_key.encode() + value[:-8], usedforsecurity=False).hexdigest()[:8].encode() != checksum:
            return None
        return cls(version, unverified == b"1", int(last_xid))


class Entry(NamedTuple):
    """One cached reply: its bytes, None if there is nothing, and when it was loaded, in ms since 1970."""

    body: bytes | None
    loaded_ms: int


@dataclass(eq=False, slots=True)
class Fill:
    """The arguments of the fill script for one entry."""

    key: Key
    version: bytes
    xmin: int
    barrier: int
    ttl_ms: int
    entry: Entry


class Lookup(NamedTuple):
    """What the server has of a key: the value of the tag's record, and the entry if it is of the record's version."""

    record: bytes | None
    entry: Entry | None

    def tag_version(self, key: Key) -> TagVersion | None:
        """Return the tag's record. A hit needs none: its entry was stored under the version that the record names."""
        return None if self.record is None else TagVersion.parse(key.tag.version_key, self.record)


class Codec:
    """Reads and writes the values of entries.

    With a secret, an entry's digest also covers its version and its bytes: someone who can write to the server cannot
    forge a reply without it. That costs 1 us for each entry, and 1 us for each kilobyte.
    """

    def __init__(self, secret: str) -> None:
        """Use a secret, or none if it is empty. `epoch` is that of the records that count."""
        self._secret = blake2b(secret.encode()).digest() if secret else b""
        self.epoch = b""

    def decode(self, key: str, record: bytes | None, entry: bytes | None) -> Lookup:
        """Read a record and an entry; those of another epoch, version or key are None."""
        if record is None or record[EPOCH] != self.epoch:
            return Lookup(None, None)
        if entry is None or len(entry) < _BODY or entry[:VERSION_BYTES] != record[:VERSION_BYTES]:
            return Lookup(record, None)
        digest, loaded_ms, found = _HEADER.unpack_from(entry, VERSION_BYTES)
        if digest != (self._seal(key, entry[:VERSION_BYTES], entry[_SEALED:]) if self._secret else _check(key)):
            return Lookup(record, None)
        return Lookup(record, Entry(entry[_BODY:] if found else None, loaded_ms))

    def encode(self, key: str, version: bytes, entry: Entry) -> bytes:
        """Return the value of an entry without its version, which the fill script prepends."""
        sealed = _SEALED_HEADER.pack(entry.loaded_ms, entry.body is not None) + (entry.body or b"")
        return (self._seal(key, version, sealed) if self._secret else _check(key)) + sealed

    def _seal(self, key: str, version: bytes, sealed: bytes) -> bytes:
        name = key.encode()
        return blake2b(
            b"".join((version, len(name).to_bytes(4), name, sealed)), digest_size=_DIGEST, key=self._secret
        ).digest()


@lru_cache(4096)
def _check(key: str) -> bytes:
    """Return the digest of a key, which each entry carries: a reply to another command is never taken for it."""
    return blake2b(key.encode(), digest_size=_DIGEST).digest()


def now_ms() -> int:
    """Return the time in ms since 1970."""
    return time.time_ns() // 1_000_000
