"""Namespaces, tags and keys.

A tag is what a write invalidates together: `query:booking:salon:{salon-123}`, literal braces included, so that its
keys share one hash slot of a cluster. Its meta and its entries are keys that begin with its name. What the caller gives
is quoted, so that whatever it holds, no two replies share a key, no entry can take the place of a meta, and the first
braces of a key are the tag's.

A part is a finer tag of the same slot, `query:booking:salon:{salon-123}:code:B1`: its whole's writes leave it alone,
its own invalidate the whole, too.
"""

from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple

PREFIX = "query:"
META = "#meta"
NOTHING = "%"  # empty braces would not be seen as a hash tag
_QUOTED = str.maketrans({"%": "%25", ":": "%3A", "{": "%7B", "}": "%7D", "#": "%23"})


@dataclass(frozen=True, eq=False, slots=True)
class Namespace:
    """A kind of cached reply: its name, the first part of its keys, how long an entry lives at most, in s.

    A hit on an entry that is older than the share `refresh` of that loads it again behind the reply; 1 is never. Of
    `near` ones each process keeps what it has just seen (see libs/cache/near.py).
    """

    name: str
    prefix: str
    ttl: int
    refresh: float = 1.0
    near: bool = False

    @lru_cache(4096)  # noqa: B019 - namespaces are few, and live as long as the process
    def tag(self, identifier: str, middle: str = "") -> "Tag":
        """Return a tag: `booking.tag("s1", "salon:")` is `query:booking:salon:{s1}`."""
        return Tag(self, f"{self.prefix}{middle}{{{quoted(identifier) or NOTHING}}}")


class Tag(NamedTuple):
    """What one write invalidates together."""

    namespace: Namespace
    name: str

    @property
    def meta(self) -> str:
        """The key that holds the tag's generation."""
        return self.name + META

    def sub_tag(self, kind: str, identifier: str) -> "Tag":
        """Return a part of this tag, such as all that is kept of one booking."""
        return Tag(self.namespace, self.key(kind, identifier).entry)

    def key(self, *parts: object) -> "Key":
        """Return the key of an entry. What varies the reply (a limit, a filter, a page) must be in `parts`."""
        return Key(self, ":".join([self.name, *[quoted(str(part)) for part in parts]]) if parts else self.name)


class Key(NamedTuple):
    """Names one cached reply."""

    tag: Tag
    entry: str


def quoted(text: str) -> str:
    """Return a text without the characters that structure a key."""
    return text if text.isalnum() else text.translate(_QUOTED)


def whole(name: str) -> str:
    """Return the meta of the tag that a tag, named by its name or its meta, is a part of; its own if of none."""
    return name[: name.index("}") + 1] + META


def digest(*values: object) -> str:
    """Return a short name for what varies a reply, such as filters and page."""
    return blake2b(repr(values).encode(), digest_size=12).hexdigest()
