"""The rows of the sample data, the same every time.

At scale 1: 10,000 bookings with their history, 50,000 messages, 1,000 conversations and 20,000 AI messages of 20
salons, the biggest of which, `salon-123`, has about a third. Each salon has opening hours, booking rules, services, and
resources with a week of time off. Times are around 2025-01-18.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import accumulate, count, pairwise, product
from math import ceil
from operator import itemgetter
from random import Random
from typing import NamedTuple, TypeAlias, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

from psycopg.types.json import Jsonb

from ops.vocabulary import AI_MODELS, REGIONS, SALON_NAMES, SERVICES, SURNAMES, TAGS, Region

FIRST_DAY = datetime(2024, 10, 20, tzinfo=UTC)
ANCHOR = FIRST_DAY + timedelta(days=90)  # 2025-01-18: end of the messages; bookings end 30 days later

# Rows at scale 1; there are as many salons at any scale.
ROWS = {"salons": 20, "bookings": 10_000, "conversations": 1_000, "messages": 50_000, "ai_messages": 20_000}
COLUMNS = {
    "salons": "salon_id phone_number_id name time_zone region_code language_code opening_hours booking_rules"
    " created_at updated_at",
    "services": "salon_id service_id name duration buffer_after price_micros currency_code created_at updated_at",
    "resources": "salon_id resource_id name created_at updated_at",
    "time_off": "salon_id time_off_id resource_id start_ts end_ts reason created_at",
    "bookings": "salon_id booking_id booking_code customer_phone customer_name resource_id service_name start_ts end_ts"
    " status revision created_at updated_at",
    "booking_events": "salon_id booking_id revision type actor from_status to_status from_start_ts from_end_ts"
    " to_start_ts to_end_ts from_resource_id to_resource_id created_at",
    "customers": "salon_id customer_id created_at",
    "customer_identities": "salon_id identity kind customer_id seen_at",
    "conversations": "salon_id conversation_id phone_number customer_name status assignee tags unread_count started_at"
    " last_message_at service_window_expires_at",
    "messages": "salon_id message_id conversation_id phone_number direction whatsapp_id type content language status"
    " cost_micros currency_code pricing_category billable created_at",
    "ai_messages": "salon_id ai_message_id conversation_id model role content prompt_tokens completion_tokens"
    " cost_micros currency_code latency_ms created_at",
}

_SLOTS_A_DAY = 6  # of 90 minutes, from 09:00 to 18:00
_BOOKED_DAYS = [day for day in range(120) if (FIRST_DAY + timedelta(days=day)).weekday() < 6]
_PAST_STATUSES = ("COMPLETED",) * 14 + ("CANCELLED",) * 3 + ("NO_SHOW",) * 2 + ("CONFIRMED",)
_FUTURE_STATUSES = ("CONFIRMED",) * 13 + ("PENDING",) * 4 + ("CANCELLED",) * 3
_SENT_STATUSES = ("READ",) * 14 + ("DELIVERED",) * 4 + ("SENT", "FAILED")
_PATHS = {
    "PENDING": ("PENDING",),
    "CONFIRMED": ("PENDING", "CONFIRMED"),
    "CANCELLED": ("PENDING", "CANCELLED"),
    "COMPLETED": ("PENDING", "CONFIRMED", "COMPLETED"),
    "NO_SHOW": ("PENDING", "CONFIRMED", "NO_SHOW"),
}
_HALF_CODES = ["".join(letters) for letters in product("23456789ABCDEFGHJKMNPQRSTVWXYZ", repeat=3)]

Row: TypeAlias = tuple[object, ...]
_T = TypeVar("_T")


@dataclass(frozen=True)
class Salon:
    """A salon and its share of the data; rank 0 is the biggest."""

    salon_id: str
    rank: int
    region: Region
    bookings: int
    conversations: int
    messages: int

    def phone(self, customer: int) -> str:
        """Return a customer's number; every tenth customer goes to all salons of the region."""
        number = customer if customer % 10 == 9 else self.rank * 4_000_000 + customer
        return f"{self.region.mobile_prefix}{_scatter(number, 10**8):08d}"

    def booking_code(self, booking: int) -> str:
        """Return a booking's code; every hundredth is also used in other salons."""
        number = self.rank * 10_000_000 + booking if booking % 100 else booking
        first, second = divmod(_scatter(number, len(_HALF_CODES) ** 2), len(_HALF_CODES))
        return _HALF_CODES[first] + _HALF_CODES[second]


