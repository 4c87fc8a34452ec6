"""Statistics of a salon: the rows that a period counts, their costs, and the lifetime of cached replies."""

from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import psycopg
from google.protobuf.timestamp_pb2 import Timestamp

from parlor.messaging.v1 import messaging_pb2
from parlor.stats.v1 import stats_pb2 as pb
from tests.stack import (
    PHONE,
    SALON,
    Fields,
    Stack,
    booking_request,
    cached,
    executed,
    failure,
    fresh,
    message_request,
    quiet,
    salon,
    warm,
)

OUTBOUND = messaging_pb2.MESSAGE_DIRECTION_OUTBOUND


def period(start: int, end: int) -> dict[str, Any]:
    """Return the fields of a period of a salon, in s since 1970."""
    return {"salon_id": SALON, "start_time": Timestamp(seconds=start), "end_time": Timestamp(seconds=end)}


def around_now() -> dict[str, Any]:
    """Return a period that began a day ago and ends in a day."""
    now = int(datetime.now(UTC).timestamp())
    return period(now - 86_400, now + 86_400)


async def send(stack: Stack, name: str, second: int, cost: int = 0, currency: str = "", **fields: Any) -> None:
    """Record a message sent at `second`."""
    sent = {"send_time": Timestamp(seconds=second), "cost_micros": cost, "currency_code": currency, **fields}
    await stack.messaging.RecordMessage(message_request(name, **sent))


async def test_a_period_includes_its_start_and_excludes_its_end(stack: Stack) -> None:
    await salon(stack)
    for second in (999, 1000, 1500, 1999, 2000):
        await stack.booking.CreateBooking(booking_request(second))
        await send(stack, f"wamid.{second}", second, phone_number=f"+49151000{second}")
    stats = await stack.stats.GetSalonStats(pb.GetSalonStatsRequest(**period(1000, 2000)))
    assert (stats.bookings, stats.messages, stats.conversations) == (3, 3, 3)
    assert (stats.salon_id, stats.start_time.seconds, stats.end_time.seconds) == (SALON, 1000, 2000)
    assert abs(stats.as_of.ToDatetime(UTC) - datetime.now(UTC)) < timedelta(minutes=1)


async def test_each_kind_of_row_is_counted_by_its_own_time(stack: Stack) -> None:
    await salon(stack)
    await stack.booking.CreateBooking(booking_request(1000))
    await send(stack, "wamid.1", 2000)
    await send(stack, "wamid.2", 3000)
    await stack.messaging.RecordMessageStatus(
        messaging_pb2.RecordMessageStatusRequest(
            salon_id=SALON, whatsapp_id="wamid.1", status=messaging_pb2.MESSAGE_STATUS_READ
        )
    )
    for second, expected in ((1000, (1, 0, 0)), (2000, (0, 1, 1)), (3000, (0, 1, 0)), (4000, (0, 0, 0))):
        request = pb.GetSalonStatsRequest(**period(second, second + 1000))
        stats = await stack.stats.GetSalonStats(request)
        assert (stats.bookings, stats.messages, stats.conversations) == expected


async def test_bookings_of_every_status_count(stack: Stack) -> None:
    await salon(stack)
    for status in (1, 2):
        await stack.booking.CreateBooking(booking_request(1000, status=status))
    stats = await stack.stats.GetSalonStats(pb.GetSalonStatsRequest(**period(1000, 1001)))
    assert stats.bookings == 2


async def test_rows_of_other_salons_do_not_count(stack: Stack) -> None:
    await salon(stack)
    await salon(stack, "salon-2")
    await stack.booking.CreateBooking(booking_request(1000, salon_id="salon-2"))
    await send(stack, "wamid.1", 1000, 7, "EUR", salon_id="salon-2")
    stats = await stack.stats.GetSalonStats(pb.GetSalonStatsRequest(**period(0, 5000)))
    assert (stats.bookings, stats.messages, stats.conversations, list(stats.costs)) == (0, 0, 0, [])
    assert stats.HasField("total_cost_micros")
    assert stats.total_cost_micros == 0


