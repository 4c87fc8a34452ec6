"""A cache in front of Postgres, on Redis or Valkey, that is never stale. README.md has an example."""

from libs.cache.acl import acl_rules
from libs.cache.cache import Cache, CacheUnavailable
from libs.cache.keys import Key, Namespace, Tag, digest
from libs.cache.reply import MAX_AGE, LoadMany, LoadResult, Read, Reply
from libs.cache.settings import CacheSettings, WithoutRedis
from libs.cache.statistics import drop, server_figures, sizes
from libs.cache.transaction import CommitUnknown, Transaction

__all__ = [
    "MAX_AGE",
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
    "acl_rules",
    "digest",
    "drop",
    "server_figures",
    "sizes",
]
