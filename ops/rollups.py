"""The job that advances the hourly sums, run outside the messaging service."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg

from services.messaging.rollups import Progress, Rollups


async def advance_rollups(url: str, application_name: str) -> Progress:
    """Sum messages, conversations and AI messages by hour. Raises: RollupBusy; psycopg.Error."""

    @asynccontextmanager
    async def connect() -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        async with await psycopg.AsyncConnection.connect(
            url, autocommit=True, prepare_threshold=None, application_name=application_name
        ) as conn:
            yield conn

    return await Rollups(connect).advance()
