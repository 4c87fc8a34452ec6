"""Lists of messages, newest first, whose pages lead both ways."""

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any, NamedTuple

from psycopg import AsyncConnection

from libs.messages import SNAPSHOT_XMIN, Loaded, encode_repeated, encoder, fetch_batch, unnest, where
from libs.server import Page, RpcError, errors, fitting, given, names_given
from parlor.messaging.v1.messaging_pb2 import ListMessagesResponse, Message
from services.messaging.identity_queries import current_names
from services.messaging.message_queries import MESSAGE

_FILTERS = {
    "salon_id": "salon_id = wanted.salon_id",
    "conversation_id": "conversation_id = current.conversation_id",
    "phone_number": "phone_number = current.phone_number",
    "direction": "direction = wanted.direction",
    "after_time": "created_at > wanted.after_time",
    "before_time": "created_at < wanted.before_time",
}
_TYPES = {
    "salon_id": "text",
    "conversation_id": "uuid",
    "phone_number": "text",
    "direction": "text",
    "after_time": "timestamptz",
    "before_time": "timestamptz",
    "around": "uuid",
    "rows": "int",
    "after": "bigint",
    "before": "bigint",
    "id": "uuid",
}
_PLACE = "(created_at, messages.message_id)"
_OLDER = "ORDER BY created_at DESC, messages.message_id DESC LIMIT"
_NEWER = "ORDER BY created_at, messages.message_id LIMIT"


class MessageFilters(NamedTuple):
    """Which messages of a salon to list; an empty filter is not applied. Both times are exclusive.

    `around`: the page around the message with this ID, instead of the newest.
    """

    salon_id: str
    conversation_id: str
    phone_number: str
    direction: str
    after_time: datetime | None
    before_time: datetime | None
    around: str


async def list_messages(
    conn: AsyncConnection[Any], wanted: Sequence[tuple[MessageFilters, Page]]
) -> list[Loaded[bytes | RpcError]]:
    """Return a ListMessagesResponse for each page, or MESSAGE_NOT_FOUND. All pages have the same filters.

    What is read by a name that the conversation no longer has is not stored: a write invalidates those it has.
    Source: report, "Message Indexes" 5 to 7; indexes idx_messages_salon_created, idx_messages_conversation_created,
    idx_messages_phone_salon; of a page around a message also messages_pkey; of a name conversations_pkey,
    customer_identities_pkey.
    """
    query = messages_statement(names_given(wanted[0]))
    xmins, names, columns, slices = await fetch_batch(conn, query, list(map(given, wanted)))
    found, archived_before, is_newer, *message = columns
    messages = encoder(Message, *names[3:])(message)
    archived = encoder(ListMessagesResponse, "archived_before")([archived_before])
    replies: list[Loaded[bytes | RpcError]] = []
    for place, (filters, page) in enumerate(wanted):
        listed = range(slices[place].start, slices[place].stop)
        xmin = xmins[listed.start]
        if not found[listed.start]:
            error = errors.not_found("message", f"{filters.salon_id}/{filters.around}")
            replies.append(Loaded(xmin, error))
            continue
        rows = [row for row in listed if message[0][row] is not None]
        newer = [messages[row] for row in rows if is_newer[row]]
        older = [messages[row] for row in rows if not is_newer[row]]
        replies.append(Loaded(xmin, _response(filters, page, newer, older, archived[listed.start])))
    return replies


def _response(filters: MessageFilters, page: Page, newer: list[bytes], older: list[bytes], archived: bytes) -> bytes:
    """Return a page of the messages newer than its place, oldest first, and of those older, newest first.

    Each may have one more than the page holds. A page of large messages is shorter; around a message it then has those
    next to it. `archived` is the field archived_before, for the last page.
    """
    around = bool(filters.around)
    if archived and filters.after_time is not None:
        before = ListMessagesResponse.FromString(archived).archived_before.ToDatetime(UTC)
        archived = archived if filters.after_time < before else b""
    after = page.size // 2 if around else page.size
    shown_older = fitting(older[: page.size - page.size // 2 if around else page.size])
    shown_newer = fitting([*shown_older, *newer[:after]])[len(shown_older) :]
    shown = [*reversed(shown_newer), *shown_older]
    response = encode_repeated(shown)
    if not shown:
        return response + archived
    first, last = Message.FromString(shown[0]), Message.FromString(shown[-1])
    tokens = ListMessagesResponse()
    if len(older) > len(shown_older) or page.back:  # a page back was reached from an older one
        tokens.next_page_token = page.token(last.create_time, last.message_id)
    if len(newer) > len(shown_newer) or (page.after_id and not page.back):
        tokens.previous_page_token = page.token(first.create_time, first.message_id, back=True)
    return response + tokens.SerializeToString() + (b"" if tokens.next_page_token else archived)


@cache
def messages_statement(names: tuple[str, ...]) -> str:
    """Return the statement that lists messages; `names` are those of its parameters.

    Its first columns tell whether the message `around` exists, up to when messages were archived, and whether a row is
    newer than the page's place.
    """
    listed = f"{MESSAGE} FROM messages WHERE {where(_FILTERS, names)}"
    place = "(timestamptz 'epoch' + wanted.{} * interval '1 us', wanted.id)"
    found, anchor = "true", ""
    if "around" in names:
        found = "anchor.message_id IS NOT NULL"
        anchor = """LEFT JOIN LATERAL (
            SELECT created_at, message_id FROM messages
            WHERE salon_id = wanted.salon_id AND message_id = wanted.around LIMIT 1
        ) AS anchor ON true"""
        at = "(anchor.created_at, anchor.message_id)"
        page = f"""(SELECT true AS is_newer, {listed} AND {_PLACE} > {at} {_NEWER} (wanted.rows - 1) / 2 + 1)
            UNION ALL (SELECT false, {listed} AND {_PLACE} <= {at} {_OLDER} wanted.rows - (wanted.rows - 1) / 2)"""
    elif "before" in names:
        page = f"SELECT true AS is_newer, {listed} AND {_PLACE} > {place.format('before')} {_NEWER} wanted.rows"
    else:
        after = f"AND {_PLACE} < {place.format('after')}" if "after" in names else ""
        page = f"SELECT false AS is_newer, {listed} {after} {_OLDER} wanted.rows"
    current, xmin = current_names(names)
    return f"""
        SELECT {xmin} AS xmin, place, {found} AS found, (SELECT max(end_time) FROM message_archives), page.*
        FROM {SNAPSHOT_XMIN}, {unnest(_TYPES, names)}{current} {anchor}
        LEFT JOIN LATERAL ({page}) AS page ON true"""
