"""`parlor maintain`: what the database needs from time to time. Each step may run at any time, beside the services."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import psycopg

from libs.db import split_pool_parameters
from services.messaging.rollup_queries import RollupBusy
from services.messaging.rollups import Connect, Rollups


class Outcome(NamedTuple):
    """What a step did: `details` for JSON, or why it failed; `text` for people."""

    step: str
    ok: bool
    text: str
    details: Mapping[str, Any]


async def advance_rollups(connect: Connect) -> tuple[str, Mapping[str, Any]]:
    """Sum messages, conversations and AI messages by hour, for statistics."""
    progress = await Rollups(connect).advance()
    text = f"rows older than {progress.sealed_to:%Y-%m-%d %H:%M:%S %Z} are summed, {progress.folded:,} deltas folded"
    return text, {"sealed_to": progress.sealed_to.isoformat(), "folded": progress.folded}


STEPS: Mapping[str, Callable[[Connect], Awaitable[tuple[str, Mapping[str, Any]]]]] = {"rollups": advance_rollups}


def maintain(database_url: str) -> list[Outcome]:
    """Run each step, also after one that fails, and return their outcomes. `database_url` is the owner's."""
    url, _ = split_pool_parameters(database_url)

    @asynccontextmanager
    async def connect() -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        async with await psycopg.AsyncConnection.connect(
            url, autocommit=True, prepare_threshold=None, application_name="parlor maintain"
        ) as conn:
            yield conn

    async def run() -> list[Outcome]:
        return [await _outcome(name, step, connect) for name, step in STEPS.items()]

    return asyncio.run(run())


async def _outcome(
    name: str, step: Callable[[Connect], Awaitable[tuple[str, Mapping[str, Any]]]], connect: Connect
) -> Outcome:
    try:
        text, details = await step(connect)
    except (psycopg.Error, RollupBusy) as error:
        text = " ".join(str(error).split())
        return Outcome(name, False, text, {"error": text})
    return Outcome(name, True, text, details)
