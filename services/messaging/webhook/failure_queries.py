"""The statements on webhook items that could not be recorded."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from psycopg import AsyncConnection

from libs.db import Statement
from libs.messages import fetch_encoded
from libs.server import Page, errors
from parlor.messaging.v1.messaging_pb2 import WebhookFailure
from services.messaging.erased_ids import WAMIDS, is_erased
from services.messaging.webhook.change import Failure


def insert_failures(salon_id: str, phone_number_id: str, failures: Sequence[Failure]) -> Statement[set[bytes]]:
    """Store the failures that are neither stored nor erased, and name no erased message; return the digest of each.

    Their times keep their order. They belong to a salon or, if its id is "", to a phone_number_id of no salon.
    Source: index webhook_failures_digest_key, and those of `is_erased`.
    """
    query = f"""
        INSERT INTO webhook_failures (salon_id, phone_number_id, digest, kind, reason, item, phone_number, user_id,
            created_at)
        SELECT DISTINCT ON (digest) %(salon_id)s::text, %(phone_number_id)s::text, decode(digest, 'hex'), kind, reason,
            item, phone_number, user_id, now() + place * interval '1 us'
        FROM json_to_recordset(%(failures)s::json) AS given (place int, digest text, kind text, reason text, item text,
            phone_number text, user_id text)
        WHERE NOT {is_erased("%(salon_id)s::text", "given.digest")} AND NOT EXISTS (
            SELECT FROM regexp_matches(item, {WAMIDS}, 'g') AS found WHERE {is_erased("%(salon_id)s::text", "found[1]")}
        )
        ORDER BY digest, place
        ON CONFLICT ON CONSTRAINT webhook_failures_digest_key DO NOTHING
        RETURNING digest"""
    rows = [
        {
            "place": place,
            "digest": failure.digest.hex(),
            "kind": failure.kind,
            "reason": failure.reason,
            "item": failure.item,
            "phone_number": failure.phone_number,
            "user_id": failure.user_id,
        }
        for place, failure in enumerate(failures)
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


class StoredFailure(NamedTuple):
    """A failure as it is stored; `phone_number` and `user_id` name the sender, "" if they are not known."""

    salon_id: str
    webhook_failure_id: str
    created_micros: int
    phone_number_id: str
    kind: str
    item: str
    digest: bytes
    phone_number: str
    user_id: str


async def failures_after(conn: AsyncConnection[Any], salon_id: str, page: Page) -> list[StoredFailure]:
    """Return up to one failure more than the page holds, oldest first.

    Source: index idx_webhook_failures_salon_created.
    """
    after = (
        " AND (created_at, webhook_failure_id) > (timestamptz 'epoch' + %(after)s * interval '1 us', %(id)s::uuid)"
        if page.after_id
        else ""
    )
    query = f"""
        SELECT salon_id, webhook_failure_id::text, (extract(epoch FROM created_at) * 1000000)::bigint,
            phone_number_id, kind, item, digest, coalesce(phone_number, ''), coalesce(user_id, '')
        FROM webhook_failures WHERE salon_id = %(salon_id)s{after}
        ORDER BY created_at, webhook_failures.webhook_failure_id LIMIT %(rows)s"""
    found = await conn.execute(query.encode(), {"salon_id": salon_id} | page.params)
    return [StoredFailure(*row) for row in await found.fetchall()]


def delete_failure(failure: StoredFailure) -> Statement[None]:
    """Delete a failure. Raises: CONFLICT if it is gone: it was replayed, or its customer was erased.

    Source: index webhook_failures_pkey.
    """
    query = """
        DELETE FROM webhook_failures WHERE salon_id = %(salon_id)s AND webhook_failure_id = %(id)s::uuid
        RETURNING webhook_failure_id"""

    def deleted(_: Sequence[str], rows: Sequence[Any]) -> None:
        if not rows:
            raise errors.conflict()

    return Statement(query, {"salon_id": failure.salon_id, "id": failure.webhook_failure_id}, deleted)
