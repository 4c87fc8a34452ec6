"""Requests for the sample data: a thousand different ones for each read RPC, and endless writes."""

import hashlib
import hmac
import itertools
import json
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import psycopg
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.type.dayofweek_pb2 import DayOfWeek
from psycopg.types.json import Jsonb

from parlor.booking.v1 import booking_pb2 as booking
from parlor.messaging.v1 import messaging_pb2 as messaging
from parlor.stats.v1 import stats_pb2 as stats
from services.cache_tags import CacheTags
from tests.stack import unconnected_cache
from tools.workloads import ZIPF, Step, Trace, salons

SALON = "salon-123"
CALLS = 1000
CODES = 3000
SALONS = 3000
BATCH = 100
MESSAGES = 100  # of a large webhook body
BUSY = "bench-busy"  # a salon with a calendar in the future, which has free slots
BUSY_RESOURCES = 10
BUSY_WEEKS = 9
OPEN_SALONS, OPEN_RESOURCES = 20, 5  # for CreateBooking; resources of each
RULES = {"min_notice": {"seconds": 3600}, "max_advance": {"seconds": 3650 * 86_400}}
ALL_RULES = {
    **RULES,
    "min_cancel_notice": {"seconds": 3600},
    "buffer_after": {"seconds": 600},
    "one_booking_at_a_time_per_customer": True,
}


class Case(NamedTuple):
    """A read RPC: its service, its method, and different requests."""

    service: str
    method: str
    requests: list[bytes]

    @property
    def path(self) -> str:
        """The path of the method."""
        return path_of(self.service, self.method)

    @property
    def reply(self) -> str:
        """The full name of the reply message."""
        module = {"booking": booking, "messaging": messaging, "stats": stats}[self.service]
        services = module.DESCRIPTOR.services_by_name
        return str(services[f"{self.service.capitalize()}Service"].methods_by_name[self.method].output_type.full_name)


def path_of(service: str, method: str) -> str:
    """Return the path of a method."""
    return f"/parlor.{service}.v1.{service.capitalize()}Service/{method}"


def add_salons(database_url: str) -> None:
    """Add small salons, so that many reads can be misses."""
    with psycopg.connect(database_url, autocommit=True) as conn:
        conn.execute(
            "INSERT INTO salons (salon_id, phone_number_id, name, time_zone)"
            " SELECT 'bench-' || n, '99' || n, 'Salon ' || n, 'Europe/Berlin' FROM generate_series(1, %s) AS n",
            [SALONS],
        )


def _hours(days: int, opens: int, closes: int) -> Jsonb:
    """Return opening hours of the first days of the week."""
    times = {"open_time": {"hours": opens}, "close_time": {"hours": closes}}
    return Jsonb([{"day_of_week": day, **times} for day in DayOfWeek.keys()[1 : days + 1]])


def open_salons(database_url: str) -> None:
    """Open all salons around the clock, so that the writes of the mixed workload keep the rules."""
    with psycopg.connect(database_url, autocommit=True) as conn:
        conn.execute("UPDATE salons SET opening_hours = %s, booking_rules = %s", [_hours(7, 0, 24), Jsonb(RULES)])


def add_open_salons(database_url: str) -> None:
    """Add salons with resources for CreateBooking, unless they exist: always open, with every kind of rule."""
    with psycopg.connect(database_url, autocommit=True) as conn:
        conn.execute(
            "INSERT INTO salons (salon_id, phone_number_id, name, time_zone, opening_hours, booking_rules)"
            " SELECT 'bench-open-' || n, 'bench-open-' || n, 'Open', 'Europe/Berlin', %s, %s"
            " FROM generate_series(1, %s) AS n ON CONFLICT DO NOTHING",
            [_hours(7, 0, 24), Jsonb(ALL_RULES), OPEN_SALONS],
        )
        conn.execute(
            "INSERT INTO resources (salon_id, resource_id, name) SELECT 'bench-open-' || n, 'chair-' || r, 'Chair'"
            " FROM generate_series(1, %s) AS n, generate_series(1, %s) AS r ON CONFLICT DO NOTHING",
            [OPEN_SALONS, OPEN_RESOURCES],
        )


