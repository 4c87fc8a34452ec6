"""The inbox: lists of conversations, each with an excerpt of its last message."""

from collections.abc import Collection, Sequence
from functools import cache
from typing import Any, NamedTuple

from psycopg import AsyncConnection

from libs.messages import SNAPSHOT_XMIN, LoadedFor, encode_repeated, encoder, fetch_batch, text_array, unnest, where
from libs.server import Page, given, names_given
from parlor.messaging.v1 import messaging_pb2 as pb
from parlor.messaging.v1.messaging_pb2 import Conversation, LastMessage, ListConversationsResponse
from services.messaging.conversation_queries import CONVERSATION, NEWEST

LAST_MESSAGE = (
    "message_id::text, 'MESSAGE_DIRECTION_' || direction AS direction, 'MESSAGE_TYPE_' || type AS type,"
    " left(content, 160) AS content, 'MESSAGE_STATUS_' || status AS status, created_at AS create_time"
)
# How long until the next service window of the salon closes, in ms: a list by `service_window` is true for so long.
VALID_MS = """(
    SELECT floor(extract(epoch FROM min(service_window_expires_at) - now()) * 1000)::bigint FROM conversations
    WHERE salon_id = wanted.salon_id AND service_window_expires_at > now()
)"""
STATUSES = "'{ACTIVE,CLOSED,ARCHIVED}'"
# Filters with an index in the order of the list, and those that are looked up; see `_page_of_conversations`.
ORDERED = {"status", "unread_only", "assignee", "unassigned"}
LOOKED_UP = ("tags_any", "tags_all", "number")
FEW = 1000


class ConversationFilters(NamedTuple):
    """Which conversations of a salon to list; a filter that is empty or false is not applied.

    `statuses`, `tags_any` and `tags_all` are literals of a text[]. `service_window` is `open` or `closed`. `name` is a
    text whose words begin words of the customer's name, `number` the beginning of an E.164 number: one of them, if both
    are given.
    """

    salon_id: str
    status: str
    statuses: str
    tags_any: str
    tags_all: str
    unread_only: bool
    assignee: str
    unassigned: bool
    service_window: str
    name: str
    number: str


def conversation_filters(request: pb.ListConversationsRequest, number: str) -> ConversationFilters:
    """Return the filters of a request; `number` is its query as the beginning of a phone number, "" if it is none."""
    window = ("open" if request.window_open else "closed") if request.HasField("window_open") else ""
    return ConversationFilters(
        salon_id=request.salon_id,
        status=_bare(request.status) if request.status else "",
        statuses=_array([*map(_bare, request.statuses)]),
        tags_any=_array(request.tags_any),
        tags_all=_array((*request.tags_all, request.tag) if request.tag else request.tags_all),
        unread_only=request.unread_only,
        assignee=request.assignee,
        unassigned=request.unassigned,
        service_window=window,
        name=request.query,
        number=number,
    )


def _bare(status: pb.ConversationStatus.ValueType) -> str:
    return pb.ConversationStatus.Name(status).removeprefix("CONVERSATION_STATUS_")


def _array(values: Collection[str]) -> str:
    """Return the literal of a text[], "" for an empty one; the order and repeats don't count."""
    return text_array(sorted(set(values))) if values else ""


def statement_key(wanted: tuple[ConversationFilters, Page]) -> tuple[tuple[str, ...], str]:
    """Return what the text of a list's statement depends on: the names of its parameters, and the window."""
    return names_given(wanted), wanted[0].service_window


async def list_conversations(
    conn: AsyncConnection[Any], wanted: Sequence[tuple[ConversationFilters, Page]]
) -> list[LoadedFor[bytes]]:
    """Return a ListConversationsResponse for each page, newest activity first. All have the same filters.

    Source: report, "Conversation Indexes" 9; indexes idx_conversations_salon_tags,
    idx_conversations_salon_assignee_last, idx_conversations_salon_unassigned_last,
    idx_conversations_salon_unread_last, idx_conversations_salon_window, idx_conversations_salon_name,
    idx_conversations_salon_number, idx_conversations_salon_status_last; of the last messages
    idx_messages_conversation_created.
    """
    query = conversations_statement(*statement_key(wanted[0]))
    xmins, names, columns, slices = await fetch_batch(conn, query, list(map(given, wanted)))
    first, last = names.index("message_id"), names.index("valid_ms")
    conversations = encoder(Conversation, *names[:first])(columns[:first])
    messages = encoder(LastMessage, *names[first:last])(columns[first:last])
    found = []
    for place, (_, page) in enumerate(wanted):
        rows = slices[place]
        listed = [
            conversations[row] + _last_message(messages[row], columns[first][row])
            for row in range(rows.start, rows.stop)
            if columns[0][row] is not None
        ]
        response = page.fill(ListConversationsResponse, listed, "last_message_time", "conversation_id")
        found.append(LoadedFor(xmins[rows.start], response, columns[last][rows.start]))
    return found


def _last_message(message: bytes, message_id: bytes | None) -> bytes:
    """Return the field last_message, nothing if the conversation has no message."""
    return encode_repeated([message], Conversation.LAST_MESSAGE_FIELD_NUMBER) if message_id is not None else b""


