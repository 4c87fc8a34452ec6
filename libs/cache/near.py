"""Replies kept in this process, for the namespaces that opt in.

The server says when a tag changes; but what it says may be late or lost. So a reply also counts only for a lease,
from when the look that found it was sent: its generation was in force then, so no reply is further behind an
acknowledged write than the lease, whatever happens to the connection or to this process.
"""

from dataclasses import dataclass, field
from operator import attrgetter

from cachetools import LRUCache

from libs.cache.codec import Entry
from libs.cache.keys import Key
from libs.cache.lease import now

OVERHEAD_BYTES = 500  # of an entry, besides its body: keys, numbers, dicts


@dataclass(slots=True)
class _Kept:
    """What is kept of a tag: each entry, and until when it counts."""

    entries: dict[str, tuple[Entry, float]] = field(default_factory=dict)
    bytes: int = 0


class Near:
    """The tags used last, up to a number of bytes."""

    def __init__(self, lease: float, max_bytes: int) -> None:
        """Keep replies for `lease` s."""
        self.lease = lease
        self.drops = 0
        self._groups: LRUCache[str, _Kept] = LRUCache(max_bytes, attrgetter("bytes"))

    @property
    def bytes(self) -> int:
        """How many bytes are kept."""
        return int(self._groups.currsize)

    def get(self, key: Key) -> Entry | None:
        """Return an entry whose lease has not ended."""
        kept = self._groups.get(key.tag.name)
        if kept is None or (found := kept.entries.get(key.entry)) is None:
            return None
        entry, until = found
        return entry if now() < until else None

    def put(self, key: Key, entry: Entry, sent: float) -> None:
        """Keep an entry that a look `sent` at that time has found."""
        name = key.tag.name
        kept = self._groups.pop(name, None) or _Kept()
        if (old := kept.entries.get(key.entry)) is not None:
            kept.bytes -= _size(old[0])
        kept.entries[key.entry] = entry, sent + self.lease
        kept.bytes += _size(entry)
        if kept.bytes <= self._groups.maxsize:
            self._groups[name] = kept

    def drop(self, tag: str) -> None:
        """Drop a tag, by its name."""
        if self._groups.pop(tag, None) is not None:
            self.drops += 1

    def clear(self) -> None:
        """Drop everything."""
        self.drops += len(self._groups)
        self._groups.clear()


def _size(entry: Entry) -> int:
    return len(entry.body or b"") + OVERHEAD_BYTES
