"""The statements of the stats service.

Each counts many periods at once. A period of a salon that does not exist has no row and is answered SALON_NOT_FOUND.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from google.protobuf.message import Message
from psycopg import AsyncConnection

from libs.messages import NOT_STORED, SNAPSHOT_XMIN, Loaded, encode_repeated, encoder, fetch_batch, fetch_pages, unnest
from libs.server import RpcError
from libs.server.errors import not_found
from parlor.stats.v1.stats_pb2 import (
    BookingStats,
    ConversationStats,
    ListBookingStatsResponse,
    ListConversationStatsResponse,
    MessageDirectionStats,
    SalonStats,
)
from services.stats.hours import (
    ROLLED,
    after_hours,
    before_hours,
    in_hours,
    quarters_after_hours,
    quarters_before_hours,
)

# A sum that fits the proto's int64.
SUM = "least(sum({}), 9223372036854775807)::bigint"
COST = "jsonb_build_object('currency_code', currency_code, 'cost_micros', cost)"
TYPES = {"salon_id": "text", "start_time": "timestamptz", "end_time": "timestamptz", "bucket": "text"}


class Period(NamedTuple):
    """A period of a salon, from `start_time` to `end_time`, exclusive."""

    salon_id: str
    start_time: datetime
    end_time: datetime


class Buckets(NamedTuple):
    """A period of a salon in buckets: `bucket` is day, week or month."""

    salon_id: str
    start_time: datetime
    end_time: datetime
    bucket: str


# With LIMIT, Postgres reads each salon by salons_pkey; a plain join may read all salons.
SALON = "LATERAL (SELECT salon_id, time_zone FROM salons WHERE salon_id = wanted.salon_id LIMIT 1) AS s"
PERIODS = f"{SNAPSHOT_XMIN}, {unnest(TYPES, Period._fields)}, {SALON}"
PERIOD = "wanted.start_time, wanted.end_time"


def in_period(time: str) -> str:
    """Return the condition for rows of the wanted period."""
    return f"salon_id = wanted.salon_id AND {time} >= wanted.start_time AND {time} < wanted.end_time"


# An index alone counts them; a condition on `counted` would read the rows.
_COUNTED = """(SELECT count(*) FROM messages WHERE {rows})
                    - (SELECT count(*) FROM messages WHERE {rows} AND NOT counted)"""
SALON_STATS = f"""
    SELECT xmin, place, s.salon_id, {PERIOD}, b.bookings, m.messages, c.conversations, m.costs, m.total_cost_micros,
        now() AS as_of
    FROM {PERIODS}
    CROSS JOIN {ROLLED}
    CROSS JOIN LATERAL (SELECT count(*) AS bookings FROM bookings WHERE {in_period("start_ts")}) AS b
    CROSS JOIN LATERAL (
        SELECT coalesce(sum(messages), 0)::bigint AS messages,
            coalesce(jsonb_agg({COST} ORDER BY currency_code) FILTER (WHERE cost > 0), '[]') AS costs,
            CASE WHEN count(*) FILTER (WHERE cost > 0) <= 1 THEN coalesce(max(cost), 0) END AS total_cost_micros
        FROM (
            SELECT currency_code, sum(messages) AS messages, {SUM.format("cost_micros")} AS cost
            FROM (
                SELECT currency_code, messages, cost_micros FROM message_hours WHERE {in_hours("hour")}
                UNION ALL SELECT currency_code, messages, cost_micros FROM message_deltas WHERE {in_hours("created_at")}
                UNION ALL SELECT '', {_COUNTED.format(rows=before_hours("created_at"))}, 0
                UNION ALL SELECT '', {_COUNTED.format(rows=after_hours("created_at"))}, 0
                UNION ALL SELECT currency_code, 0, cost_micros FROM messages
                WHERE {before_hours("created_at")} AND cost_micros > 0
                UNION ALL SELECT currency_code, 0, cost_micros FROM messages
                WHERE {after_hours("created_at")} AND cost_micros > 0
                UNION ALL SELECT currency_code, messages, cost_micros FROM message_quarters
                WHERE {quarters_before_hours()}
                UNION ALL SELECT currency_code, messages, cost_micros FROM message_quarters
                WHERE {quarters_after_hours()}
            ) AS part
            GROUP BY currency_code
        ) AS of_currency
    ) AS m
    CROSS JOIN LATERAL (
        SELECT coalesce(sum(conversations), 0)::bigint AS conversations FROM (
            SELECT conversations FROM conversation_hours WHERE {in_hours("hour")}
            UNION ALL SELECT conversations FROM conversation_deltas WHERE {in_hours("started_at")}
            UNION ALL SELECT count(*) FROM conversations WHERE {before_hours("started_at")}
            UNION ALL SELECT count(*) FROM conversations WHERE {after_hours("started_at")}
        ) AS part
    ) AS c"""


async def salon_stats(conn: AsyncConnection[Any], periods: Sequence[Period]) -> list[Loaded[bytes | RpcError]]:
    """Count the bookings, messages, costs and new conversations of each period, by index-only scans.

    Source: report, "Raw SQL for Analytics"; indexes idx_bookings_salon_start, message_hours_pkey,
    idx_message_deltas_salon_created, conversation_hours_pkey, idx_conversation_deltas_salon_started; before and after
    the whole hours idx_messages_salon_created, idx_messages_salon_uncounted, idx_messages_salon_priced,
    idx_conversations_salon_started.
    """
    return await counted(conn, SalonStats, SALON_STATS, periods)


_COSTS = f"coalesce(jsonb_agg({COST} ORDER BY currency_code) FILTER (WHERE direction = '{{}}' AND cost > 0), '[]')"
_COUNT = "coalesce(sum(messages) FILTER (WHERE direction = '{}'), 0)::bigint"
_MESSAGE = """direction, CASE WHEN cost_micros > 0 THEN currency_code ELSE '' END, counted::int, cost_micros
                FROM messages"""
MESSAGE_DIRECTION_STATS = f"""
    SELECT xmin, place, s.salon_id, {PERIOD}, m.*, now() AS as_of
    FROM {PERIODS}
    CROSS JOIN {ROLLED}
    CROSS JOIN LATERAL (
        SELECT {_COUNT.format("INBOUND")} AS inbound_messages, {_COUNT.format("OUTBOUND")} AS outbound_messages,
            {_COSTS.format("INBOUND")} AS inbound_costs, {_COSTS.format("OUTBOUND")} AS outbound_costs
        FROM (
            SELECT direction, currency_code, sum(messages) AS messages, {SUM.format("cost_micros")} AS cost
            FROM (
                SELECT direction, currency_code, messages, cost_micros FROM message_hours WHERE {in_hours("hour")}
                UNION ALL SELECT direction, currency_code, messages, cost_micros FROM message_deltas
                WHERE {in_hours("created_at")}
                UNION ALL SELECT {_MESSAGE} WHERE {before_hours("created_at")}
                UNION ALL SELECT {_MESSAGE} WHERE {after_hours("created_at")}
                UNION ALL SELECT direction, currency_code, messages, cost_micros FROM message_quarters
                WHERE {quarters_before_hours()}
                UNION ALL SELECT direction, currency_code, messages, cost_micros FROM message_quarters
                WHERE {quarters_after_hours()}
            ) AS part
            GROUP BY direction, currency_code
        ) AS of_direction
    ) AS m"""


async def message_direction_stats(
    conn: AsyncConnection[Any], periods: Sequence[Period]
) -> list[Loaded[bytes | RpcError]]:
    """Count the messages of each period and their cost by direction.

    Source: report, "Direction statistics"; indexes message_hours_pkey, idx_message_deltas_salon_created; before and
    after the whole hours idx_messages_salon_created.
    """
    return await counted(conn, MessageDirectionStats, MESSAGE_DIRECTION_STATS, periods)


def _bucketed(table: str, time: str, counted: Mapping[str, str]) -> str:
    """Return the statement that counts in buckets of the salon's wall clock, including empty ones.

    `counted` has the aggregate of each column.
    """
    filled = ", ".join(f"coalesce({column}, 0) AS {column}" for column in counted)
    counts = ", ".join(f"{count} AS {column}" for column, count in counted.items())
    return f"""
        SELECT xmin, place, now() AS as_of, buckets.*
        FROM {SNAPSHOT_XMIN}, {unnest(TYPES, Buckets._fields)}, {SALON}
        CROSS JOIN LATERAL (
            SELECT {bucket_start()} AS start_time, {bucket_end()} AS end_time, {filled}
            FROM generate_series(
                {bucket_of("wanted.start_time")},
                (wanted.end_time - interval '1 us') AT TIME ZONE time_zone,
                ('1 ' || wanted.bucket)::interval
            ) AS bucket LEFT JOIN (
                SELECT {bucket_of(time)} AS bucket, {counts}
                FROM {table} WHERE {in_period(time)}
                GROUP BY 1
            ) AS counted USING (bucket)
            ORDER BY bucket
        ) AS buckets"""


def bucket_of(time: str) -> str:
    """Return the wall time at which the bucket of a moment begins."""
    return f"date_trunc(wanted.bucket, {time} AT TIME ZONE time_zone)"


def bucket_start() -> str:
    """Return the start of a bucket in its period."""
    return f"greatest({_first_moment('bucket')}, wanted.start_time)"


def bucket_end() -> str:
    """Return the end of a bucket in its period."""
    next_bucket = "(bucket + ('1 ' || wanted.bucket)::interval)"
    return f"least({_first_moment(next_bucket)}, wanted.end_time)"


def _first_moment(wall_time: str) -> str:
    """Return the first moment with a wall time: AT TIME ZONE returns the second one when clocks are set back."""
    moment = f"({wall_time} AT TIME ZONE time_zone)"
    earlier = f"({moment} - interval '1 hour')"
    return f"CASE WHEN {earlier} AT TIME ZONE time_zone = {wall_time} THEN {earlier} ELSE {moment} END"


BOOKING_STATS = _bucketed(
    "bookings",
    "created_at",
    {"bookings": "count(*)"}
    | {
        status: f"count(*) FILTER (WHERE status = '{status.upper()}')"
        for status in ("pending", "confirmed", "cancelled", "completed", "no_show", "expired")
    },
)
CONVERSATION_STATS = _bucketed("conversations", "started_at", {"conversations": "count(*)"})


async def booking_stats(conn: AsyncConnection[Any], buckets: Sequence[Buckets]) -> list[Loaded[bytes | RpcError]]:
    """Count the bookings created in each bucket of each period, by status.

    Source: report, "Daily booking analytics"; index idx_bookings_created.
    """
    return await _listed(conn, BookingStats, ListBookingStatsResponse, BOOKING_STATS, buckets)


async def conversation_stats(conn: AsyncConnection[Any], buckets: Sequence[Buckets]) -> list[Loaded[bytes | RpcError]]:
    """Count the conversations started in each bucket of each period.

    Source: report, "Conversation Indexes" 10; index idx_conversations_salon_started.
    """
    return await _listed(conn, ConversationStats, ListConversationStatsResponse, CONVERSATION_STATS, buckets)


async def counted(
    conn: AsyncConnection[Any], kind: type[Message], query: str, periods: Sequence[Period | Buckets]
) -> list[Loaded[bytes | RpcError]]:
    """Return the one row of each period as a message."""
    lists = await fetch_pages(conn, kind, query, [period._asdict() for period in periods])
    return [
        Loaded(xmin, rows[0] if rows else not_found("salon", period.salon_id))
        for period, (xmin, rows) in zip(periods, lists, strict=True)
    ]


async def _listed(
    conn: AsyncConnection[Any], kind: type[Message], response: type[Message], query: str, buckets: Sequence[Buckets]
) -> list[Loaded[bytes | RpcError]]:
    """Return the rows of each period as a response; their first column is as_of."""
    xmins, names, columns, slices = await fetch_batch(conn, query, [period._asdict() for period in buckets])
    xmin = max(xmins, default=NOT_STORED)
    rows = encoder(kind, *names[1:])(columns[1:]) if columns else []
    as_of = encoder(response, "as_of")([columns[0][:1]])[0] if columns else b""
    return [
        Loaded(
            xmin,
            encode_repeated(rows[slices[place]]) + as_of if place in slices else not_found("salon", period.salon_id),
        )
        for place, period in enumerate(buckets)
    ]
