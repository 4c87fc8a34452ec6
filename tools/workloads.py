"""Two traces over the sample data, described in docs/workloads.md, and the hit rate of a perfect cache."""

import bisect
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, NamedTuple, TypeVar

import psycopg
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from libs.cache.keys import VERSION_SUFFIX, parent_key
from parlor.booking.v1 import booking_pb2 as booking
from parlor.messaging.v1 import messaging_pb2 as messaging
from parlor.stats.v1 import stats_pb2 as stats
from services.cache_tags import CacheTags, conversation_tag

T = TypeVar("T")
NOW = 1_737_158_400  # 2025-01-18: end of the messages in the sample data
DAY = 86_400
IN_FLIGHT = 4  # calls of a workload at a time
TOMORROW = int(time.time()) // DAY * DAY + 2 * DAY  # at least a day ahead; no bookings after this time


class Customer(NamedTuple):
    """A customer of a salon."""

    conversation_id: str
    phone_number: str


@dataclass
class Salon:
    """A salon, its data ordered by popularity, and its share of the calls."""

    salon_id: str
    phone_number_id: str
    share: int
    codes: list[str]
    open_codes: list[str]
    customers: list[Customer]
    starts: dict[str, int]  # of the open bookings by their code, in s; a RescheduleBooking changes them


class Step(NamedTuple):
    """A call. A read depends on its one tag; a write invalidates its tags. Tags are named by their version keys."""

    service: str
    method: str
    request: Message
    tags: frozenset[str]
    writes: bool

    @property
    def path(self) -> str:
        """The method as gRPC names it."""
        return f"/parlor.{self.service}.v1.{self.service.capitalize()}Service/{self.method}"

    @property
    def key(self) -> tuple[str, bytes]:
        """The key of the cached reply."""
        return self.method, self.request.SerializeToString(deterministic=True)


@dataclass(frozen=True)
class Workload:
    """A mix of methods, reads and writes. `warm`: each read is made once first."""

    name: str
    reads: dict[str, int]
    writes: dict[str, int]
    mix: tuple[int, int]
    calls: int
    warm: bool


# The reference mix; docs/workloads.md has the source of its numbers.
PREDECESSOR = Workload(
    "the predecessor's mix",
    reads={
        **{"GetSalonByPhoneNumberId": 50, "GetConversation": 50},
        **{"ListMessages": 10, "GetBookingByCode": 10, "ListBookings": 10, "GetSalonStats": 2, "GetAiAnalytics": 2},
    },
    writes={"RecordMessage": 50, "RecordAiMessage": 20, "CreateBooking": 10, "RescheduleBooking": 10},
    mix=(9787, 234),
    calls=10_021,
    warm=True,
)
ZIPF = Workload(
    "Zipf, 5% writes",
    reads={
        **{"GetSalon": 1, "GetBookingByCode": 3, "ListBookingEvents": 1, "ListBookings": 1, "GetConversation": 3},
        **{"ListMessages": 2, "ListAiMessages": 1, "ListConversations": 1, "GetSalonStats": 1},
    },
    writes={
        **{"RecordMessage": 4, "RecordAiMessage": 1, "AssignConversation": 1},
        **{"CreateBooking": 1, "RescheduleBooking": 1},
    },
    mix=(95, 5),
    calls=15_000,
    warm=False,
)


def salons(database_url: str) -> list[Salon]:
    """Read the sample data. Each list is shuffled; its order is the popularity."""
    query = """
        SELECT salon_id, phone_number_id,
            (SELECT count(*)::int FROM bookings AS b WHERE b.salon_id = s.salon_id),
            ARRAY(SELECT booking_code FROM bookings AS b WHERE b.salon_id = s.salon_id ORDER BY 1),
            ARRAY(SELECT booking_code FROM bookings AS b
                  WHERE b.salon_id = s.salon_id AND status IN ('PENDING', 'CONFIRMED') ORDER BY 1),
            ARRAY(SELECT conversation_id || ' ' || phone_number FROM conversations AS c
                  WHERE c.salon_id = s.salon_id ORDER BY 1),
            (SELECT jsonb_object_agg(booking_code, floor(extract(epoch FROM start_ts))::bigint) FROM bookings AS b
             WHERE b.salon_id = s.salon_id AND status IN ('PENDING', 'CONFIRMED'))
        FROM salons AS s ORDER BY 3 DESC, 1"""
    shuffled = Random("popularity")  # noqa: S311 - the same each time

    def mixed(values: list[T]) -> list[T]:
        return shuffled.sample(values, len(values))

    with psycopg.connect(database_url) as conn:
        rows = conn.execute(query).fetchall()
    return [
        Salon(
            salon_id,
            number_id,
            share,
            mixed(codes),
            mixed(open_codes),
            mixed([Customer(*one.split()) for one in names]),
            starts or {},
        )
        for salon_id, number_id, share, codes, open_codes, names, starts in rows
    ]