class Conversation(NamedTuple):
    """A conversation, and its number of messages."""

    salon: Salon
    conversation_id: UUID
    phone_number: str
    messages: int


class Sent(NamedTuple):
    """A message, `ms` milliseconds after FIRST_DAY, in the conversation with this index."""

    ms: int
    conversation: int
    outbound: bool


def data_set(scale: int) -> Iterator[tuple[str, Iterable[Row]]]:
    """Yield each table with its rows, in an order that satisfies the foreign keys.

    Shape:  a row has the values of the table's COLUMNS, in that order.
    """
    # One random generator per table: a change to one table does not change the rows of others.
    salons = _salons(scale)
    bookings = _booking_rows(salons)
    yield "salons", map(_salon_row, salons)
    yield "services", _service_rows(salons)
    resources = list(_resource_rows(bookings))
    yield "resources", resources
    yield "time_off", _time_off_rows(resources)
    yield "bookings", bookings
    yield "booking_events", (event for booking in bookings for event in _event_rows(booking))
    conversations = list(_conversations(salons))
    plan = _plan(conversations)
    first = {sent.conversation: _time(sent.ms) for sent in reversed(plan)}
    yield "customers", ((salon.salon_id, found, first[place]) for place, (salon, found, *_) in enumerate(conversations))
    yield "customer_identities", _identity_rows(conversations, first)
    yield "conversations", _conversation_rows(conversations, plan)
    yield "messages", _message_rows(conversations, plan)
    yield "ai_messages", _ai_message_rows(conversations, plan)


def _salons(scale: int) -> list[Salon]:
    weights = [rank**-1.15 for rank in range(1, ROWS["salons"] + 1)]  # the first has a third
    sizes = (_split(ROWS[table] * scale, weights) for table in ("bookings", "conversations", "messages"))
    parts = enumerate(zip(*sizes, strict=True))
    return [Salon(f"salon-{123 + rank}", rank, REGIONS[rank % len(REGIONS)], *part) for rank, part in parts]


def _salon_row(salon: Salon) -> Row:
    city = salon.region.time_zone.split("/")[1].replace("_", " ")
    name = f"{SALON_NAMES[salon.rank % len(SALON_NAMES)]} {city}"
    hours = [
        {"day_of_week": day, "open_time": {"hours": 9, "minutes": 0}, "close_time": {"hours": 18, "minutes": 0}}
        for day in ("MONDAY", "TUESDAY", "WEDNESDAY", "THURSDAY", "FRIDAY", "SATURDAY")
    ]
    phone_number_id = f"{_scatter(salon.rank, 10**15):015d}"
    opened = FIRST_DAY - timedelta(days=60 - salon.rank)
    zone, region = salon.region.time_zone, salon.region.region_code
    language = salon.region.language_code
    rules = {"min_notice": {"seconds": 3600}, "max_advance": {"seconds": 90 * 86_400}}
    names = salon.salon_id, phone_number_id, name, zone, region, language
    return *names, Jsonb(hours), Jsonb(rules), opened, opened


def _service_rows(salons: Sequence[Salon]) -> Iterator[Row]:
    """Yield what each salon does; the price grows with the time it takes."""
    for salon in salons:
        opened = FIRST_DAY - timedelta(days=60 - salon.rank)
        for name, minutes in SERVICES:
            price = minutes * salon.region.message_cost_micros * 20
            what = name.lower().replace(" ", "-"), name, minutes * 60, 600
            yield salon.salon_id, *what, price, salon.region.currency_code, opened, opened


def _time_off_rows(resources: Sequence[Row]) -> Iterator[Row]:
    """Yield a week off for each resource, after the last booking."""
    random = Random("time_off")
    for salon_id, resource_id, _, created, _ in resources:
        start = FIRST_DAY + timedelta(days=130 + int(random.random() * 30))
        yield salon_id, _uuid(random), resource_id, start, start + timedelta(days=7), "Vacation", created


def _resource_rows(bookings: Sequence[Row]) -> Iterator[Row]:
    """Yield the booked resources, created on the day of their first booking."""
    first: dict[tuple[object, object], object] = {}
    for booking in bookings:
        if booking[5]:
            first.setdefault((booking[0], booking[5]), booking[11])
    for (salon_id, resource_id), created in sorted(first.items()):
        yield salon_id, resource_id, str(resource_id).replace("-", " ").capitalize(), created, created