async def test_costs_are_summed_by_currency_and_in_total_for_a_single_currency(stack: Stack) -> None:
    await salon(stack)
    await send(stack, "wamid.0", 500)
    for number, cost in enumerate((10**15, 10**15, 1)):
        await send(stack, f"wamid.eur.{number}", 1000, cost, "EUR")
    await send(stack, "wamid.usd", 2000, 5, "USD")
    await send(stack, "wamid.free", 1000, 0, "CHF")
    of_euros, of_dollars = (
        pb.Cost(currency_code="EUR", cost_micros=2 * 10**15 + 1),
        pb.Cost(currency_code="USD", cost_micros=5),
    )
    one = await stack.stats.GetSalonStats(pb.GetSalonStatsRequest(**period(0, 2000)))
    assert (list(one.costs), one.total_cost_micros, one.messages) == ([of_euros], 2 * 10**15 + 1, 5)
    two = await stack.stats.GetSalonStats(pb.GetSalonStatsRequest(**period(0, 3000)))
    assert (list(two.costs), two.HasField("total_cost_micros"), two.messages) == ([of_euros, of_dollars], False, 6)


async def test_directions_are_counted_with_their_costs(stack: Stack) -> None:
    await salon(stack)
    await send(stack, "wamid.1", 1000)
    await send(stack, "wamid.2", 1000, 1, "EUR")
    for number, (cost, currency) in enumerate(((2, "EUR"), (3, "EUR"), (4, "CHF"))):
        await send(stack, f"wamid.out.{number}", 1999, cost, currency, direction=OUTBOUND)
    await send(stack, "wamid.late", 2000, direction=OUTBOUND)
    stats = await stack.stats.GetMessageDirectionStats(pb.GetMessageDirectionStatsRequest(**period(1000, 2000)))
    assert (stats.inbound_messages, stats.outbound_messages) == (2, 3)
    assert [(cost.currency_code, cost.cost_micros) for cost in stats.inbound_costs] == [("EUR", 1)]
    assert [(cost.currency_code, cost.cost_micros) for cost in stats.outbound_costs] == [("CHF", 4), ("EUR", 5)]
    none = await stack.stats.GetMessageDirectionStats(pb.GetMessageDirectionStatsRequest(**period(3000, 4000)))
    assert (none.inbound_messages, none.outbound_messages, list(none.inbound_costs)) == (0, 0, [])


async def test_ai_messages_are_counted_by_model(stack: Stack) -> None:
    await salon(stack)
    conversation_id = (await stack.messaging.RecordMessage(message_request())).conversation_id
    ai_message = [
        ("b", 10, 20, 5, "USD", 100, "abc234"),
        ("b", 1, 2, 6, "USD", 201, "XYZ789"),
        ("b", 0, 0, 7, "EUR", 0, "ABC234"),
        ("a", 2**31 - 1, 2**31 - 1, 0, "", 2**31 - 1, ""),
        ("a", 2**31 - 1, 2**31 - 1, 0, "", 2**31 - 1, ""),
    ]
    names = (
        "model",
        "prompt_tokens",
        "completion_tokens",
        "cost_micros",
        "currency_code",
        "latency_ms",
        "booking_code",
    )
    for values in ai_message:
        fields: Fields = {
            "salon_id": SALON,
            "conversation_id": conversation_id,
            "role": 3,
            **dict(zip(names, values, strict=True)),
        }
        await stack.messaging.RecordAiMessage(messaging_pb2.RecordAiMessageRequest(**fields))
    a, b = (await stack.stats.GetAiAnalytics(pb.GetAiAnalyticsRequest(**around_now()))).models
    assert (a.model, a.messages, a.prompt_tokens, a.completion_tokens) == ("a", 2, 2**32 - 2, 2**32 - 2)
    assert (list(a.costs), a.average_latency_ms, a.max_latency_ms) == ([], 2**31 - 1, 2**31 - 1)
    assert (b.model, b.messages, b.prompt_tokens, b.completion_tokens) == ("b", 3, 11, 22)
    assert [(cost.currency_code, cost.cost_micros) for cost in b.costs] == [("EUR", 7), ("USD", 11)]
    assert (b.average_latency_ms, b.max_latency_ms) == (100.33, 201)
    assert (a.bookings, b.bookings) == (0, 2)
    before = pb.GetAiAnalyticsRequest(**period(0, 1000))
    assert list((await stack.stats.GetAiAnalytics(before)).models) == []