class Trace:
    """Makes the calls of a workload, the same each time."""

    def __init__(
        self, workload: Workload, salons: Sequence[Salon], tags: CacheTags, *, ignore_rules: bool = False
    ) -> None:
        """`tags` are those of the services. With `ignore_rules`, bookings may be outside of a salon's opening hours."""
        self.workload, self.salons, self.tags = workload, salons, tags
        self._ignore_rules = ignore_rules
        self.random = Random(workload.name)  # noqa: S311 - the same each time
        self._numbers = itertools.count()
        self._sums = list(itertools.accumulate(1 / rank for rank in range(1, 10_000)))

    def steps(self) -> Iterator[Step]:
        """Yield the calls."""
        workload = self.workload
        for _ in range(workload.calls):
            [writes] = self.random.choices((False, True), workload.mix)
            weights = workload.writes if writes else workload.reads
            [method] = self.random.choices(list(weights), list(weights.values()))
            [salon] = self.random.choices(self.salons, [salon.share for salon in self.salons])
            make: Callable[[Salon], tuple[str, Message, Any]] = getattr(self, f"_{method}")
            service, request, tags = make(salon)
            keys = frozenset(name for tag in tags for name in (tag.version_key, parent_key(tag.name))[: 1 + writes])
            yield Step(service, method, request, keys, writes)

    def popular(self, values: Sequence[T]) -> T:
        """Return one of the values by Zipf's law, the first most often."""
        last = len(values) - 1
        return values[bisect.bisect(self._sums, self.random.random() * self._sums[last], hi=last)]

    def _GetSalon(self, salon: Salon) -> Any:
        return "booking", booking.GetSalonRequest(salon_id=salon.salon_id), [self.tags.salon(salon.salon_id)]

    def _GetSalonByPhoneNumberId(self, salon: Salon) -> Any:
        request = booking.GetSalonByPhoneNumberIdRequest(phone_number_id=salon.phone_number_id)
        return "booking", request, [self.tags.phone_number_id(salon.phone_number_id)]

    def _GetBookingByCode(self, salon: Salon) -> Any:
        code = self.popular(salon.codes)
        request = booking.GetBookingByCodeRequest(salon_id=salon.salon_id, booking_code=code)
        return "booking", request, [self.tags.booking(salon.salon_id, code)]

    def _ListBookingEvents(self, salon: Salon) -> Any:
        code = self.popular(salon.codes)
        request = booking.ListBookingEventsRequest(salon_id=salon.salon_id, booking_code=code)
        return "booking", request, [self.tags.booking(salon.salon_id, code)]

    def _ListBookings(self, salon: Salon) -> Any:
        """One of the first days of the calendar, all bookings or only confirmed ones."""
        day = NOW + DAY * self.popular(range(7))
        days: dict[str, Any] = {"start_time": Timestamp(seconds=day), "end_time": Timestamp(seconds=day + DAY)}
        status = self.popular((booking.BOOKING_STATUS_UNSPECIFIED, booking.BOOKING_STATUS_CONFIRMED))
        request = booking.ListBookingsRequest(salon_id=salon.salon_id, status=status, **days)
        return "booking", request, [self.tags.bookings_between(salon.salon_id, day, day + DAY)]

    def _GetSalonStats(self, salon: Salon) -> Any:
        request = stats.GetSalonStatsRequest(salon_id=salon.salon_id, **self._period())
        return "stats", request, [self.tags.stats(salon.salon_id)]

    def _GetAiAnalytics(self, salon: Salon) -> Any:
        request = stats.GetAiAnalyticsRequest(salon_id=salon.salon_id, **self._period())
        return "stats", request, [self.tags.ai(salon.salon_id)]

    def _period(self) -> dict[str, Any]:
        """Return the last 30, 7 or 90 days."""
        days = self.popular((30, 7, 90))
        return {"start_time": Timestamp(seconds=NOW - days * DAY), "end_time": Timestamp(seconds=NOW)}

    def _ListMessages(self, salon: Salon) -> Any:
        """Messages of a customer; in one of four calls those of the salon."""
        messages = self.tags.messages(salon.salon_id)
        if self.random.random() < 0.25:
            return "messaging", messaging.ListMessagesRequest(salon_id=salon.salon_id), [messages]
        found = self.popular(salon.customers).conversation_id
        request = messaging.ListMessagesRequest(salon_id=salon.salon_id, conversation_id=found)
        return "messaging", request, [conversation_tag(messages, found)]

    def _GetConversation(self, salon: Salon) -> Any:
        phone = self.popular(salon.customers).phone_number
        request = messaging.GetConversationRequest(salon_id=salon.salon_id, phone_number=phone)
        return "messaging", request, [conversation_tag(self.tags.conversations(salon.salon_id), "", phone)]

    def _ListAiMessages(self, salon: Salon) -> Any:
        found = self.popular(salon.customers).conversation_id
        request = messaging.ListAiMessagesRequest(salon_id=salon.salon_id, conversation_id=found)
        return "messaging", request, [self.tags.ai_messages(salon.salon_id, found)]

    def _ListConversations(self, salon: Salon) -> Any:
        request = messaging.ListConversationsRequest(salon_id=salon.salon_id)
        return "messaging", request, [self.tags.conversations(salon.salon_id)]

    def _RecordMessage(self, salon: Salon) -> Any:
        customer = self.popular(salon.customers)
        request = messaging.RecordMessageRequest(
            salon_id=salon.salon_id,
            phone_number=customer.phone_number,
            whatsapp_id=f"wamid.workload.{next(self._numbers)}",
            direction=messaging.MESSAGE_DIRECTION_INBOUND,
            content="hi",
        )
        names = customer.conversation_id, customer.phone_number
        return "messaging", request, self.tags.of_conversations(salon.salon_id, names)

    def _RecordAiMessage(self, salon: Salon) -> Any:
        found = self.popular(salon.customers).conversation_id
        request = messaging.RecordAiMessageRequest(
            salon_id=salon.salon_id, conversation_id=found, model="m", role=messaging.AI_ROLE_ASSISTANT, content="hello"
        )
        return "messaging", request, [self.tags.ai_messages(salon.salon_id, found)]

    def _AssignConversation(self, salon: Salon) -> Any:
        customer = self.popular(salon.customers)
        request = messaging.AssignConversationRequest(
            salon_id=salon.salon_id, phone_number=customer.phone_number, assignee=f"user-{next(self._numbers) % 3}"
        )
        tag = self.tags.conversations(salon.salon_id)
        sub_tags = [conversation_tag(tag, customer.conversation_id), conversation_tag(tag, "", customer.phone_number)]
        return "messaging", request, [tag, *sub_tags]

    def _CreateBooking(self, salon: Salon) -> Any:
        phone, hour = self.popular(salon.customers).phone_number, self.hour()
        request = booking.CreateBookingRequest(
            salon_id=salon.salon_id, customer_phone=phone, ignore_rules=self._ignore_rules, **hour
        )
        return "booking", request, self.tags.of_bookings(salon.salon_id, ("NEW", hour["start_time"].seconds))

    def _RescheduleBooking(self, salon: Salon) -> Any:
        code, hour = self.popular(salon.open_codes), self.hour()
        request = booking.RescheduleBookingRequest(
            salon_id=salon.salon_id, booking_code=code, ignore_rules=self._ignore_rules, **hour
        )
        before, salon.starts[code] = salon.starts[code], hour["start_time"].seconds
        tags = self.tags.of_bookings(salon.salon_id, (code, before), (code, salon.starts[code]))
        return "booking", request, tags

    def hour(self) -> dict[str, Any]:
        """Return a free hour, as fields of a booking."""
        start = TOMORROW + next(self._numbers) * 3600
        return {"start_time": Timestamp(seconds=start), "end_time": Timestamp(seconds=start + 3600)}


def warm_up(steps: Sequence[Step]) -> list[Step]:
    """Return each different read once."""
    return list({step.key: step for step in steps if not step.writes}.values())


def ceiling(before: Sequence[Step], steps: Sequence[Step], *, parts: bool = True) -> float:
    """Return the hit rate of the steps in a cache that stores each miss at once and without TTLs.

    Without `parts`, sub-tags count as their tags.
    """
    kept: dict[str, set[tuple[str, bytes]]] = {}
    hits = reads = 0
    for number, step in enumerate((*before, *steps), -len(before)):
        tags = step.tags if parts else {parent_key(key.removesuffix(VERSION_SUFFIX)) for key in step.tags}
        if step.writes:
            for tag in tags:
                kept.pop(tag, None)
            continue
        [tag] = tags
        entries = kept.setdefault(tag, set())
        reads += number >= 0
        hits += number >= 0 and step.key in entries
        entries.add(step.key)
    return hits / reads
