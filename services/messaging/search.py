"""Search of messages by their words, or by similar ones if no message has them."""

from typing import Any, NamedTuple

from psycopg import AsyncConnection

from libs.messages import SNAPSHOT_XMIN, Loaded, encode_repeated, encoder, fetch_raw
from libs.server import Page, RpcError, fitting
from libs.server.errors import invalid_fields
from parlor.messaging.v1.messaging_pb2 import Message, SearchMessagesResponse
from services.messaging.message_queries import MESSAGE

# Added to the relevance in tokens of pages of similar words: above every relevance, below the limit of a token.
SIMILAR = 10**17
# The rank of a message; its last twelve digits are when it was sent, so that one number sorts by both.
RELEVANCE = "(ts_rank(search, query) * 10000)::bigint * 1000000000000 + floor(extract(epoch FROM created_at))::bigint"
QUERY = """message_query(coalesce((
    SELECT language FROM messages WHERE salon_id = %(salon_id)s ORDER BY created_at DESC LIMIT 1
), ''), %(query)s)"""
ESCAPED = "replace(replace(replace(content, '&', '&amp;'), '<', '&lt;'), '>', '&gt;')"
# Whether no index can answer a query. NULL for a query that is NULL.
OPEN = "(querytree(query) = 'T')"


class Found(NamedTuple):
    """A message that was found, with its id and its relevance."""

    relevance: int
    message_id: str
    message: bytes


async def search_page(conn: AsyncConnection[Any], salon_id: str, query: str, page: Page) -> Loaded[bytes | RpcError]:
    """Return a SearchMessagesResponse; the xmin is that of the first of two statements.

    If no message has the words of the query, the first page and those after it are of similar words.
    """
    after = page.after_micros or 0
    if after >= SIMILAR:
        page = page._replace(after_micros=after - SIMILAR)
    else:
        xmin, found = await search_messages(conn, salon_id, query, page, similar=False)
        if found is None:
            error = invalid_fields([("query", "needs a word to look for besides those to leave out")])
            return Loaded(xmin, error)
        if found or after:
            return Loaded(xmin, _response(page, found, 0))
    similar_xmin, found = await search_messages(conn, salon_id, query, page, similar=True)
    return Loaded(similar_xmin if after >= SIMILAR else xmin, _response(page, found or [], SIMILAR))


def _response(page: Page, found: list[Found], offset: int) -> bytes:
    shown = fitting([one.message for one in found[: page.size]])
    response = encode_repeated(shown)
    if len(found) > len(shown):
        last = found[len(shown) - 1]
        token = page.token(offset + last.relevance, last.message_id)
        response += SearchMessagesResponse(next_page_token=token).SerializeToString()
    return response


async def search_messages(
    conn: AsyncConnection[Any], salon_id: str, query: str, page: Page, *, similar: bool
) -> Loaded[list[Found] | None]:
    """Return up to one message more than the page holds, best first, then newest; those with `similar` words if so.

    None if the query only excludes words, alone or after an `or`: every message would have to be read. The words are
    read in the language of the salon's newest message.
    Source: indexes idx_messages_salon_search, idx_messages_salon_created; if `similar` also idx_messages_salon_words.
    """
    parsed = f"similar_query(%(salon_id)s, {QUERY})" if similar else QUERY
    after = " WHERE (relevance, message_id) < (%(after)s, %(id)s::uuid)" if page.after_id else ""
    statement = f"""
        WITH parsed AS MATERIALIZED (SELECT {parsed} AS query)
        SELECT xmin, {OPEN} AS is_open, page.*
        FROM parsed, {SNAPSHOT_XMIN} LEFT JOIN LATERAL (
            SELECT {MESSAGE}, message_snippet(language, {ESCAPED}, query) AS snippet, relevance
            FROM (
                SELECT * FROM (
                    SELECT m.*, query, {RELEVANCE} AS relevance FROM parsed, messages AS m
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
