"""Pooled access to Postgres: settings, availability, timings, and rows that come out as bytes of protobuf messages."""

from libs.db.canary import OtherNumbering
from libs.db.connection import BEGIN, COMMIT, ROLLBACK, Connection, NotReplicated
from libs.db.fairness import FairLimit, for_searches, for_writes
from libs.db.history import History
from libs.db.pool import Database, DatabaseUnavailable, PoolExhausted
from libs.db.settings import DatabaseSettings, split_pool_parameters
from libs.db.statement import Statement, nothing, records
from libs.db.stats import STATEMENT_LOST, QueryStats, SlowQuery
from libs.messages.encode import elements, encode_row, encoder, prefix
from libs.messages.fetch import (
    STAMP,
    Batch,
    Loaded,
    fetch_all,
    fetch_batch,
    fetch_encoded,
    fetch_one,
    fetch_pages,
    fetch_returned,
    fetch_rows,
    fetch_stamped,
    fetch_undecoded,
    text_array,
    unnest,
    where,
)

__all__ = [
    "BEGIN",
    "COMMIT",
    "ROLLBACK",
    "STAMP",
    "STATEMENT_LOST",
    "Batch",
    "Connection",
    "Database",
    "DatabaseSettings",
    "DatabaseUnavailable",
    "FairLimit",
    "History",
    "Loaded",
    "NotReplicated",
    "OtherNumbering",
    "PoolExhausted",
    "QueryStats",
    "SlowQuery",
    "Statement",
    "elements",
    "encode_row",
    "encoder",
    "fetch_all",
    "fetch_batch",
    "fetch_encoded",
    "fetch_one",
    "fetch_pages",
    "fetch_returned",
    "fetch_rows",
    "fetch_stamped",
    "fetch_undecoded",
    "for_searches",
    "for_writes",
    "nothing",
    "prefix",
    "records",
    "split_pool_parameters",
    "text_array",
    "unnest",
    "where",
]