def add_calendar(database_url: str) -> None:
    """Add a salon with ten resources, open 54 hours a week; half of the coming weeks is booked."""
    with psycopg.connect(database_url, autocommit=True) as conn:
        conn.execute(
            "INSERT INTO salons (salon_id, phone_number_id, name, time_zone, opening_hours)"
            " VALUES (%s, %s, 'Busy', 'Europe/Berlin', %s)",
            [BUSY, BUSY, _hours(6, 9, 18)],
        )
        conn.execute(
            "INSERT INTO resources (salon_id, resource_id, name) SELECT %s, 'chair-' || n, 'Chair'"
            " FROM generate_series(1, %s) AS n",
            [BUSY, BUSY_RESOURCES],
        )
        conn.execute(
            "INSERT INTO bookings (salon_id, booking_code, customer_phone, resource_id, start_ts, end_ts, status)"
            " SELECT salon_id, 'B' || row_number() OVER (), '+4915112345678', resource_id, start_ts,"
            " start_ts + interval '1 hour', 'CONFIRMED'"
            " FROM resources, generate_series(%s, %s, interval '1 hour') AS start_ts"
            " WHERE salon_id = %s AND abs(hashtext(resource_id || start_ts)) %% 2 = 0"
            " AND (start_ts AT TIME ZONE 'Europe/Berlin')::time BETWEEN '09:00' AND '17:00'",
            [_monday(), _monday() + timedelta(weeks=BUSY_WEEKS), BUSY],
        )


def _monday() -> datetime:
    """Return the start of next week."""
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return today + timedelta(days=7 - today.weekday())


