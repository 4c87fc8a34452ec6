"""A run of the rollup job that stops at a point, where a test kills the process: `python -m tests.killed_rollup`.

Arguments: the database's URL and the point, for example `before commit 2`. Prints `stopped` there.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg

from services.messaging import rollup_queries
from services.messaging.rollups import Rollups
from tests.rollups import connecting

alone = rollup_queries.alone


async def main(database_url: str, point: str) -> None:
    """Run the job."""
    commits = 0

    async def stop_at(moment: str) -> None:
        if f"{moment} commit {commits}" == point:
            print("stopped", flush=True)
            await asyncio.Event().wait()

    @asynccontextmanager
    async def stopping(conn: psycopg.AsyncConnection[Any]) -> AsyncIterator[None]:
        nonlocal commits
        commits += 1
        async with alone(conn):
            yield
            await stop_at("before")
        await stop_at("after")

    rollup_queries.alone = stopping
    await Rollups(connecting(database_url)).advance(60)


asyncio.run(main(sys.argv[1], sys.argv[2]))
