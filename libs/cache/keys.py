"""Namespaces, tags and keys.

A tag is what a write invalidates together: `query:booking:salon:{salon-123}`. The braces are literal: all keys of a tag
share one hash slot of a cluster. Its version record and its entries are keys that begin with its name. Callers' text is
quoted, so that no two replies share a key and no entry can replace a version record.

A sub-tag is a tag within a tag: `query:booking:salon:{salon-123}:code:B1`. A write to a sub-tag also invalidates its
parent; a write to the parent leaves its sub-tags alone.
"""

from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple

PREFIX = "query:"
VERSION_SUFFIX = "#meta"  # of the keys of version records; releases up to 0.3 use the same keys
NOTHING = "%"  # empty braces would not count as a hash tag
_QUOTED = str.maketrans({"%": "%25", ":": "%3A", "{": "%7B", "}": "%7D", "#": "%23"})


@dataclass(frozen=True, eq=False, slots=True)
class Namespace:
    """A kind of cached reply.

    Its keys begin with `prefix`; an entry lives for `ttl` s at most, for `long_ttl` with REDIS_TTL_PROFILE=long. A hit
    on an entry older than the share `refresh` of its TTL loads it again behind the reply; 1 is never. Entries of `near`
    namespaces are also kept in the process (near.py).
    """

    name: str
    prefix: str
    ttl: int
    refresh: float = 1.0
    near: bool = False
    long_ttl: int = 0

    @classmethod
    def of(
        cls, name: str, ttl: int, *, key: str = "", refresh: float = 1.0, near: bool = False, long_ttl: int = 0
    ) -> "Namespace":
        """Return a namespace whose keys begin with `query:NAME:`; `key` replaces the name there."""
        return cls(name, f"{PREFIX}{quoted(key or name)}:", ttl, refresh, near, long_ttl or ttl)

    @lru_cache(4096)  # noqa: B019 - namespaces are few, and live as long as the process
    def tag(self, identifier: str, middle: str = "") -> "Tag":
        """Return a tag: `booking.tag("s1", "salon:")` is `query:booking:salon:{s1}`."""
        name = f"{self.prefix}{middle}{{{quoted(identifier) or NOTHING}}}"
        return Tag(self, name, name + VERSION_SUFFIX)


class Tag(NamedTuple):
    """What one write invalidates together, and the key of its version record."""

    namespace: Namespace
    name: str
    version_key: str

    def sub_tag(self, kind: str, identifier: str) -> "Tag":
        """Return a tag within this one, such as everything cached about one booking."""
        name = f"{self.name}:{quoted(kind)}:{quoted(identifier)}"
        return Tag(self.namespace, name, name + VERSION_SUFFIX)

    def key(self, *parts: object) -> "Key":
        """Return the key of an entry. `parts` contain everything that the reply depends on: limit, filters, page."""
        return Key(self, ":".join([self.name, *[quoted(str(part)) for part in parts]]) if parts else self.name)


class Key(NamedTuple):
    """Names one cached reply."""

    tag: Tag
    entry: str


def quoted(text: str) -> str:
    """Return a text without the characters that structure a key."""
    return text if text.isalnum() else text.translate(_QUOTED)


def parent_key(name: str) -> str:
    """Return the version key of a tag's parent; of a tag without a parent, its own. `name` may be a version key."""
    return name[: name.index("}") + 1] + VERSION_SUFFIX


def digest(*values: object) -> str:
    """Return a short name for what varies a reply, such as filters and a page."""
    return blake2b(repr(values).encode(), digest_size=12).hexdigest()
