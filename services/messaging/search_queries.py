"""The statements that find messages by their words."""

from typing import Any, NamedTuple

from psycopg import AsyncConnection

from libs.messages import SNAPSHOT_XMIN, Loaded, encoder, fetch_raw
from libs.server import Page
from parlor.messaging.v1.messaging_pb2 import Message
from services.messaging.message_queries import MESSAGE

# How well a message fits, with when it was sent in its last twelve digits: one number that sorts by both.
RELEVANCE = "(ts_rank(search, query) * 10000)::bigint * 1000000000000 + floor(extract(epoch FROM created_at))::bigint"
ASKED = """message_query(coalesce((
    SELECT language FROM messages WHERE salon_id = %(salon_id)s ORDER BY created_at DESC LIMIT 1
), ''), %(query)s)"""
ESCAPED = "replace(replace(replace(content, '&', '&amp;'), '<', '&lt;'), '>', '&gt;')"


# Whether a query can't be answered by an index. It is NULL for a query that is NULL.
OPEN = "(querytree(query) = 'T')"


class Found(NamedTuple):
    """A message that was found, its id, and how well it fits."""

    relevance: int
    message_id: str
    message: bytes


async def search_messages(
    conn: AsyncConnection[Any], salon_id: str, query: str, page: Page, *, similar: bool
) -> Loaded[list[Found] | None]:
    """Return up to one message more than the page has, best first, then newest; by words like those asked if `similar`.

    None if the query has nothing to look for: with nothing but `-word`, or that after an `or`, every message would have
    to be read. The words are understood in the language of the salon's newest message.
    Source: indexes idx_messages_salon_search, idx_messages_salon_created; if `similar` idx_messages_salon_words, too.
    """
    asked = f"similar_query(%(salon_id)s, {ASKED})" if similar else ASKED
    after = " WHERE (relevance, message_id) < (%(after)s, %(id)s::uuid)" if page.after_id else ""
    statement = f"""
        WITH asked AS MATERIALIZED (SELECT {asked} AS query)
        SELECT xmin, {OPEN} AS is_open, page.*
        FROM asked, {SNAPSHOT_XMIN} LEFT JOIN LATERAL (
            SELECT {MESSAGE}, message_snippet(language, {ESCAPED}, query) AS snippet, relevance
            FROM (
                SELECT * FROM (
                    SELECT m.*, query, {RELEVANCE} AS relevance FROM asked, messages AS m
                    WHERE NOT {OPEN} AND salon_id = %(salon_id)s AND search @@ query OFFSET 0
                ) AS ranked{after}
                ORDER BY relevance DESC, message_id DESC LIMIT %(rows)s
            ) AS found
            ORDER BY relevance DESC, found.message_id DESC
        ) AS page ON true"""
    names, rows = await fetch_raw(conn, statement, {"salon_id": salon_id, "query": query} | page.params)
    (xmin, *_), (is_open, *_), *columns, relevances = zip(*rows, strict=True)
    if is_open:
        return Loaded(xmin, None)
    if columns[0][0] is None:
        return Loaded(xmin, [])
    messages = encoder(Message, *names[2:-1])(columns)
    found = zip(relevances, columns[0], messages, strict=True)
    return Loaded(xmin, [Found(relevance, name.decode(), message) for relevance, name, message in found])
