"""Search of messages by their words, or by similar ones if no message has them.

The matches are ranked in blocks: the CANDIDATES newest, then those before them, and so on. To rank all matches of a
common word would read most messages of the salon.
"""

from typing import Any, NamedTuple

from psycopg import AsyncConnection

from libs.messages import SNAPSHOT_XMIN, Loaded, encode_repeated, encoder, fetch_raw
from libs.server import Page, RpcError, fitting
from libs.server.errors import invalid_fields
from parlor.messaging.v1.messaging_pb2 import Message, SearchMessagesResponse
from services.messaging.message_queries import MESSAGE
from services.messaging.snippets import snippets

CANDIDATES = 1000
# Added to the relevance in tokens of pages of similar words: above every relevance, below the limit of a token.
SIMILAR = 10**17
# The place before all messages of a block.
_FIRST = SIMILAR - 1, "ffffffff-ffff-ffff-ffff-ffffffffffff"
# The rank of a message; its last twelve digits are when it was sent, so that one number sorts by both.
RELEVANCE = "(ts_rank(search, query) * 10000)::bigint * 1000000000000 + floor(extract(epoch FROM created_at))::bigint"
QUERY = """message_query(coalesce((
    SELECT language FROM messages WHERE salon_id = %(salon_id)s ORDER BY created_at DESC LIMIT 1
), ''), %(query)s)"""
ESCAPED = "replace(replace(replace(content, '&', '&amp;'), '<', '&lt;'), '>', '&gt;')"
# Whether no index can answer a query. NULL for a query that is NULL.
OPEN = "(querytree(query) = 'T')"
# The newest period with messages in it, of those that meet a condition; see search_period in migration 0018.
_PERIOD = "SELECT search_period(max(created_at)) FROM messages WHERE salon_id = %(salon_id)s"
_PERIOD_START = "timestamptz 'epoch' + periods.period * interval '172800 s'"
# The index needs no times, but partitions by month do.
_IN_PERIOD = f"created_at >= {_PERIOD_START} AND created_at < {_PERIOD_START} + interval '172800 s'"
_BEFORE = "(created_at, message_id) < (timestamptz 'epoch' + %(before)s * interval '1 us', %(before_id)s::uuid)"


class Found(NamedTuple):
    """A page of messages that were found, and one more if there is one, with the relevance and the ID of each.

    `next_block`: the place before which the next block begins, None if this one is the last.
    """

    messages: list[bytes]
    places: list[tuple[int, str]]
    next_block: tuple[int, str] | None


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
        if found.messages or after:
            return Loaded(xmin, _response(page, found, 0))
    similar_xmin, found = await search_messages(conn, salon_id, query, page, similar=True)
    return Loaded(similar_xmin if after >= SIMILAR else xmin, _response(page, found or Found([], [], None), SIMILAR))


def _response(page: Page, found: Found, offset: int) -> bytes:
    shown = fitting(found.messages[: page.size])
    response = encode_repeated(shown)
    if len(found.messages) > len(shown):
        (relevance, message_id), block = found.places[len(shown) - 1], page.block
    elif found.next_block:
        (relevance, message_id), block = _FIRST, found.next_block
    else:
        return response
    token = page.token(offset + relevance, message_id, block=block)
    return response + SearchMessagesResponse(next_page_token=token).SerializeToString()


async def search_messages(
    conn: AsyncConnection[Any], salon_id: str, query: str, page: Page, *, similar: bool
) -> Loaded[Found | None]:
    """Return up to one message more than the page holds, best first, then newest; those with `similar` words if so.

    None if the query only excludes words, alone or after an `or`: every message would have to be read. The words are
    read in the language of the salon's newest message.
    Source: indexes idx_messages_salon_period_search, a look-up for each period until there are CANDIDATES,
    idx_messages_salon_created, messages_pkey; if `similar` also message_words_similar.
    """
    params = {"salon_id": salon_id, "query": query} | page.params
    if page.block:
        params |= {"before": page.block[0], "before_id": page.block[1]}
    statement = _statement(is_later=page.after_id is not None, has_block=page.block is not None, similar=similar)
    names, rows = await fetch_raw(conn, statement, params)
    (xmin, *_), (is_open, *_), (candidates, *_), (micros, *_), (last_id, *_), *columns, relevances = zip(
        *rows, strict=True
    )
    if is_open:
        return Loaded(xmin, None)
    next_block = (micros, last_id.decode()) if candidates == CANDIDATES else None
    if columns[0][0] is None:
        return Loaded(xmin, Found([], [], next_block))
    names, at = names[5:-1], names.index("snippet") - 5
    columns[at] = tuple(snippets(query, columns[names.index("content")], columns[at]))
    messages = encoder(Message, *names)(columns)
    places = [(relevance, message_id.decode()) for relevance, message_id in zip(relevances, columns[0], strict=True)]
    return Loaded(xmin, Found(messages, places, next_block))


def _statement(*, is_later: bool, has_block: bool, similar: bool) -> str:
    """Return the statement of a page, which is not the first if it `is_later`, and of a block besides the first.

    Its first columns are the xmin, whether the query is open, and the number of the block's candidates with the time
    and the ID of the oldest. Periods are read one by one, newest first, since each is a row of the outer query.
    """
    parsed = f"similar_query(%(salon_id)s, {QUERY})" if similar else QUERY
    after = "WHERE (relevance, message_id) < (%(after)s, %(id)s::uuid)" if is_later else ""
    of_block = f"AND {_BEFORE}" if has_block else ""
    newest = " AND created_at <= timestamptz 'epoch' + %(before)s * interval '1 us'" if has_block else ""
    return f"""
        WITH RECURSIVE parsed AS MATERIALIZED (SELECT {parsed} AS query),
        periods AS (
            SELECT ({_PERIOD}{newest}) AS period FROM parsed WHERE NOT {OPEN} AND numnode(query) > 0
            UNION ALL
            SELECT ({_PERIOD} AND created_at < {_PERIOD_START}) FROM periods WHERE period IS NOT NULL
        ), candidates AS MATERIALIZED (
            SELECT of_period.* FROM parsed, periods, LATERAL (
                SELECT message_id, created_at, search FROM messages
                WHERE salon_period(salon_id, search_period(created_at)) = salon_period(%(salon_id)s, period)
                    AND {_IN_PERIOD} AND search @@ query {of_block}
                ORDER BY created_at DESC, message_id DESC LIMIT {CANDIDATES}
            ) AS of_period LIMIT {CANDIDATES}
        ), found AS (
            SELECT * FROM (SELECT message_id, {RELEVANCE} AS relevance FROM parsed, candidates) AS ranked
            {after} ORDER BY relevance DESC, message_id DESC LIMIT %(rows)s
        )
        SELECT xmin, {OPEN} AS is_open, (SELECT count(*) FROM candidates) AS candidates,
            oldest.micros, oldest.message_id::text, page.*
        FROM parsed, {SNAPSHOT_XMIN} LEFT JOIN LATERAL (
            SELECT (extract(epoch FROM created_at) * 1000000)::bigint AS micros, message_id
            FROM candidates ORDER BY created_at, message_id LIMIT 1
        ) AS oldest ON true LEFT JOIN LATERAL (
            SELECT {MESSAGE}, {str(similar).lower()} AS similar,
                message_snippet(language, {ESCAPED}, query) AS snippet, relevance
            FROM (
                SELECT m.*, relevance FROM found JOIN messages AS m
                    ON m.salon_id = %(salon_id)s AND m.message_id = found.message_id
            ) AS messages
            ORDER BY relevance DESC, messages.message_id DESC
        ) AS page ON true"""
