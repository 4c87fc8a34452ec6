"""The statement of GetAiAnalytics."""

from collections.abc import Sequence
from typing import Any

from psycopg import AsyncConnection

from libs.messages import SNAPSHOT_XMIN, Loaded, unnest
from libs.server import RpcError
from parlor.stats.v1.stats_pb2 import AiAnalytics
from services.stats.hours import ROLLED, after_hours, before_hours, in_hours
from services.stats.queries import (
    COST,
    PERIOD,
    SALON,
    SUM,
    TYPES,
    Buckets,
    bucket_end,
    bucket_of,
    bucket_start,
    counted,
    in_period,
)


def _json_time(moment: str) -> str:
    """Return a moment as the JSON of a Timestamp's fields."""
    micros = f"(extract(epoch FROM {moment}) * 1000000)::bigint"
    return f"jsonb_build_object('seconds', {micros} / 1000000, 'nanos', {micros} % 1000000 * 1000)"


_LAST_MOMENT = "(hour + interval '1 hour' - interval '1 us')"
_USAGE = "prompt_tokens, completion_tokens, cost_micros, latency_ms"
_AI_MESSAGE = f"""
    {bucket_of("created_at")} AS bucket, model,
    CASE WHEN cost_micros > 0 THEN currency_code ELSE '' END AS currency_code, 1 AS messages, {_USAGE},
    latency_ms AS max_latency_ms FROM ai_messages"""
AI_ANALYTICS = f"""
    SELECT xmin, place, s.salon_id, {PERIOD}, coalesce(m.models, '[]') AS models,
        coalesce(m.buckets, '[]') AS buckets, now() AS as_of
    FROM {SNAPSHOT_XMIN}, {unnest(TYPES, Buckets._fields)}, {SALON}
    CROSS JOIN {ROLLED}
    CROSS JOIN LATERAL (
        WITH read_as_rows AS MATERIALIZED (
            SELECT date_bin('1 hour', created_at, 'epoch') AS hour FROM ai_message_changes
            WHERE {in_hours("created_at")}
            UNION SELECT hour FROM ai_message_hours
            WHERE {in_hours("hour")} AND {bucket_of("hour")} <> {bucket_of(_LAST_MOMENT)}
        ), part AS MATERIALIZED (
            SELECT {bucket_of("hour")} AS bucket, model, currency_code, messages, {_USAGE}, max_latency_ms
            FROM ai_message_hours
            WHERE {in_hours("hour")} AND messages > 0 AND hour NOT IN (SELECT hour FROM read_as_rows)
            UNION ALL SELECT {_AI_MESSAGE} WHERE {before_hours("created_at")}
            UNION ALL SELECT {_AI_MESSAGE} WHERE {after_hours("created_at")}
            UNION ALL SELECT of_hour.* FROM read_as_rows CROSS JOIN LATERAL (
                SELECT {_AI_MESSAGE}
                WHERE {in_hours("created_at")} AND created_at >= hour AND created_at < hour + interval '1 hour' OFFSET 0
            ) AS of_hour
        ), of_currency AS (
            SELECT model, sum(messages) AS messages, currency_code, {SUM.format("cost_micros")} AS cost,
                sum(prompt_tokens) AS prompt_tokens, sum(completion_tokens) AS completion_tokens,
                sum(latency_ms) AS latency_ms, max(max_latency_ms) AS max_latency_ms
            FROM part GROUP BY model, currency_code
        ), bucket_currency AS (
            SELECT bucket, currency_code, sum(messages) AS messages, {SUM.format("cost_micros")} AS cost,
                sum(prompt_tokens) AS prompt_tokens, sum(completion_tokens) AS completion_tokens
            FROM part GROUP BY bucket, currency_code
        ), of_booking AS (
            SELECT model, count(DISTINCT booking_code) AS bookings FROM ai_messages
            WHERE {in_period("created_at")} AND booking_code IS NOT NULL GROUP BY model
        ), of_bucket AS (
            SELECT bucket, jsonb_build_object(
                'start_time', {_json_time(bucket_start())}, 'end_time', {_json_time(bucket_end())},
                'messages', sum(messages)::bigint, 'prompt_tokens', {SUM.format("prompt_tokens")},
                'completion_tokens', {SUM.format("completion_tokens")},
                'costs', coalesce(jsonb_agg({COST} ORDER BY currency_code) FILTER (WHERE cost > 0), '[]')
            ) AS usage
            FROM bucket_currency GROUP BY bucket
        ), of_model AS (
            SELECT model, jsonb_build_object(
                'model', model, 'messages', sum(messages)::bigint,
                'bookings', coalesce((SELECT bookings FROM of_booking AS b WHERE b.model = c.model), 0),
                'prompt_tokens', {SUM.format("prompt_tokens")}, 'completion_tokens', {SUM.format("completion_tokens")},
                'costs', coalesce(jsonb_agg({COST} ORDER BY currency_code) FILTER (WHERE cost > 0), '[]'),
                'average_latency_ms', round(sum(latency_ms) / sum(messages), 2), 'max_latency_ms', max(max_latency_ms)
            ) AS usage
            FROM of_currency AS c GROUP BY model
        )
        SELECT (SELECT jsonb_agg(usage ORDER BY model) FROM of_model) AS models,
            (SELECT jsonb_agg(usage ORDER BY bucket) FROM of_bucket) AS buckets
    ) AS m"""


async def ai_analytics(conn: AsyncConnection[Any], buckets: Sequence[Buckets]) -> list[Loaded[bytes | RpcError]]:
    """Count the AI messages of each period, their tokens and cost, by model and by bucket; empty buckets are left out.

    By model also their latency and the bookings they led to.

    Hours with a change since they were summed are read as rows, and those in which a bucket ends, which is so in time
    zones whose offset is no whole hour.
    Source: report, "AI Message Indexes" 12; indexes ai_message_hours_pkey, idx_ai_message_changes_salon_created,
    idx_ai_messages_salon_booking; before and after the whole hours idx_ai_messages_salon_created.
    """
    return await counted(conn, AiAnalytics, AI_ANALYTICS, buckets)
