"""The statements on webhook items that could not be recorded, one function each."""

from collections.abc import Sequence
from typing import Any

from psycopg import AsyncConnection

from libs.db import Statement, fetch_encoded
from libs.rpc import Page
from parlor.messaging.v1.messaging_pb2 import WebhookFailure
from services.messaging.webhook import Failure


def insert_failures(failures: Sequence[tuple[str, Failure]]) -> Statement[set[tuple[str, bytes]]]:
    """Keep the failures, each with its salon_id, that are not there yet; return the salon_id and digest of each.

    Source: index webhook_failures_digest_key.
    """
    query = """
        INSERT INTO webhook_failures (salon_id, digest, kind, reason, item, phone_number, user_id)
        SELECT DISTINCT ON (salon_id, digest) salon_id, digest, kind, reason, item, phone_number, user_id
        FROM unnest(%(salon_ids)s::text[], %(digests)s::bytea[], %(kinds)s::text[], %(reasons)s::text[],
            %(items)s::text[], %(phone_numbers)s::text[], %(user_ids)s::text[])
            AS given (salon_id, digest, kind, reason, item, phone_number, user_id)
        ORDER BY salon_id, digest
        ON CONFLICT ON CONSTRAINT webhook_failures_digest_key DO NOTHING
        RETURNING salon_id, digest"""
    params = {
        "salon_ids": [salon_id for salon_id, _ in failures],
        "digests": [failure.digest for _, failure in failures],
        "kinds": [failure.kind for _, failure in failures],
        "reasons": [failure.reason for _, failure in failures],
        "items": [failure.excerpt for _, failure in failures],
        "phone_numbers": [failure.phone_number for _, failure in failures],
        "user_ids": [failure.user_id for _, failure in failures],
    }
    return Statement(query, params, lambda _, rows: {(salon_id.decode(), digest) for salon_id, digest in rows})


async def list_failures(conn: AsyncConnection[Any], salon_id: str, page: Page) -> list[bytes]:
    """Return up to one failure more than the page has, newest first.

    Source: index idx_webhook_failures_salon_created.
    """
    after = (
        " AND (created_at, webhook_failure_id) < (timestamptz 'epoch' + %(after)s * interval '1 us', %(id)s::uuid)"
        if page.after_id
        else ""
    )
    query = f"""
        SELECT webhook_failure_id::text, salon_id, 'WEBHOOK_ITEM_KIND_' || kind AS kind, reason, item AS raw_json,
            created_at AS create_time
        FROM webhook_failures WHERE salon_id = %(salon_id)s{after}
        ORDER BY created_at DESC, webhook_failures.webhook_failure_id DESC LIMIT %(rows)s"""
    return await fetch_encoded(conn, WebhookFailure, query, {"salon_id": salon_id} | page.params)
