"""Random writers, jobs and readers on the rows that statistics count."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import psycopg
from psycopg.errors import DeadlockDetected, SerializationFailure

from services.messaging.rollup_queries import FOLDS, RollupBusy, alone, fold_deltas
from services.messaging.rollups import Rollups
from services.stats.queries import Period
from tests.rollups import (
    INSERT_AI_MESSAGE,
    INSERT_MESSAGE,
    ZONES,
    connecting,
    connection,
    differences,
)

DAYS = 3  # of rows
LEVELS = ("READ COMMITTED",) * 3 + ("REPEATABLE READ", "SERIALIZABLE")
ONE_MESSAGE = "message_id = (SELECT message_id FROM messages ORDER BY random() LIMIT 1)"
ONE_AI_MESSAGE = "ai_message_id = (SELECT ai_message_id FROM ai_messages ORDER BY random() LIMIT 1)"
# Conversations with a number keep their messages.
ONE_CONVERSATION = (
    "conversation_id = (SELECT conversation_id FROM conversations WHERE phone_number IS NULL ORDER BY random() LIMIT 1)"
)
CHANGES = {
    INSERT_MESSAGE: 20,
    f"UPDATE messages SET created_at = %(at)s WHERE {ONE_MESSAGE}": 5,
    f"UPDATE messages SET cost_micros = %(cost)s, currency_code = %(currency)s WHERE {ONE_MESSAGE}": 10,
    f"UPDATE messages SET direction = %(direction)s, status = 'READ' WHERE {ONE_MESSAGE}": 3,
    f"UPDATE messages SET status = 'READ' WHERE {ONE_MESSAGE}": 3,
    f"UPDATE messages SET counted = %(counted)s WHERE {ONE_MESSAGE}": 3,
    f"DELETE FROM messages WHERE {ONE_MESSAGE}": 12,
    "INSERT INTO conversations (salon_id, user_id, started_at) VALUES (%(salon_id)s, gen_random_uuid(), %(at)s)": 5,
    f"UPDATE conversations SET started_at = least(started_at, %(at)s) WHERE {ONE_CONVERSATION}": 3,
    f"DELETE FROM conversations WHERE {ONE_CONVERSATION}": 3,
    INSERT_AI_MESSAGE: 12,
    f"UPDATE ai_messages SET created_at = %(at)s WHERE {ONE_AI_MESSAGE}": 3,
    f"UPDATE ai_messages SET latency_ms = %(latency)s, model = %(model)s WHERE {ONE_AI_MESSAGE}": 4,
    f"UPDATE ai_messages SET content = '' WHERE {ONE_AI_MESSAGE}": 2,
    f"DELETE FROM ai_messages WHERE {ONE_AI_MESSAGE}": 8,
}


class Load:
    """Writers, jobs and readers of one database, until `comparisons` have been made or one differed."""

    messages = "messages"
    pause = 0.0  # the longest, in s, of a writer after a transaction

    def __init__(self, database_url: str, comparisons: int, seed: int) -> None:
        """Prepare."""
        self.database_url = database_url
        self.random = Random(seed)
        self.left = comparisons
        self.commits = 0
        self.kills = 0
        self.different: list[Any] = []

    async def run(self) -> None:
        """Run everything."""
        readers = [asyncio.create_task(self._read()) for _ in range(2)]
        others = [self._write() for _ in range(8)] + [self._advance(), self._advance(), self._fold(), self._kill()]
        tasks = [asyncio.create_task(other) for other in others]
        try:
            await asyncio.gather(*readers)
            for task in tasks:
                if task.done():
                    await task  # raises its error
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def is_done(self) -> bool:
        """Return whether all comparisons have been made."""
        return self.left <= 0

    def time(self) -> datetime:
        """Return a random time of the last days, often of the last hours."""
        return datetime.now(UTC) - timedelta(days=DAYS) * self.random.random() ** self.random.choice((1, 6))

    def period(self) -> Period:
        """Return a random period; some begin or end at a whole hour, some end in the future."""
        start, end = sorted((self.time(), self.time()))
        if self.random.random() < 0.3:
            start = start.replace(minute=0, second=0, microsecond=0)
        end = end.replace(minute=0, second=0, microsecond=0) if self.random.random() < 0.3 else end
        if self.random.random() < 0.4 or end <= start:
            end = datetime.now(UTC) + timedelta(hours=1)
        return Period(self.random.choice(list(ZONES)), start, end)

    async def _read(self) -> None:
        async with await connection(self.database_url) as conn:
            while not self.is_done() and not self.different:
                periods = [self.period() for _ in range(10)]
                self.different += await differences(conn, periods, self.messages)
                self.left -= 3 * len(periods)  # an RPC each

    async def _write(self) -> None:
        async with await connection(self.database_url) as conn:
            while True:
                with suppress(SerializationFailure, DeadlockDetected):
                    async with _transaction(conn, self.random.choice(LEVELS)):
                        for _ in range(self.random.randint(1, 4)):
                            await self._change(conn)
                        if self.random.random() < 0.15:
                            raise psycopg.Rollback
                    self.commits += 1
                await asyncio.sleep(self.pause * self.random.random())

    async def _change(self, conn: psycopg.AsyncConnection[Any]) -> None:
        with suppress(_RolledBack):
            async with conn.transaction():  # a savepoint
                query = self.random.choices(list(CHANGES), list(CHANGES.values()))[0]
                cost = self.random.choice((0, self.random.randint(1, 10**6)))
                values = {
                    "salon_id": self.random.choice(list(ZONES)),
                    "at": self.time(),
                    "direction": self.random.choice(("INBOUND", "OUTBOUND")),
                    "counted": self.random.random() < 0.9,
                    "cost": cost,
                    "currency": self.random.choice(("EUR", "USD")) if cost else self.random.choice((None, "EUR")),
                    "model": self.random.choice(("small", "large")),
                    "latency": self.random.randint(0, 5000),
                    "code": self.random.choice((None, "A", "B", "C")),
                }
                await conn.execute(query.encode(), values)
                if self.random.random() < 0.1:
                    raise _RolledBack

    async def _advance(self) -> None:
        """Sum more and more, then start again."""
        lag_minutes = DAYS * 24 * 60
        while True:
            with suppress(RollupBusy, psycopg.OperationalError):
                await Rollups(connecting(self.database_url)).advance(lag_minutes)
            lag_minutes -= self.random.randint(0, 300)
            if lag_minutes < 0:
                lag_minutes = DAYS * 24 * 60
                with suppress(RollupBusy, psycopg.OperationalError):
                    await self._forget()

    async def _forget(self) -> None:
        """Delete the sums, in a transaction that no writer overlaps."""
        async with await connection(self.database_url) as conn, alone(conn):
            await conn.execute(b"LOCK TABLE messages, conversations, ai_messages IN SHARE ROW EXCLUSIVE MODE")
            for table in ("message", "conversation", "ai_message"):
                await conn.execute(f"DELETE FROM {table}_hours".encode())
            for table in ("message_deltas", "conversation_deltas", "ai_message_changes"):
                await conn.execute(f"DELETE FROM {table}".encode())
            await conn.execute(b"UPDATE rollups SET sealed_to = '-infinity'")

    async def _fold(self) -> None:
        while True:
            with suppress(RollupBusy, psycopg.OperationalError):
                async with await connection(self.database_url) as conn:
                    for fold in FOLDS:
                        await fold_deltas(conn, fold)
            await asyncio.sleep(self.random.random() / 10)

    async def _kill(self) -> None:
        """End the connections of jobs at random moments."""
        query = b"""
            SELECT pg_terminate_backend(pid) FROM pg_locks
            WHERE relation = 'rollups'::regclass AND mode = 'ShareUpdateExclusiveLock' AND granted AND random() < 0.3"""
        async with await connection(self.database_url) as conn:
            while True:
                self.kills += len(await (await conn.execute(query)).fetchall())
                await asyncio.sleep(self.random.random())


class _RolledBack(Exception):
    pass


@asynccontextmanager
async def _transaction(conn: psycopg.AsyncConnection[Any], level: str) -> AsyncIterator[None]:
    async with conn.transaction():
        await conn.execute(f"SET TRANSACTION ISOLATION LEVEL {level}".encode())
        yield