@cache
def conversations_statement(names: tuple[str, ...], window: str) -> str:
    """Return the statement that lists conversations; `names` are those of its parameters."""
    types = {
        "salon_id": "text",
        "status": "text",
        "statuses": "text",
        "tags_any": "text",
        "tags_all": "text",
        "unread_only": "bool",
        "assignee": "text",
        "unassigned": "bool",
        "service_window": "text",
        "name": "text",
        "number": "text",
        "rows": "int",
        "after": "bigint",
        "id": "uuid",
    }
    return f"""
        SELECT xmin, place, page.*, last_message.*, {VALID_MS if window else "NULL::bigint"} AS valid_ms
        FROM {SNAPSHOT_XMIN}, {unnest(types, names)}
        LEFT JOIN LATERAL ({_page_of_conversations(names, window)}) AS page ON true
        LEFT JOIN LATERAL (
            SELECT {LAST_MESSAGE} FROM messages WHERE conversation_id = page.conversation_id::uuid
            ORDER BY created_at DESC, messages.message_id DESC LIMIT 1
        ) AS last_message ON true"""


def _page_of_conversations(names: tuple[str, ...], window: str) -> str:
    """Return the query of one page.

    A name is looked up. So are tags or a number that FEW conversations have; of many, a page in the order of the list
    is found sooner. Postgres can't know which: the plan does not depend on the arguments.
    """
    conditions = _conditions(window)
    looked_up = tuple(name for name in LOOKED_UP if name in names)
    if {"name", "number"} <= set(names):
        named = f"SELECT conversation_id FROM conversations WHERE {where(conditions, ('salon_id', 'name'))}"
        conditions["number"] = f"({conditions['number']} OR conversation_id = ANY (ARRAY({named})))"
        conditions["name"] = "true"
    elif "name" in names:
        looked_up = ("name",)
    if not looked_up:
        return _in_order(conditions, names, window)
    others = where(conditions, tuple(name for name in names if name not in looked_up))
    found = f"SELECT * FROM conversations WHERE {where(conditions, ('salon_id', *looked_up))}"
    if looked_up == ("name",):
        return f"""
        WITH found AS MATERIALIZED ({found})
        SELECT {CONVERSATION} FROM found AS conversations WHERE {others} {NEWEST} wanted.rows"""
    # IS TRUE: no index is used for the condition, only for the order.
    in_order = _in_order(conditions | {name: f"({conditions[name]}) IS TRUE" for name in looked_up}, names, window)
    return f"""
        WITH found AS MATERIALIZED ({found} LIMIT {FEW})
        (
            SELECT {CONVERSATION} FROM found AS conversations
            WHERE (SELECT count(*) FROM found) < {FEW} AND {others} {NEWEST} wanted.rows
        ) UNION ALL (
            SELECT * FROM ({in_order}) AS listed WHERE (SELECT count(*) FROM found) = {FEW}
        )"""


def _conditions(window: str) -> dict[str, str]:
    """Return the condition of each filter by name."""
    return {
        "salon_id": "salon_id = wanted.salon_id",
        "status": "status = wanted.status",
        "statuses": "status = ANY (wanted.statuses::text[])",
        "tags_any": "tags && wanted.tags_any::text[]",
        "tags_all": "tags @> wanted.tags_all::text[]",
        "unread_only": "unread_count > 0",
        "assignee": "assignee = wanted.assignee AND assignee <> ''",
        "unassigned": "assignee = ''",
        "service_window": {
            "open": "service_window_expires_at > now()",
            "closed": "(service_window_expires_at <= now()) IS NOT FALSE",  # or none has ever opened
        }.get(window, ""),
        "name": "customer_name <> '' AND name_vector(customer_name) @@ name_query(wanted.name)",
        # ':' follows '9'.
        "number": """phone_number COLLATE "C" >= wanted.number AND phone_number COLLATE "C" < wanted.number || ':'""",
        "after": (
            "(last_message_at, conversation_id) < (timestamptz 'epoch' + wanted.after * interval '1 us', wanted.id)"
        ),
    }


def _in_order(conditions: dict[str, str], names: tuple[str, ...], window: str) -> str:
    """Return the query of one page, read in the order of the list.

    Without a filter whose index has the order it takes a page of each status and merges them: the index has the order
    within each.
    """
    order = f"{NEWEST} wanted.rows"
    if window == "open" or ORDERED & set(names):
        return f"SELECT {CONVERSATION} FROM conversations WHERE {where(conditions, names)} {order}"
    by_status = conditions | {"statuses": "status = each.status"}
    listed = where(by_status, names if "statuses" in names else (*names, "statuses"))
    statuses = "wanted.statuses" if "statuses" in names else STATUSES
    return f"""
        SELECT page.* FROM unnest({statuses}::text[]) AS each (status), LATERAL (
            SELECT {CONVERSATION} FROM conversations WHERE {listed} {order}
        ) AS page
        ORDER BY page.last_message_time DESC, page.conversation_id::uuid DESC LIMIT wanted.rows"""
