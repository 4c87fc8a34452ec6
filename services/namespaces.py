"""The cache's namespaces: what is cached, and for how long."""

from libs.cache import Namespace

NAMESPACES = (
    Namespace.of("salon", 1800, near=True),
    Namespace.of("booking", 300, long_ttl=3600),
    Namespace.of("stats", 120, refresh=0.6),  # loaded again before they end: decision 0023
    Namespace.of("conversation", 300, long_ttl=3600),
    Namespace.of("messages", 180, long_ttl=3600),
    Namespace.of("aiAnalytics", 600, key="ai", refresh=0.6),
    Namespace.of("health", 30),
)
