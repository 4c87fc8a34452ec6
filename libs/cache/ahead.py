"""Loads ahead of the callers who will ask: what is hit and about to end."""

from libs.cache.keys import Key
from libs.cache.reply import Reply


def is_due(key: Key, reply: Reply) -> bool:
    """Say whether a hit is old enough to be loaded again behind its reply.

    That is at its share of the TTL or somewhat later (of 0.6 up to 0.72): each process has its own moment for each key,
    so that mostly one of them does it, and not for all keys at once.
    """
    ttl, share = key.group.namespace.ttl, key.group.namespace.refresh
    if share == 1 or reply.body is None or reply.age_ms < ttl * share * 1000:
        return False
    return reply.age_ms >= ttl * 1000 * share * (1 + (1 - share) / 2 * (hash(key.entry) % 256 / 256))