def _booking_rows(salons: Sequence[Salon]) -> list[Row]:
    random = Random("bookings")
    rows = [row for salon in salons for row in _salon_bookings(random, salon)]
    return sorted(rows, key=itemgetter(11, 1))  # in order of creation


def _salon_bookings(random: Random, salon: Salon) -> Iterator[Row]:
    zone = ZoneInfo(salon.region.time_zone)
    slots = len(_BOOKED_DAYS) * _SLOTS_A_DAY
    resources = ceil(salon.bookings / slots / 0.7)  # every resource is booked 70 % of the time
    for number, place in enumerate(random.sample(range(slots * resources), salon.bookings)):
        resource, slot = divmod(place, slots)
        day, time = divmod(slot, _SLOTS_A_DAY)
        opens = (FIRST_DAY + timedelta(days=_BOOKED_DAYS[day])).replace(hour=9, tzinfo=zone)
        start = (opens + timedelta(minutes=90 * time)).astimezone(UTC)
        yield _booking_row(random, salon, number, resource, start)


def _booking_row(random: Random, salon: Salon, number: int, resource: int, start: datetime) -> Row:
    customer = int(min(random.random(), random.random()) * salon.conversations * 3)
    given = salon.region.given_names
    name = f"{given[customer % len(given)]} {SURNAMES[customer % len(SURNAMES)]}"
    service, minutes = _pick(random, SERVICES)
    end = start + timedelta(minutes=minutes)
    status = _pick(random, _PAST_STATUSES if end <= ANCHOR else _FUTURE_STATUSES)
    ahead = timedelta(hours=1 + int(random.random() ** 2 * 480), seconds=int(random.random() * 3600))
    created = min(start, ANCHOR) - ahead
    changed = {"PENDING": created, "CONFIRMED": created + ahead / 2, "CANCELLED": created + ahead / 2}.get(status, end)
    resource_id = None if random.random() < 0.05 else f"{('chair', 'stylist')[resource % 2]}-{resource // 2 + 1}"
    what = _uuid(random), salon.booking_code(number), salon.phone(customer), name, resource_id, service, start, end
    return salon.salon_id, *what, status, len(_PATHS[status]), created, changed


def _event_rows(booking: Row) -> Iterator[Row]:
    """Yield the history of a booking: created, and moved to its status."""
    salon_id, booking_id, _, _, _, resource, _, start, end, status, _, created, changed = booking
    path = _PATHS[str(status)]
    for revision, (before, after) in enumerate(pairwise((None, *path)), 1):
        kind = "STATUS_CHANGED" if before else "CREATED"
        was = (start, end) if before else (None, None)
        moment = changed if revision == len(path) > 1 else created
        what = kind, "bot", before, after, *was, start, end, resource if before else None, resource
        yield salon_id, booking_id, revision, *what, moment


def _conversations(salons: Sequence[Salon]) -> Iterator[Conversation]:
    random, sizes = Random("conversations"), Random("conversation sizes")
    for salon in salons:
        # At least two messages each, and some have many.
        weights = [sizes.paretovariate(2) for _ in range(salon.conversations)]
        for number, extra in enumerate(_split(salon.messages - 2 * salon.conversations, weights)):
            yield Conversation(salon, _uuid(random), salon.phone(number), 2 + extra)


def _plan(conversations: Sequence[Conversation]) -> list[Sent]:
    """Return all messages in order of time, as a service would have written them."""
    random = Random("plan")
    return sorted(
        Sent(ms, place, outbound)
        for place, conversation in enumerate(conversations)
        for ms, outbound in _chats(random, conversation.messages)
    )


def _chats(random: Random, messages: int) -> Iterator[tuple[int, bool]]:
    """Yield times and directions: chats of up to 8 messages, between a first and a last day."""
    first = int(random.random() * 90)
    days = 1 + int(random.random() * (90 - first))
    ms = 0
    for number in range(messages):
        if number % 8 == 0:
            hours = (first + int(random.random() * days)) * 24 + 7 + random.random() * 13
            ms = int(hours * 3_600_000)
        ms += 20_000 + int(random.random() * 280_000)
        yield ms, bool(number % 2)


def _identity_rows(conversations: Sequence[Conversation], first: Mapping[int, datetime]) -> Iterator[Row]:
    for place, (salon, conversation_id, phone, _) in enumerate(conversations):
        yield salon.salon_id, phone, "PHONE_NUMBER", conversation_id, first[place]


