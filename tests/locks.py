"""Locks that block the services."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import psycopg

Session: TypeAlias = psycopg.AsyncConnection[Any]

SALONS = "SELECT FROM salons FOR UPDATE"


@asynccontextmanager
async def holding(database_url: str, statement: str) -> AsyncIterator[Session]:
    """Hold the locks of a statement, in a transaction that is rolled back at the end."""
    async with await psycopg.AsyncConnection.connect(database_url) as conn:
        await conn.execute(statement.encode())
        yield conn
        await conn.rollback()


async def waiting(conn: Session, sessions: int = 1) -> None:
    """Wait until `sessions` sessions wait for a lock; give up after 20 s."""
    query = "SELECT count(DISTINCT pid) FROM pg_locks WHERE NOT granted"
    async with asyncio.timeout(20):
        while (await (await conn.execute(query)).fetchone() or [0])[0] != sessions:
            pass
