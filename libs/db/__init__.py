"""Pooled access to Postgres: settings, availability, timings, and rows that come out as bytes of protobuf messages."""

from libs.db.connection import BEGIN, COMMIT, Connection
from libs.db.database import Database, DatabaseUnavailable, PoolExhausted
from libs.db.encoding import elements, encoder, prefix
from libs.db.queries import Queries, SlowQuery
from libs.db.rows import (
    STAMP,
    Loaded,
    fetch_all,
    fetch_encoded,
    fetch_one,
    fetch_page,
    fetch_returned,
    fetch_rows,
    fetch_stamped,
    fetch_undecoded,
    text_array,
)
from libs.db.settings import DatabaseSettings, split_pool_parameters
from libs.db.statement import Statement, nothing, records

__all__ = [
    "BEGIN",
    "COMMIT",
    "STAMP",
    "Connection",
    "Database",
    "DatabaseSettings",
    "DatabaseUnavailable",
    "Loaded",
    "PoolExhausted",
    "Queries",
    "SlowQuery",
    "Statement",
    "elements",
    "encoder",
    "fetch_all",
    "fetch_encoded",
    "fetch_one",
    "fetch_page",
    "fetch_returned",
    "fetch_rows",
    "fetch_stamped",
    "fetch_undecoded",
    "nothing",
    "prefix",
    "records",
    "split_pool_parameters",
    "text_array",
]