def _conversation_rows(conversations: Sequence[Conversation], plan: Sequence[Sent]) -> Iterator[Row]:
    last = {sent.conversation: _time(sent.ms) for sent in plan}
    first = {sent.conversation: _time(sent.ms) for sent in reversed(plan)}
    heard = {sent.conversation: _time(sent.ms) for sent in plan if not sent.outbound}
    for place, (salon, conversation_id, phone, _) in enumerate(conversations):
        idle = (ANCHOR - last[place]).days
        status = "ACTIVE" if idle < 21 else "CLOSED" if idle < 50 else "ARCHIVED"
        assignee = f"user-{place % 3}" if status == "ACTIVE" and place % 4 == 0 else ""
        unread = int(last[place] == heard[place])  # an answer marks the conversation as read
        care = status, assignee, TAGS[place % len(TAGS)], unread
        times = first[place], last[place], heard[place] + timedelta(hours=24)
        given = salon.region.given_names
        name = f"{given[place % len(given)]} {SURNAMES[place % len(SURNAMES)]}" if place % 5 else ""
        yield salon.salon_id, conversation_id, phone, name, *care, *times


def _message_rows(conversations: Sequence[Conversation], plan: Sequence[Sent]) -> Iterator[Row]:
    random = Random("messages")
    numbers = [count(rank, ROWS["salons"]) for rank in range(ROWS["salons"])]
    for ms, place, outbound in plan:
        salon, conversation_id, phone, _ = conversations[place]
        kind = "TEMPLATE" if outbound and ms % 5 == 3 else "TEXT"
        status = _pick(random, _SENT_STATUSES) if outbound else "RECEIVED"
        cost = (salon.region.message_cost_micros, salon.region.currency_code) if outbound else (0, None)
        billed = ("utility" if kind == "TEMPLATE" else "service", True) if outbound else (None, None)
        whatsapp_id = f"wamid.{_scatter(next(numbers[salon.rank]), 16**24):024X}"
        content = kind, _content(salon, ms, outbound), salon.region.language_code
        what = "OUTBOUND" if outbound else "INBOUND", whatsapp_id, *content, status
        yield salon.salon_id, _uuid(random), conversation_id, phone, *what, *cost, *billed, _time(ms)


def _ai_message_rows(conversations: Sequence[Conversation], plan: Sequence[Sent]) -> Iterator[Row]:
    """Yield the prompts and answers of a model: two in five of the messages."""
    random = Random("ai_messages")
    for number, (ms, place, outbound) in enumerate(plan):
        if number % 5 > 1:
            continue
        salon, conversation_id, *_ = conversations[place]
        model, prompt_price, completion_price = AI_MODELS[place % len(AI_MODELS)]
        prompt, completion, latency = (
            (200 + int(random.random() * 1000), 20 + int(random.random() * 160), 400 + int(random.expovariate(1 / 900)))
            if outbound
            else (0, 0, 0)
        )
        cost = round(prompt * prompt_price + completion * completion_price)
        content = model, "ASSISTANT" if outbound else "USER", _content(salon, ms, outbound)
        used = prompt, completion, cost, "USD" if cost else None, latency
        yield salon.salon_id, _uuid(random), conversation_id, *content, *used, _time(ms)


def _content(salon: Salon, ms: int, outbound: bool) -> str:
    return (salon.region.salon_says if outbound else salon.region.customer_says)[ms % 5]


def _split(total: int, weights: Sequence[float]) -> list[int]:
    """Cut `total` in proportion to the weights; the parts add up to it."""
    sums = list(accumulate(weights, initial=0.0))
    bounds = [round(total * part / sums[-1]) for part in sums]
    return [end - begin for begin, end in pairwise(bounds)]


def _scatter(number: int, modulus: int) -> int:
    """Return a pseudorandom number, distinct for all numbers below a modulus whose prime factors are 2, 3 and 5."""
    return (number * 314_159_265_358_979_323_846_264_338_329 + 271_828_182_845_904_523_536_028_747_135) % modulus


def _pick(random: Random, choices: Sequence[_T]) -> _T:
    return choices[int(random.random() * len(choices))]


def _uuid(random: Random) -> UUID:
    return UUID(int=random.getrandbits(128), version=4)


def _time(ms: int) -> datetime:
    return FIRST_DAY + timedelta(milliseconds=ms)
