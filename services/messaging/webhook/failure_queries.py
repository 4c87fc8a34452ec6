"""The statements on webhook items that could not be recorded."""

import json
from collections.abc import Sequence
from typing import Any

from psycopg import AsyncConnection

from libs.db import Statement
from libs.messages import fetch_encoded
from libs.server import Page
from parlor.messaging.v1.messaging_pb2 import WebhookFailure
from services.messaging.webhook.change import Failure


def insert_failures(salon_id: str, phone_number_id: str, failures: Sequence[Failure]) -> Statement[set[bytes]]:
    """Store the failures that are not stored yet; return the digest of each.

    They belong to a salon or, if its id is "", to a phone_number_id that belongs to no salon.
    Source: index webhook_failures_digest_key.
    """
    query = """
        INSERT INTO webhook_failures (salon_id, phone_number_id, digest, kind, reason, item, phone_number, user_id)
        SELECT DISTINCT ON (digest) %(salon_id)s::text, %(phone_number_id)s::text, decode(digest, 'hex'), kind, reason,
            item, phone_number, user_id
        FROM json_to_recordset(%(failures)s::json) AS given (digest text, kind text, reason text, item text,
            phone_number text, user_id text)
        ORDER BY digest
        ON CONFLICT ON CONSTRAINT webhook_failures_digest_key DO NOTHING
        RETURNING digest"""
    rows = [
        {
            "digest": failure.digest.hex(),
            "kind": failure.kind,
            "reason": failure.reason,
            "item": failure.item,
            "phone_number": failure.phone_number,
            "user_id": failure.user_id,
        }
        for failure in failures
    ]
    params = {"salon_id": salon_id, "phone_number_id": phone_number_id, "failures": json.dumps(rows)}
    return Statement(query, params, lambda _, rows: {digest for (digest,) in rows})


async def list_failures(conn: AsyncConnection[Any], salon_id: str, page: Page) -> list[bytes]:
    """Return up to one failure more than the page holds, newest first.

    Source: index idx_webhook_failures_salon_created.
    """
    after = (
        " AND (created_at, webhook_failure_id) < (timestamptz 'epoch' + %(after)s * interval '1 us', %(id)s::uuid)"
        if page.after_id
        else ""
    )
    query = f"""
        SELECT webhook_failure_id::text, salon_id, 'WEBHOOK_ITEM_KIND_' || kind AS kind, reason, item AS raw_json,
            created_at AS create_time, phone_number_id
        FROM webhook_failures WHERE salon_id = %(salon_id)s{after}
        ORDER BY created_at DESC, webhook_failures.webhook_failure_id DESC LIMIT %(rows)s"""
    return await fetch_encoded(conn, WebhookFailure, query, {"salon_id": salon_id} | page.params)
