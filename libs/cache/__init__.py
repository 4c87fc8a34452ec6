"""A cache in front of Postgres that is never stale, on Redis or Valkey.

It knows no table but its own (`cache_outbox`) and no kind of value: whoever has rows in Postgres can use it.

    cache = Cache(CacheSettings(), pool.connection, encode=str.encode)
    await cache.open()
    booking = cache.namespace("booking").tag("salon-123", "salon:")

    reply = await cache.get(booking.key("today"), load)       # load(conn) returns a value with its xmin
    async with cache.transaction(booking) as write:            # commits at the end; no read after it is older
        await write.conn.execute("UPDATE ...")
"""

from libs.cache.cache import Cache, CacheUnavailable
from libs.cache.keys import Key, Namespace, Tag, digest
from libs.cache.reply import MAX_AGE, LoadMany, LoadResult, Read, Reply
from libs.cache.settings import NAMESPACES, CacheSettings, WithoutRedis
from libs.cache.statistics import drop, server_figures, sizes
from libs.cache.transaction import CommitUnknown, Transaction

__all__ = [
    "MAX_AGE",
    "NAMESPACES",
    "Cache",
    "CacheSettings",
    "CacheUnavailable",
    "CommitUnknown",
    "Key",
    "LoadMany",
    "LoadResult",
    "Namespace",
    "Read",
    "Reply",
    "Tag",
    "Transaction",
    "WithoutRedis",
    "digest",
    "drop",
    "server_figures",
    "sizes",
]
