"""`parlor maintain`: what the database needs from time to time. Each step may run at any time, beside the services."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

import psycopg
from psycopg import sql

from libs.db import split_pool_parameters
from ops.doctor import Limits
from ops.doctor.database import bloat, dead_rows, old_statistics
from ops.months import TableBusy, is_partitioned
from ops.partitioned_table import add_months
from ops.rollups import advance_rollups
from services.messaging.rollup_queries import RollupBusy

NAME = "parlor maintain"


class Outcome(NamedTuple):
    """What a step did: `details` for JSON, or why it failed; `text` for people."""

    step: str
    ok: bool
    text: str
    details: Mapping[str, Any]


Step = Callable[[str], Awaitable[tuple[str, Mapping[str, Any]]]]


async def sum_by_hour(url: str) -> tuple[str, Mapping[str, Any]]:
    """Sum messages, conversations and AI messages by hour, for statistics."""
    progress = await advance_rollups(url, NAME)
    text = f"rows older than {progress.sealed_to:%Y-%m-%d %H:%M:%S %Z} are summed, {progress.folded:,} deltas folded"
    return text, {"sealed_to": progress.sealed_to.isoformat(), "folded": progress.folded}


async def add_partitions(url: str) -> tuple[str, Mapping[str, Any]]:
    """If messages are partitioned, make partitions of the months ahead, and ANALYZE the whole: autovacuum does not."""

    def run() -> list[str] | None:
        with psycopg.connect(url, autocommit=True, prepare_threshold=None, application_name=NAME) as conn:
            if not is_partitioned(conn):
                return None
            made = add_months(conn)
            conn.execute("ANALYZE messages")
            return made

    made = await asyncio.to_thread(run)
    text = "messages are one table" if made is None else ", ".join(made) or "no month needs one"
    return text, {"partitions": made or []}


async def vacuum(url: str) -> tuple[str, Mapping[str, Any]]:
    """VACUUM and ANALYZE the tables of which `parlor doctor` says that they need it."""

    def run() -> list[str]:
        with psycopg.connect(url, autocommit=True, application_name=NAME) as conn:
            found = [finding.subject for check in (dead_rows, old_statistics) for finding in check(conn, Limits())]
            for table in dict.fromkeys(found):
                conn.execute(sql.SQL("VACUUM (ANALYZE) {}").format(sql.Identifier(table)))
        return sorted(set(found))

    tables = await asyncio.to_thread(run)
    return ", ".join(tables) or "no table needs it", {"tables": tables}


async def reindex(url: str) -> tuple[str, Mapping[str, Any]]:
    """Build the indexes anew of which `parlor doctor` says that they are bloated, while they are used."""

    def run() -> list[str]:
        with psycopg.connect(url, autocommit=True, application_name=NAME) as conn:
            found = [finding.subject for finding in bloat(conn, Limits()) if finding.check == "index bloat"]
            for index in found:  # quoted by Postgres
                conn.execute(f"REINDEX INDEX CONCURRENTLY {index}".encode())
        return sorted(found)

    indexes = await asyncio.to_thread(run)
    return ", ".join(indexes) or "no index needs it", {"indexes": indexes}


def maintain(database_url: str, *, with_reindex: bool = False) -> list[Outcome]:
    """Run each step, also after one that fails, and return their outcomes. `database_url` is the owner's."""
    url, _ = split_pool_parameters(database_url)
    steps: dict[str, Step] = {"rollups": sum_by_hour, "partitions": add_partitions, "vacuum": vacuum}
    if with_reindex:
        steps["reindex"] = reindex

    async def run() -> list[Outcome]:
        return [await _outcome(name, step, url) for name, step in steps.items()]

    return asyncio.run(run())


async def _outcome(name: str, step: Step, url: str) -> Outcome:
    try:
        text, details = await step(url)
    except (psycopg.Error, RollupBusy, TableBusy) as error:
        text = " ".join(str(error).split())
        return Outcome(name, False, text, {"error": text})
    return Outcome(name, True, text, details)
