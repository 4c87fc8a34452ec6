"""Namespaces, groups and keys.

A group is what a write invalidates together: `query:booking:salon:{salon-123}`, literal braces included, so that its
keys share one hash slot of a cluster. Its meta and its entries are keys that begin with its name. What the caller gives
is quoted, so that whatever it holds, no two replies share a key and no entry can take the place of a meta.

A part is a finer group of the same slot, `query:booking:salon:{salon-123}:code:B1`: its whole's writes leave it alone,
its own invalidate the whole, too.
"""

from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple

PREFIX = "query:"
META = "#meta"
_QUOTED = str.maketrans({"%": "%25", ":": "%3A", "{": "%7B", "}": "%7D", "#": "%23"})


@dataclass(frozen=True, eq=False, slots=True)
class Namespace:
    """A kind of cached reply: its name, the first part of its keys, and how long an entry lives at most, in s."""

    name: str
    prefix: str
    ttl: int

    def group(self, identifier: str, middle: str = "") -> "Group":
        """Return a group: `booking.group("s1", "salon:")` is `query:booking:salon:{s1}`."""
        return Group(self, f"{self.prefix}{middle}{{{identifier.translate(_QUOTED)}}}")


class Group(NamedTuple):
    """What one write invalidates together."""

    namespace: Namespace
    name: str

    @property
    def meta(self) -> str:
        """The key that holds the group's generation."""
        return self.name + META

    def part(self, kind: str, identifier: str) -> "Group":
        """Return a part of this group, such as all that is kept of one booking."""
        return Group(self.namespace, self.key(kind, identifier).entry)

    def key(self, *parts: object) -> "Key":
        """Return the key of an entry. What varies the reply (a limit, a filter, a page) must be in `parts`."""
        return Key(self, ":".join((self.name, *(str(part).translate(_QUOTED) for part in parts))))


class Key(NamedTuple):
    """Names one cached reply."""

    group: Group
    entry: str


def whole(name: str) -> str:
    """Return the meta of the group that a group, named by its name or its meta, is a part of; its own if of none."""
    return name[: name.index("}") + 1] + META


def digest(*values: object) -> str:
    """Return a short name for what varies a reply, such as filters and page."""
    return blake2b(repr(values).encode(), digest_size=12).hexdigest()
