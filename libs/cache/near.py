"""The near cache: replies kept in this process, for the namespaces that opt in.

The server pushes the names of tags that change, but a push may be late or lost. So an entry also expires `lease` s
after the command that read it was sent: its version was current then, and no reply is further behind an acknowledged
write than that, even if the connection or this process fails.
"""

from dataclasses import dataclass, field
from operator import attrgetter

from cachetools import LRUCache

from libs.cache.codec import Entry
from libs.cache.keys import Key
from libs.cache.lease import now

OVERHEAD_BYTES = 500  # of an entry, besides its body: keys, numbers, dicts


@dataclass(slots=True)
class _TagEntries:
    """The entries of one tag, each with its expiry, and their size."""

    entries: dict[str, tuple[Entry, float]] = field(default_factory=dict)
    bytes: int = 0


class Near:
    """Entries by tag, least recently used out first, up to a number of bytes."""

    def __init__(self, lease: float, max_bytes: int) -> None:
        """Keep entries for `lease` s."""
        self.lease = lease
        self.drops = 0
        self._tags: LRUCache[str, _TagEntries] = LRUCache(max_bytes, attrgetter("bytes"))

    @property
    def bytes(self) -> int:
        """Size of what is kept."""
        return int(self._tags.currsize)

    def get(self, key: Key) -> Entry | None:
        """Return an entry that has not expired."""
        kept = self._tags.get(key.tag.name)
        if kept is None or (found := kept.entries.get(key.entry)) is None:
            return None
        entry, expires = found
        return entry if now() < expires else None

    def put(self, key: Key, entry: Entry, sent: float) -> None:
        """Keep an entry that was read by a command `sent` at that time."""
        name = key.tag.name
        kept = self._tags.pop(name, None) or _TagEntries()
        if (old := kept.entries.get(key.entry)) is not None:
            kept.bytes -= _size(old[0])
        kept.entries[key.entry] = entry, sent + self.lease
        kept.bytes += _size(entry)
        if kept.bytes <= self._tags.maxsize:
            self._tags[name] = kept

    def drop(self, tag: str) -> None:
        """Drop the entries of a tag, by its name."""
        if self._tags.pop(tag, None) is not None:
            self.drops += 1

    def clear(self) -> None:
        """Drop everything."""
        self.drops += len(self._tags)
        self._tags.clear()


def _size(entry: Entry) -> int:
    return len(entry.body or b"") + OVERHEAD_BYTES
