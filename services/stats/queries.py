"""The statements of the stats service, one function each. All start from the salon: without it they have no row."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from google.protobuf.message import Message
from psycopg import AsyncConnection

from libs.db import STAMP, Loaded, elements, encoder, fetch_page, fetch_undecoded
from parlor.stats.v1.stats_pb2 import (
    AiAnalytics,
    BookingStats,
    ConversationStats,
    ListBookingStatsResponse,
    ListConversationStatsResponse,
    MessageDirectionStats,
    SalonStats,
)

# A sum as the proto can carry it.
SUM = "least(sum({}), 9223372036854775807)::bigint"
PERIOD = "%(start)s::timestamptz AS start_time, %(end)s::timestamptz AS end_time"
COST = "jsonb_build_object('currency_code', currency_code, 'cost_micros', cost)"


async def salon_stats(conn: AsyncConnection[Any], salon_id: str, start: datetime, end: datetime) -> Loaded[bytes]:
    """Count a period in one statement that reads indexes only, and no message's price but of those that have one.

    Raises: LookupError if there is no such salon.
    Source: report, "Raw SQL for Analytics"; indexes idx_bookings_salon_start, idx_messages_salon_created,
    idx_messages_salon_priced, idx_conversations_salon_started.
    """
    query = f"""
        SELECT stamp, s.salon_id, {PERIOD}, b.bookings, m.messages, c.conversations, p.costs, p.total_cost_micros,
            now() AS as_of
        FROM {STAMP} JOIN salons AS s ON s.salon_id = %(salon_id)s
        CROSS JOIN LATERAL (
            SELECT count(*) AS bookings FROM bookings
            WHERE salon_id = %(salon_id)s AND start_ts >= %(start)s AND start_ts < %(end)s
        ) AS b
        CROSS JOIN LATERAL (
            SELECT count(*) AS messages FROM messages
            WHERE salon_id = %(salon_id)s AND created_at >= %(start)s AND created_at < %(end)s
        ) AS m
        CROSS JOIN LATERAL (
            SELECT coalesce(jsonb_agg({COST} ORDER BY currency_code), '[]') AS costs,
                CASE WHEN count(*) <= 1 THEN coalesce(max(cost), 0) END AS total_cost_micros
            FROM (
                SELECT currency_code, {SUM.format("cost_micros")} AS cost FROM messages
                WHERE salon_id = %(salon_id)s AND created_at >= %(start)s AND created_at < %(end)s
                    AND cost_micros > 0
                GROUP BY currency_code
            ) AS of_currency
        ) AS p
        CROSS JOIN LATERAL (
            SELECT count(*) AS conversations FROM conversations
            WHERE salon_id = %(salon_id)s AND started_at >= %(start)s AND started_at < %(end)s
        ) AS c"""
    return await _one(conn, SalonStats, query, {"salon_id": salon_id, "start": start, "end": end})


async def message_direction_stats(
    conn: AsyncConnection[Any], salon_id: str, start: datetime, end: datetime
) -> Loaded[bytes]:
    """Count the messages of a period and their cost by direction.

    Raises: LookupError if there is no such salon.
    Source: report, "Direction statistics"; of a period index idx_messages_salon_created.
    """
    costs = f"coalesce(jsonb_agg({COST} ORDER BY currency_code) FILTER (WHERE direction = '{{}}' AND cost > 0), '[]')"
    count = "coalesce(sum(messages) FILTER (WHERE direction = '{}'), 0)::bigint"
    query = f"""
        SELECT stamp, s.salon_id, {PERIOD},
            {count.format("INBOUND")} AS inbound_messages, {count.format("OUTBOUND")} AS outbound_messages,
            {costs.format("INBOUND")} AS inbound_costs, {costs.format("OUTBOUND")} AS outbound_costs, now() AS as_of
        FROM {STAMP} JOIN salons AS s ON s.salon_id = %(salon_id)s
        LEFT JOIN LATERAL (
            SELECT direction, currency_code, count(*) AS messages, {SUM.format("cost_micros")} AS cost FROM messages
            WHERE salon_id = %(salon_id)s AND created_at >= %(start)s AND created_at < %(end)s
            GROUP BY direction, currency_code
        ) AS m ON true
        GROUP BY stamp, s.salon_id"""
    return await _one(conn, MessageDirectionStats, query, {"salon_id": salon_id, "start": start, "end": end})


async def ai_analytics(conn: AsyncConnection[Any], salon_id: str, start: datetime, end: datetime) -> Loaded[bytes]:
    """Count the AI messages of a period, their tokens, cost, latency and the bookings they led to, by model.

    Raises: LookupError if there is no such salon.
    Source: report, "AI Message Indexes" 12; index idx_ai_messages_salon_created.
    """
    query = f"""
        WITH of_booking AS (
            SELECT model, currency_code, booking_code, count(*) AS messages, sum(cost_micros) AS cost,
                sum(prompt_tokens) AS prompt_tokens, sum(completion_tokens) AS completion_tokens,
                sum(latency_ms) AS latency_ms, max(latency_ms) AS max_latency_ms
            FROM ai_messages WHERE salon_id = %(salon_id)s AND created_at >= %(start)s AND created_at < %(end)s
            GROUP BY model, currency_code, booking_code
        ), of_currency AS (
            SELECT model, sum(messages) AS messages, currency_code, {SUM.format("cost")} AS cost,
                sum(prompt_tokens) AS prompt_tokens, sum(completion_tokens) AS completion_tokens,
                sum(latency_ms) AS latency_ms, max(max_latency_ms) AS max_latency_ms
            FROM of_booking GROUP BY model, currency_code
        ), of_model AS (
            SELECT model, jsonb_build_object(
                'model', model, 'messages', sum(messages)::bigint,
                'bookings', (SELECT count(DISTINCT booking_code) FROM of_booking AS b WHERE b.model = c.model),
                'prompt_tokens', {SUM.format("prompt_tokens")}, 'completion_tokens', {SUM.format("completion_tokens")},
                'costs', coalesce(jsonb_agg({COST} ORDER BY currency_code) FILTER (WHERE cost > 0), '[]'),
                'average_latency_ms', round(sum(latency_ms) / sum(messages), 2), 'max_latency_ms', max(max_latency_ms)
            ) AS usage
            FROM of_currency AS c GROUP BY model
        )
        SELECT stamp, s.salon_id, {PERIOD},
            coalesce((SELECT jsonb_agg(usage ORDER BY model) FROM of_model), '[]') AS models, now() AS as_of
        FROM {STAMP} JOIN salons AS s ON s.salon_id = %(salon_id)s"""
    return await _one(conn, AiAnalytics, query, {"salon_id": salon_id, "start": start, "end": end})


async def booking_stats(
    conn: AsyncConnection[Any], salon_id: str, start: datetime, end: datetime, bucket: str
) -> Loaded[bytes]:
    """Count the bookings created in each bucket of a period, by status; `bucket` is day, week or month.

    Raises: LookupError if there is no such salon.
    Source: report, "Daily booking analytics"; index idx_bookings_created.
    """
    statuses = ", ".join(
        f"count(*) FILTER (WHERE status = '{name.upper()}') AS {name}"
        for name in ("pending", "confirmed", "cancelled", "completed", "no_show")
    )
    counted = f"count(*) AS bookings, {statuses}"
    columns = [field.name for field in BookingStats.DESCRIPTOR.fields][2:]
    query = _bucketed("bookings", "created_at", counted, columns)
    params = {"salon_id": salon_id, "start": start, "end": end, "bucket": bucket}
    return await _rows(conn, BookingStats, ListBookingStatsResponse, query, params)


async def conversation_stats(
    conn: AsyncConnection[Any], salon_id: str, start: datetime, end: datetime, bucket: str
) -> Loaded[bytes]:
    """Count the conversations started in each bucket of a period; `bucket` is day, week or month.

    Raises: LookupError if there is no such salon.
    Source: report, "Conversation Indexes" 10; index idx_conversations_salon_started.
    """
    query = _bucketed("conversations", "started_at", "count(*) AS conversations", ["conversations"])
    params = {"salon_id": salon_id, "start": start, "end": end, "bucket": bucket}
    return await _rows(conn, ConversationStats, ListConversationStatsResponse, query, params)


def _bucketed(table: str, time: str, counted: str, columns: Sequence[str]) -> str:
    """Return the statement that cuts a period by the salon's wall clock, empty buckets included."""
    filled = ", ".join(f"coalesce({column}, 0) AS {column}" for column in columns)
    return f"""
        WITH salon AS (
            SELECT stamp, time_zone FROM {STAMP} JOIN salons AS s ON s.salon_id = %(salon_id)s
        ), counted AS (
            SELECT date_trunc(%(bucket)s, {time} AT TIME ZONE time_zone) AS bucket, {counted}
            FROM {table}, salon
            WHERE salon_id = %(salon_id)s AND {time} >= %(start)s AND {time} < %(end)s
            GROUP BY 1
        )
        SELECT stamp, now() AS as_of,
            greatest({_first_moment("bucket")}, %(start)s) AS start_time,
            least({_first_moment("(bucket + ('1 ' || %(bucket)s)::interval)")}, %(end)s) AS end_time, {filled}
        FROM salon CROSS JOIN generate_series(
            date_trunc(%(bucket)s, %(start)s AT TIME ZONE time_zone),
            (%(end)s - interval '1 us') AT TIME ZONE time_zone,
            ('1 ' || %(bucket)s)::interval
        ) AS bucket LEFT JOIN counted USING (bucket)
        ORDER BY bucket"""


def _first_moment(wall_time: str) -> str:
    """Return the first moment of a wall time: AT TIME ZONE alone gives the second where clocks go back across it."""
    moment = f"({wall_time} AT TIME ZONE time_zone)"
    earlier = f"({moment} - interval '1 hour')"
    return f"CASE WHEN {earlier} AT TIME ZONE time_zone = {wall_time} THEN {earlier} ELSE {moment} END"


async def _one(conn: AsyncConnection[Any], kind: type[Message], query: str, params: dict[str, Any]) -> Loaded[bytes]:
    stamp, rows = await fetch_page(conn, kind, query, params)
    return Loaded(stamp, rows[0])


async def _rows(
    conn: AsyncConnection[Any], kind: type[Message], response: type[Message], query: str, params: dict[str, Any]
) -> Loaded[bytes]:
    """Return a response of the rows, whose first columns are the stamp and the moment."""
    names, rows = await fetch_undecoded(conn, query, params)
    if not rows:
        raise LookupError
    stamp, as_of = rows[0][:2]
    encode = encoder(kind, *names[2:])
    return Loaded(stamp, elements([encode(row[2:]) for row in rows]) + encoder(response, "as_of")([as_of]))
