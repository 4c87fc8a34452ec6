"""The memory that the processes of a run share: versions acknowledged and seen, and counters.

Everything that is written is an item with a version, a number that only grows: a booking's revision, a salon's name,
how many bookings were moved, how many services were deleted. A process writes to its own row only, so there are no
locks and no lost updates.
"""

import mmap
from collections.abc import Iterable
from itertools import product
from pathlib import Path

WRITERS, READERS = 2, 2
PROCESSES = WRITERS + READERS
SALONS, CUSTOMERS, SLOTS = 6, 4, 64  # customers of a salon, bookings of a customer
PERIODS = 5
KEPT_TIMES = 64  # acknowledgments of an item whose time is kept
# Of each a salon has a line: numbered from 1, created at the end, deleted at the beginning; at least one exists.
LINES = ("services", "resources", "time off")

ITEMS: tuple[tuple[str | int, ...], ...] = (
    *product(["name", "service", "status changes"], range(SALONS)),
    *product([f"{line} {what}" for line in LINES for what in ("created", "deleted")], range(SALONS)),
    *product(["bookings moved"], range(SALONS), range(PERIODS + 1)),  # at least so many times
    *product(
        ["message", "sent", "assignee", "opt-out", "user IDs", "resource", "notes"], range(SALONS), range(CUSTOMERS)
    ),
    *product(["booking"], range(SALONS), range(CUSTOMERS), range(SLOTS)),
)
INDEX = {item: index for index, item in enumerate(ITEMS)}

SERVICES = {
    "booking": (
        *("GetSalon", "GetSalonByPhoneNumberId", "BatchGetBookings"),
        *("GetBookingByCode", "ListBookings", "ListBookingEvents"),
        *("GetService", "ListServices", "ListResources", "ListTimeOff"),
    ),
    "stats": ("GetSalonStats", "ListBookingStats"),
    "messaging": (
        *("GetConversation", "ListConversations", "ListMessages", "SearchMessages"),
        *("GetCustomer", "ListCustomers"),
    ),
}
RPCS = [rpc for rpcs in SERVICES.values() for rpc in rpcs]
SOURCES = ("near", "hit", "miss", "bypass")
# `reads` are cached replies: a batch has one for each key. `split` replies are older than what another reader was shown
# of a write that was not acknowledged yet.
COUNTS = ("rpcs", "reads", *SOURCES, "failed", "split", "stale")
TOTALS = ("ready", "acknowledged", "retried", "unexpected")
_COUNTERS = {name: place for place, name in enumerate([*product(RPCS, COUNTS), *TOTALS], len(ITEMS))}
_OLDEST = len(ITEMS) + len(_COUNTERS)
_ROW = _OLDEST + 1
_CODES = 1 + PROCESSES * _ROW
_TIMES = _CODES + len(ITEMS)
_END = _TIMES + len(ITEMS) * KEPT_TIMES


def line_items(line: str, salon: int) -> tuple[int, int]:
    """Return the items of a line: how many were created, how many deleted."""
    return INDEX[f"{line} created", salon], INDEX[f"{line} deleted", salon]


class State:
    """The shared memory, as one process sees it. Items are named by their index in ITEMS."""

    def __init__(self, file: Path, process: int = 0) -> None:
        """Map the file; an empty one becomes zeros."""
        with file.open("a+b") as opened:
            opened.truncate(8 * _END)
            words = memoryview(mmap.mmap(opened.fileno(), 0)).cast("q")
        self._ending, self._codes, self._times = words[:1], words[_CODES:_TIMES], words[_TIMES:]
        self._rows = [words[1 + number * _ROW :][:_ROW] for number in range(PROCESSES)]
        self._row = self._rows[process]

    @property
    def ending(self) -> bool:
        """Whether the run is over."""
        return bool(self._ending[0])

    def end(self) -> None:
        """End the run."""
        self._ending[0] = 1

    def acknowledge(self, item: int, now_ns: int) -> None:
        """Note that a write was acknowledged that raised an item's version by one."""
        version = self._row[item] + 1
        self._times[item * KEPT_TIMES + version % KEPT_TIMES] = now_ns
        self._row[item] = version

    def see(self, item: int, version: int) -> None:
        """Note that a read has shown a version."""
        self._row[item] = max(self._row[item], version)

    def acknowledged(self, item: int) -> int:
        """Return the version that was acknowledged last."""
        return max(row[item] for row in self._rows[:WRITERS])

    def known(self, item: int) -> int:
        """Return the largest version acknowledged or seen."""
        return max(row[item] for row in self._rows)

    def age_ns(self, item: int, version: int, now_ns: int) -> int:
        """Return how long ago a newer version was acknowledged, at least; 0 if none was."""
        last = self.acknowledged(item)
        if version >= last:
            return 0
        return max(0, now_ns - self._times[item * KEPT_TIMES + max(version + 1, last - KEPT_TIMES + 1) % KEPT_TIMES])

    def set_code(self, item: int, code: str) -> None:
        """Note a booking's code."""
        self._codes[item] = int.from_bytes(code.encode())

    def code(self, item: int) -> str:
        """Return a booking's code, "" if it has none yet."""
        return self._codes[item].to_bytes(8).lstrip(b"\0").decode()

    def ends(self, line: str, salon: int) -> tuple[int, int]:
        """Return the numbers of the first and the last of a line, as acknowledged."""
        created, deleted = line_items(line, salon)
        return self.acknowledged(deleted) + 1, self.acknowledged(created)

    def bookings(self, salon: int, customers: Iterable[int]) -> list[int]:
        """Return the bookings of customers that have a code."""
        items = [INDEX["booking", salon, customer, slot] for customer in customers for slot in range(SLOTS)]
        return [item for item in items if self._codes[item]]

    def count(self, name: str | tuple[str, str], more: int = 1) -> None:
        """Add to a counter: one of TOTALS, or an RPC and one of COUNTS."""
        self._row[_COUNTERS[name]] += more

    def total(self, name: str | tuple[str, str]) -> int:
        """Return a counter of all processes; one of COUNTS without an RPC is that of all RPCs."""
        names = [(rpc, name) for rpc in RPCS] if name in COUNTS else [name]
        return sum(row[_COUNTERS[each]] for row in self._rows for each in names)

    def note_age(self, age_ns: int) -> None:
        """Note the age of a version that a reply showed."""
        self._row[_OLDEST] = max(self._row[_OLDEST], age_ns)

    @property
    def oldest_ms(self) -> float:
        """The age of the oldest version that a reply showed, in ms."""
        return max(row[_OLDEST] for row in self._rows) / 1e6
