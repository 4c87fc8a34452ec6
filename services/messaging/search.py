"""The RPC that finds messages by their words."""

from functools import partial
from typing import Any

from libs.cache import Reply, digest
from libs.messages import Loaded, encode_repeated
from libs.server import Page, RpcError, fitting, page
from libs.server.errors import invalid_fields
from parlor.messaging.v1 import messaging_pb2 as pb
from services.messaging import search_queries as queries
from services.messaging.rpcs import Rpcs

# Added to the number in the tokens of messages with similar words: above every relevance, below what a token may hold.
SIMILAR = 10**17


class SearchRpcs(Rpcs):
    """Messages, found by their words."""

    async def SearchMessages(self, request: pb.SearchMessagesRequest, context: Any) -> Reply:
        """Find messages by the words in them, or by similar ones."""
        salon_id = request.salon_id
        wanted = page(request.page_size, request.page_token, "SearchMessages", salon_id, request.query)

        async def load(conn: Any) -> Loaded[bytes | RpcError]:
            return await _search(conn, salon_id, request.query, wanted)

        key = self.tags.messages(salon_id).key("search", digest(wanted))
        return await self.cache.get(key, load, connect=partial(self.searches.connection, salon_id), repeatable=True)


async def _search(conn: Any, salon_id: str, query: str, wanted: Page) -> Loaded[bytes | RpcError]:
    """Return a page of the words, or of similar ones where the words find nothing; the xmin is the first look's."""
    after = wanted.after_micros or 0
    if after >= SIMILAR:
        further = wanted._replace(after_micros=after - SIMILAR)
        xmin, found = await queries.search_messages(conn, salon_id, query, further, similar=True)
        return Loaded(xmin, _response(wanted, found or [], SIMILAR))
    xmin, found = await queries.search_messages(conn, salon_id, query, wanted, similar=False)
    if found is None:
        return Loaded(xmin, invalid_fields([("query", "needs a word to look for besides what to leave out")]))
    if found or after:
        return Loaded(xmin, _response(wanted, found, 0))
    _, found = await queries.search_messages(conn, salon_id, query, wanted, similar=True)
    return Loaded(xmin, _response(wanted, found or [], SIMILAR))


def _response(wanted: Page, found: list[queries.Found], way: int) -> bytes:
    shown = fitting([one.message for one in found[: wanted.size]])
    response = encode_repeated(shown)
    if len(found) > len(shown):
        last = found[len(shown) - 1]
        token = wanted.token(way + last.relevance, last.message_id)
        response += pb.SearchMessagesResponse(next_page_token=token).SerializeToString()
    return response
