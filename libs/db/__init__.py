"""Pooled access to Postgres: settings, availability, timings, and rows that come out as protobuf messages."""

from libs.db.database import Connection, Database, DatabaseUnavailable, PoolExhausted
from libs.db.queries import Queries, SlowQuery
from libs.db.rows import STAMP, Loaded, fetch_all, fetch_one, fetch_page, fetch_returned, fetch_rows, fetch_stamped
from libs.db.settings import DatabaseSettings, split_pool_parameters

__all__ = [
    "STAMP",
    "Connection",
    "Database",
    "DatabaseSettings",
    "DatabaseUnavailable",
    "Loaded",
    "PoolExhausted",
    "Queries",
    "SlowQuery",
    "fetch_all",
    "fetch_one",
    "fetch_page",
    "fetch_returned",
    "fetch_rows",
    "fetch_stamped",
    "split_pool_parameters",
]