def _rows(database_url: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(database_url) as conn:
        return conn.execute(query.encode()).fetchall()


def _periods(kind: Callable[..., Message], **fields: Any) -> Iterator[Message]:
    """Yield requests for 31 days of the biggest salon, each starting a second later."""
    for second in range(CALLS):
        start = 1_734_220_800 + second
        times = {"start_time": Timestamp(seconds=start), "end_time": Timestamp(seconds=start + 31 * 86_400)}
        yield kind(salon_id=SALON, **times, **fields)


def _weeks() -> Iterator[Message]:
    """Yield searches of a week, each starting a minute later."""
    lengths: dict[str, Any] = {"duration": Duration(seconds=2700), "step": Duration(seconds=1800)}
    for minute in range(CALLS):
        start = int(_monday().timestamp()) + 60 * minute
        times: dict[str, Any] = {
            "start_time": Timestamp(seconds=start),
            "end_time": Timestamp(seconds=start + 7 * 86_400),
        }
        yield booking.SearchAvailabilityRequest(salon_id=BUSY, **times, **lengths)


def cases(database_url: str) -> Iterator[Case]:
    """Yield every read RPC of the services except ListWebhookFailures, for which there is no data.

    The salons of `add_salons` come first, if they exist, so that there are as many salons as calls.
    """
    ids_of_salons = _rows(database_url, "SELECT salon_id, phone_number_id FROM salons ORDER BY salon_id")
    codes = _rows(database_url, f"SELECT booking_code FROM bookings WHERE salon_id = '{SALON}' LIMIT {CODES}")
    phones = _rows(database_url, f"SELECT phone_number FROM conversations WHERE salon_id = '{SALON}'")
    ids = _rows(database_url, f"SELECT conversation_id::text FROM conversations WHERE salon_id = '{SALON}'")
    messages = _rows(database_url, f"SELECT whatsapp_id FROM messages WHERE salon_id = '{SALON}' LIMIT {CALLS}")
    numbers = range(1, CALLS + 1)
    requests: dict[tuple[str, str], Iterator[Message]] = {
        ("booking", "GetSalon"): (booking.GetSalonRequest(salon_id=salon) for salon, _ in ids_of_salons[:CALLS]),
        ("booking", "GetSalonByPhoneNumberId"): (
            booking.GetSalonByPhoneNumberIdRequest(phone_number_id=number) for _, number in ids_of_salons[:CALLS]
        ),
        ("booking", "GetBookingByCode"): (
            booking.GetBookingByCodeRequest(salon_id=SALON, booking_code=code) for (code,) in codes
        ),
        ("booking", "ListBookings"): (
            booking.ListBookingsRequest(salon_id=SALON, start_time=Timestamp(seconds=1_734_220_800 + n))
            for n in numbers
        ),
        ("booking", "ListSalons"): (booking.ListSalonsRequest(page_size=50) for _ in numbers),
        ("booking", "ListResources"): (
            booking.ListResourcesRequest(salon_id=f"salon-{123 + n % 20}", page_size=n // 20 + 1) for n in numbers
        ),
        ("booking", "ListBookingEvents"): (
            booking.ListBookingEventsRequest(salon_id=SALON, booking_code=code) for (code,) in codes[:CALLS]
        ),
        ("booking", "BatchGetBookings"): (
            booking.BatchGetBookingsRequest(salon_id=SALON, booking_codes=[code for (code,) in codes[n : n + BATCH]])
            for n in range(0, len(codes), BATCH)
        ),
        ("booking", "BatchGetSalons"): (
            booking.BatchGetSalonsRequest(salon_ids=[salon for salon, _ in ids_of_salons[n : n + BATCH]])
            for n in range(0, len(ids_of_salons), BATCH)
        ),
        ("booking", "SearchAvailability"): _weeks(),
        ("messaging", "GetMessage"): (
            messaging.GetMessageRequest(salon_id=SALON, whatsapp_id=whatsapp_id) for (whatsapp_id,) in messages
        ),
        ("messaging", "SearchMessages"): (
            messaging.SearchMessagesRequest(salon_id=SALON, query=query, page_size=size)
            for size in range(1, 101)
            for query in ("Termin", "Samstag", "danke", "Strähnen", "verspäte", "85 Euro", "JA", "gerne", "Minuten")
        ),
        ("messaging", "GetConversation"): (
            messaging.GetConversationRequest(salon_id=SALON, phone_number=phone, message_limit=limit)
            for limit in (10, 11, 12, 13)
            for (phone,) in phones
        ),
        ("messaging", "ListConversations"): (
            messaging.ListConversationsRequest(salon_id=SALON, page_size=size, status=status, unread_only=unread)
            for size in range(25, 76)  # 50 on average
            for status in messaging.ConversationStatus.values()
            for unread in (False, True)
        ),
        ("messaging", "ListMessages"): (
            messaging.ListMessagesRequest(salon_id=SALON, conversation_id=conversation_id, page_size=50 + size)
            for size in range(4)
            for (conversation_id,) in ids
        ),
        ("messaging", "ListAiMessages"): (
            messaging.ListAiMessagesRequest(salon_id=SALON, conversation_id=conversation_id, page_size=50 + size)
            for size in range(4)
            for (conversation_id,) in ids
        ),
        ("stats", "GetSalonStats"): _periods(stats.GetSalonStatsRequest),
        ("stats", "ListBookingStats"): _periods(stats.ListBookingStatsRequest),
        ("stats", "ListConversationStats"): _periods(stats.ListConversationStatsRequest),
        ("stats", "GetMessageDirectionStats"): _periods(stats.GetMessageDirectionStatsRequest),
        ("stats", "GetAiAnalytics"): _periods(stats.GetAiAnalyticsRequest),
    }
    for (service, method), made in requests.items():
        yield Case(service, method, [request.SerializeToString() for request in made])


def long_lists(database_url: str) -> Case:
    """Return ListMessages of whole salons, with 95 to 105 messages per page."""
    big = _rows(database_url, "SELECT salon_id FROM messages GROUP BY 1 HAVING count(*) > 400 ORDER BY count(*) DESC")
    requests = [
        messaging.ListMessagesRequest(salon_id=salon_id, direction=direction, page_size=size).SerializeToString()
        for size in range(95, 106)
        for direction in messaging.MessageDirection.values()
        for (salon_id,) in big
    ]
    return Case("messaging", "ListMessages", requests)


@dataclass(frozen=True)
class Writes:
    """Write requests, each valid once, and the steps of a mixed workload. Each must be sent once it is taken.

    A body of `webhooks` has one message, one of `bodies` MESSAGES.
    """

    bookings: Iterator[bytes]
    webhooks: Iterator[bytes]
    bodies: Iterator[bytes]
    steps: Iterator[Step]


def writes(database_url: str, app_secret: str) -> Writes:
    """Return the writes to a database; webhook bodies are signed with the secret."""
    tags = CacheTags(unconnected_cache())
    customers = [salon for salon in salons(database_url) if salon.customers]
    trace = Trace(replace(ZIPF, calls=10**9), customers, tags)
    one, many = (_webhooks(database_url, app_secret, count) for count in (1, MESSAGES))
    return Writes(_bookings(database_url), one, many, trace.steps())


def _bookings(database_url: str) -> Iterator[bytes]:
    """Yield requests of CreateBooking, each for a free time of a resource of `add_open_salons` and for a new customer.

    The times begin after those of earlier runs.
    """
    bookings = "FROM bookings WHERE salon_id LIKE 'bench-open-%'"
    query = f"SELECT ceil(extract(epoch FROM greatest(now() + interval '1 day', max(end_ts))) / 3600)::int {bookings}"
    [(first,)] = _rows(database_url, query)
    places = list(itertools.product(range(1, OPEN_RESOURCES + 1), range(1, OPEN_SALONS + 1)))
    for hour in itertools.count(first):
        for place, (resource, salon) in enumerate(places):
            times: dict[str, Any] = {
                "start_time": Timestamp(seconds=3600 * hour),
                "end_time": Timestamp(seconds=3600 * hour + 2700),
            }
            yield booking.CreateBookingRequest(
                salon_id=f"bench-open-{salon}",
                resource_id=f"chair-{resource}",
                customer_phone=f"+49151{hour * len(places) + place:08d}",
                customer_name="Zoë Hartmann",
                **times,
            ).SerializeToString()


def _webhooks(database_url: str, app_secret: str, count: int) -> Iterator[bytes]:
    """Yield requests of IngestWebhook, each with new text messages of one salon's known customers."""
    query = """SELECT phone_number_id, array_agg(phone_number ORDER BY conversation_id)
        FROM conversations JOIN salons USING (salon_id) WHERE phone_number_id IS NOT NULL GROUP BY 1 ORDER BY 1"""
    salons = [(number, itertools.cycle(phones)) for number, phones in _rows(database_url, query)]
    run, ids = secrets.token_hex(6), itertools.count()
    for phone_number_id, phones in itertools.cycle(salons):
        senders = [phone.removeprefix("+") for phone in itertools.islice(phones, count)]
        payload = _body(phone_number_id, [(sender, f"wamid.{run}{next(ids)}") for sender in senders])
        signature = "sha256=" + hmac.new(app_secret.encode(), payload, hashlib.sha256).hexdigest()
        yield messaging.IngestWebhookRequest(payload=payload, signature=signature).SerializeToString()


def _body(phone_number_id: str, messages: Sequence[tuple[str, str]]) -> bytes:
    """Return a webhook body as WhatsApp sends one; `messages` are their senders and whatsapp_ids."""
    text = {"type": "text", "text": {"body": "Do you have a slot on Friday?"}}
    value = {
        "messaging_product": "whatsapp",
        "metadata": {"display_phone_number": "15550783881", "phone_number_id": phone_number_id},
        "contacts": [{"profile": {"name": "Sheena Nelson"}, "wa_id": sender} for sender in dict(messages)],
        "messages": [
            {"from": sender, "id": whatsapp_id, "timestamp": "1749416383", **text} for sender, whatsapp_id in messages
        ],
    }
    entry = {"id": "102290129340398", "changes": [{"value": value, "field": "messages"}]}
    return json.dumps({"object": "whatsapp_business_account", "entry": [entry]}).encode()