async def test_ai_usage_is_counted_by_day_week_and_month_beside_by_model(stack: Stack) -> None:
    await salon(stack, time_zone="Asia/Tokyo")  # UTC+9
    conversation_id = (await stack.messaging.RecordMessage(message_request())).conversation_id
    used = [  # the time in UTC, the model, tokens, cost and currency; January 31 is a Saturday
        ("2026-01-31 14:59:59.999999", "a", 1, 10, "USD"),
        ("2026-01-31 15:00:00", "a", 2, 20, "USD"),
        ("2026-02-01 14:00:00", "b", 4, 40, "EUR"),
        ("2026-02-03 00:00:00", "b", 8, 0, None),
    ]
    insert = """
        INSERT INTO ai_messages (salon_id, conversation_id, role, created_at, model, prompt_tokens, completion_tokens,
            cost_micros, currency_code)
        VALUES (%s, %s, 'USER', %s, %s, %s, %s, %s, %s)"""
    with psycopg.connect(stack.database_url, autocommit=True) as conn:
        for when, model, tokens, cost, currency in used:
            conn.execute(insert, [SALON, conversation_id, f"{when}+00", model, tokens, tokens * 16, cost, currency])
    january, ending = 1_767_225_600, 1_770_076_800 + 86_400  # 2026-01-01 and 2026-02-04
    every = [  # start, end, messages, tokens and costs of each day
        (1_769_785_200, 1_769_871_600, 1, 1, [("USD", 10)]),
        (1_769_871_600, 1_769_958_000, 2, 6, [("EUR", 40), ("USD", 20)]),
        (1_770_044_400, 1_770_130_800, 1, 8, []),
    ]
    weeks = [(1_769_353_200, 1_769_958_000, 3, 7, [("EUR", 40), ("USD", 30)]), (1_769_958_000, ending, 1, 8, [])]
    months = [(january, 1_769_871_600, 1, 1, [("USD", 10)]), (1_769_871_600, ending, 3, 14, [("EUR", 40), ("USD", 20)])]
    for bucket, expected in ((0, every), (1, every), (2, weeks), (3, months)):
        fields: Fields = {**period(january, ending), "bucket": bucket}
        request = pb.GetAiAnalyticsRequest(**fields)
        reply = await stack.stats.GetAiAnalytics(request)
        assert [
            (
                found.start_time.seconds,
                found.end_time.seconds,
                found.messages,
                found.prompt_tokens,
                [(cost.currency_code, cost.cost_micros) for cost in found.costs],
            )
            for found in reply.buckets
        ] == expected
        assert [found.completion_tokens for found in reply.buckets] == [tokens * 16 for _, _, _, tokens, _ in expected]
        assert [(model.model, model.prompt_tokens) for model in reply.models] == [("a", 3), ("b", 12)]


async def test_statistics_of_an_unknown_salon_are_not_found(stack: Stack) -> None:
    calls: list[tuple[Any, Any]] = [
        (stack.stats.GetSalonStats, pb.GetSalonStatsRequest),
        (stack.stats.ListBookingStats, pb.ListBookingStatsRequest),
        (stack.stats.ListConversationStats, pb.ListConversationStatsRequest),
        (stack.stats.GetMessageDirectionStats, pb.GetMessageDirectionStatsRequest),
        (stack.stats.GetAiAnalytics, pb.GetAiAnalyticsRequest),
    ]
    for rpc, kind in calls:
        error = await failure(rpc(kind(**period(0, 1000))))
        assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "SALON_NOT_FOUND")
    await salon(stack)
    for rpc, kind in calls:
        assert (await rpc(kind(**period(0, 1000)))).HasField("as_of")


async def test_the_statistics_of_a_salon_are_one_statement(database_url: str, redis_url: str) -> None:
    async with quiet(database_url, redis_url) as stack:
        await salon(stack)
        await warm(stack.stats.GetSalonStats, pb.GetSalonStatsRequest(**period(0, 999)))  # the tag is known from now on
        before = await executed(stack, "stats")
        await fresh(stack.stats.GetSalonStats, pb.GetSalonStatsRequest(**period(0, 1000)))
        assert await executed(stack, "stats") == before + 1


async def test_a_salon_write_invalidates_the_statistics_and_a_message_does_not(stack: Stack) -> None:
    await salon(stack)
    request = pb.GetSalonStatsRequest(**period(0, 5_000))
    before = await warm(stack.stats.GetSalonStats, request)
    conversation_id = (
        await stack.messaging.RecordMessage(message_request(send_time=Timestamp(seconds=1)))
    ).conversation_id
    close: Fields = {"salon_id": SALON, "phone_number": PHONE, "status": 2}
    await stack.messaging.UpdateConversationStatus(messaging_pb2.UpdateConversationStatusRequest(**close))
    ai_message: Fields = {"salon_id": SALON, "conversation_id": conversation_id, "model": "m", "role": 2}
    await stack.messaging.RecordAiMessage(messaging_pb2.RecordAiMessageRequest(**ai_message))
    assert await cached(stack.stats.GetSalonStats(request)) == (before, "hit")
    await salon(stack, time_zone="Asia/Tokyo")
    after = await fresh(stack.stats.GetSalonStats, request)
    assert after.as_of.ToNanoseconds() > before.as_of.ToNanoseconds()
    assert after.messages == 1
