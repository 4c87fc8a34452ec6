"""libs/messages: rows encoded as messages."""

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.type.dayofweek_pb2 import MONDAY
from google.type.timeofday_pb2 import TimeOfDay

from libs.messages import encode_repeated, fetch_encoded, fetch_rows, text_array
from parlor.booking.v1.booking_pb2 import (
    BOOKING_STATUS_NO_SHOW,
    Booking,
    ListBookingsResponse,
    OpeningHours,
    Salon,
    Service,
)
from parlor.messaging.v1 import messaging_pb2 as messaging
from parlor.stats.v1.stats_pb2 import SalonStats
from tests.test_connection import connect

CASES: list[tuple[str, Message]] = [
    (
        "'' AS booking_code, 'é' AS notes, 'BOOKING_STATUS_NO_SHOW' AS status, 300 AS revision, NULL::text AS etag",
        Booking(notes="é", status=BOOKING_STATUS_NO_SHOW, revision=300),
    ),
    *(
        (f"repeat('x', {size}) AS notes, 'after' AS etag", Booking(notes="x" * size, etag="after"))
        for size in (1, 127, 128, 16_383, 16_384, 100_000)
    ),
    (
        "timestamptz '1969-12-31 23:59:59.999999+00' AS create_time, timestamptz 'epoch' AS start_time,"
        " timestamptz '9999-12-31 23:59:59.5+00' AS end_time",
        Booking(
            create_time=Timestamp(seconds=-1, nanos=999_999_000),
            start_time=Timestamp(),
            end_time=Timestamp(seconds=253_402_300_799, nanos=500_000_000),
        ),
    ),
    (
        """'[{"day_of_week": "MONDAY", "open_time": {"hours": 9}}]'::jsonb AS opening_hours,"""
        " '[]'::jsonb AS special_hours",
        Salon(opening_hours=[OpeningHours(day_of_week=MONDAY, open_time=TimeOfDay(hours=9))]),
    ),
    (
        "5400 AS duration, 0 AS buffer_before, NULL::int AS buffer_after",
        Service(duration=Duration(seconds=5400), buffer_before=Duration()),
    ),
    ("ARRAY['', 'b']::text[] AS tags, 0 AS unread_count", messaging.Conversation(tags=["", "b"])),
    ("ARRAY[]::text[] AS tags, 7 AS unread_count", messaging.Conversation(unread_count=7)),
    ("false AS billable, -5::bigint AS cost_micros", messaging.Message(billable=False, cost_micros=-5)),
    ("NULL::boolean AS billable", messaging.Message()),
    (
        "0::bigint AS total_cost_micros, 9223372036854775807 AS messages",
        SalonStats(total_cost_micros=0, messages=2**63 - 1),
    ),
]


async def test_a_row_is_encoded_as_the_message_of_its_columns(database_url: str) -> None:
    async with await connect(database_url) as conn:
        for columns, message in CASES * 2:  # the second time from the cached encoder
            [row] = await fetch_encoded(conn, type(message), f"SELECT {columns}", [])
            assert type(message).FromString(row) == message
            assert len(row) == message.ByteSize()


async def test_elements_are_encoded_as_a_repeated_field_in_order() -> None:
    bookings = [Booking(notes="x" * size) for size in (0, 1, 500, 70_000)]
    body = encode_repeated([booking.SerializeToString() for booking in bookings])
    assert list(ListBookingsResponse.FromString(body).bookings) == bookings


async def test_a_text_array_is_decoded_as_a_list(database_url: str) -> None:
    values = ["", "a", "NULL", "null", '"', "\\", '\\"', "{}", "{,}", " b ", "é\n\t'", "a,b", "%s"]
    async with await connect(database_url) as conn:
        for part in (values, values[:1], []):
            _, [(found,)] = await fetch_rows(conn, "SELECT %s::text[]", [text_array(part)])
            assert found == part
