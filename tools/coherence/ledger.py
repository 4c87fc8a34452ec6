"""What was acknowledged and what was seen, in memory that all writers, readers and their parent share.

A fact is a number that only grows: a booking's revision, a salon's name, how many bookings a period has. Each process
notes in a row of its own what it knows of every fact, so that no two ever write to the same word. A read looks at the
rows before it is sent: what it then shows may be no less.
"""

import mmap
from collections.abc import Sequence
from pathlib import Path

WRITERS, READERS = 2, 2
PROCESSES = WRITERS + READERS
SALONS, CUSTOMERS, SLOTS = 6, 4, 64  # customers of a salon, each with a conversation; bookings of a customer
PERIODS = 5
RPCS = (
    "GetSalon",
    "GetSalonByPhoneNumberId",
    "GetBookingByCode",
    "BatchGetBookings",
    "ListBookings",
    "ListBookingEvents",
    "GetSalonStats",
    "ListBookingStats",
    "GetConversation",
    "ListMessages",
)
SOURCES = ("near", "hit", "miss", "bypass")
# What a process counts of each RPC. `reads` are cached replies: a batch has as many as keys. `split` ones are behind
# what another reader had been shown of a write under way. `oldest` is the largest age of what a reply still showed, ns.
COUNTS = ("rpcs", "reads", *SOURCES, "failed", "split", "stale", "oldest")
# What a process counts of itself.
TOTALS = ("ready", "acknowledged", "retried", "unexpected")
KEPT = 64  # acknowledgements of a fact whose time is remembered

_OF_SALON = 2 + PERIODS + CUSTOMERS * (1 + SLOTS)
FACTS = SALONS * _OF_SALON
_ROW = FACTS + len(RPCS) * len(COUNTS) + len(TOTALS)
_SIZE = 1 + PROCESSES * _ROW + FACTS * (KEPT + 1)


def name(salon: int) -> int:
    """Return the fact of a salon's name, which is a number."""
    return salon * _OF_SALON


def progress(salon: int) -> int:
    """Return the fact of how many steps the status of a salon's bookings has made in all."""
    return name(salon) + 1


def moved(salon: int, period: int) -> int:
    """Return the fact of how many bookings of a salon were rescheduled at least so many times."""
    return name(salon) + 2 + period


def messages(salon: int, customer: int) -> int:
    """Return the fact of a customer's newest message."""
    return moved(salon, PERIODS) + customer


def booking(salon: int, customer: int, slot: int) -> int:
    """Return the fact of a booking's revision; 0 before it is made."""
    return messages(salon, CUSTOMERS) + customer * SLOTS + slot


def bookings(salon: int, *customers: int) -> list[int]:
    """Return the facts of all bookings of customers of a salon."""
    return [booking(salon, customer, slot) for customer in customers for slot in range(SLOTS)]


def describe(fact: int) -> str:
    """Return what a fact is, for people."""
    salon, place = divmod(fact, _OF_SALON)
    if place >= booking(0, 0, 0):
        what = "revision of booking {} of customer {}".format(*reversed(divmod(place - booking(0, 0, 0), SLOTS)))
    elif place >= messages(0, 0):
        what = f"newest message of customer {place - messages(0, 0)}"
    elif place >= moved(0, 0):
        what = f"bookings moved at least {place - moved(0, 0)} times"
    else:
        what = "name" if place == name(0) else "steps of all statuses"
    return f"{what} of salon-{salon}"


class Ledger:
    """The memory, as one process sees it: it may write to its own row only, and a writer to its own facts."""

    def __init__(self, file: Path, process: int = 0) -> None:
        """Map the file, which is made of zeros if it is empty."""
        with file.open("a+b") as opened:
            opened.truncate(8 * _SIZE)
            words = memoryview(mmap.mmap(opened.fileno(), 0)).cast("q")
        self._ending = words[:1]
        rows = [words[1 + number * _ROW :][:_ROW] for number in range(PROCESSES)]
        rest = words[1 + PROCESSES * _ROW :]
        self._known = [row[:FACTS] for row in rows]
        self._counts = [row[FACTS:] for row in rows]
        self._codes, self._times = rest[:FACTS], rest[FACTS:]
        self._process = process

    @property
    def ending(self) -> bool:
        """Whether all shall end."""
        return bool(self._ending[0])

    def end(self) -> None:
        """Tell all to end."""
        self._ending[0] = 1

    # Facts

    def acknowledge(self, fact: int, value: int, now_ns: int) -> None:
        """Note that a write was acknowledged; each value of a fact is, one after another."""
        self._times[fact * KEPT + value % KEPT] = now_ns
        self._known[self._process][fact] = value

    def see(self, fact: int, value: int) -> None:
        """Note that a read has shown a value."""
        known = self._known[self._process]
        if known[fact] < value:
            known[fact] = value

    def acknowledged(self, fact: int) -> int:
        """Return the value acknowledged last."""
        return max(row[fact] for row in self._known[:WRITERS])

    def known(self, fact: int) -> int:
        """Return the largest value acknowledged or seen."""
        return max(row[fact] for row in self._known)

    def behind_ns(self, fact: int, value: int, now_ns: int) -> int:
        """Return for how long more than `value` had been acknowledged; at least so long if it is far off."""
        last = self.acknowledged(fact)
        if value >= last:
            return 0
        return max(0, now_ns - self._times[fact * KEPT + max(value + 1, last - KEPT + 1) % KEPT])

    def name_booking(self, fact: int, code: str) -> None:
        """Note a booking's code."""
        self._codes[fact] = int.from_bytes(code.encode())

    def code(self, fact: int) -> str:
        """Return a booking's code, "" if it has none yet."""
        return self._codes[fact].to_bytes(8).lstrip(b"\0").decode()

    def coded(self, facts: Sequence[int]) -> list[int]:
        """Return the facts of the bookings that have a code."""
        return [fact for fact in facts if self._codes[fact]]

    # Counts

    def count(self, rpc: str, what: str, more: int = 1) -> None:
        """Count something of an RPC."""
        self._counts[self._process][_place(rpc, what)] += more

    def note_oldest(self, rpc: str, age_ns: int) -> None:
        """Note the age of what an RPC still showed."""
        counts, place = self._counts[self._process], _place(rpc, "oldest")
        counts[place] = max(counts[place], age_ns)

    def count_total(self, what: str) -> None:
        """Count something of this process."""
        self._counts[self._process][_total(what)] += 1

    def counted(self, rpc: str, what: str) -> int:
        """Return a count of all processes; of `oldest` the largest."""
        each = [counts[_place(rpc, what)] for counts in self._counts]
        return max(each) if what == "oldest" else sum(each)

    def total(self, what: str) -> int:
        """Return a total of all processes, or what is counted of all RPCs."""
        if what in COUNTS:
            return sum(self.counted(rpc, what) for rpc in RPCS)
        return sum(counts[_total(what)] for counts in self._counts)


def _place(rpc: str, what: str) -> int:
    return RPCS.index(rpc) * len(COUNTS) + COUNTS.index(what)


def _total(what: str) -> int:
    return len(RPCS) * len(COUNTS) + TOTALS.index(what)
