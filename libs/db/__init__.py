"""Pooled access to Postgres: settings, availability, timings, and rows that come out as bytes of protobuf messages."""

from libs.db.canary import OtherNumbering
from libs.db.connection import BEGIN, COMMIT, ROLLBACK, Connection, NotReplicated
from libs.db.database import Database, DatabaseUnavailable, PoolExhausted
from libs.db.encoding import elements, encode_row, encoder, prefix
from libs.db.fairness import FairLimit, for_searches, for_writes
from libs.db.history import History
from libs.db.queries import STATEMENT_LOST, Queries, SlowQuery
from libs.db.rows import (
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
from libs.db.settings import DatabaseSettings, split_pool_parameters
from libs.db.statement import Statement, nothing, records

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
    "Queries",
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
