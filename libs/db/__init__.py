"""Pooled access to Postgres, with failover, statistics and fair shares."""

from libs.db.connection import BEGIN, COMMIT, ROLLBACK, Connection, NotReplicated
from libs.db.fairness import FairLimit, for_searches, for_writes
from libs.db.history import History, OtherNumbering
from libs.db.pool import Database, DatabaseUnavailable, PoolExhausted
from libs.db.replica import Replica, ReplicaAway
from libs.db.settings import DatabaseSettings, split_pool_parameters
from libs.db.statement import Statement, json_rows, no_result
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
    "Replica",
    "ReplicaAway",
    "SlowQuery",
    "Statement",
    "for_searches",
    "for_writes",
    "json_rows",
    "no_result",
    "split_pool_parameters",
]
