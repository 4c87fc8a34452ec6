"""Pooled access to Postgres: settings, availability, timings."""

from libs.db.canary import OtherNumbering
from libs.db.connection import BEGIN, COMMIT, ROLLBACK, Connection, NotReplicated
from libs.db.fairness import FairLimit, for_searches, for_writes
from libs.db.history import History
from libs.db.pool import Database, DatabaseUnavailable, PoolExhausted
from libs.db.settings import DatabaseSettings, split_pool_parameters
from libs.db.statement import Statement, nothing, records
from libs.db.stats import STATEMENT_LOST, QueryStats, SlowQuery

__all__ = [
    "BEGIN",
    "COMMIT",
    "ROLLBACK",
    "STATEMENT_LOST",
    "Connection",
    "Database",
    "DatabaseSettings",
    "DatabaseUnavailable",
    "FairLimit",
    "History",
    "NotReplicated",
    "OtherNumbering",
    "PoolExhausted",
    "QueryStats",
    "SlowQuery",
    "Statement",
    "for_searches",
    "for_writes",
    "nothing",
    "records",
    "split_pool_parameters",
]
