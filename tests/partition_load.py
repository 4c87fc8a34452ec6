"""Callers of messaging and stats, and writers of rows, beside `parlor partition`."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from random import Random
from typing import Any
from uuid import uuid4

import grpc
import psycopg
from psycopg.errors import DeadlockDetected, SerializationFailure

from parlor.messaging.v1 import messaging_pb2 as pb
from parlor.stats.v1 import stats_pb2
from tests.kinds import body, call, edit
from tests.stack import SALON, Fields, Stack, message_request, read_failure, rows, salon, webhook_body
from tests.test_webhook import ingest

ALL: Fields = {"start_time": {"seconds": 0}, "end_time": {"seconds": 4_000_000_000}}
PAST: Fields = {"metadata": (("cache-control", "no-cache"),)}
CUSTOMERS, ERASED = 30, 5
QUIET_SALON, ROWS_SALON = "quiet", "rows"  # the rows of one never change, those of the other change in SQL

# Outbound messages of the last 30 months for each salon, one of 5 with a cost.
FILL = """
    WITH talks AS (
        INSERT INTO conversations (salon_id, phone_number, last_message_at)
        SELECT salon_id, '+4915100' || 10000 + n, now()
        FROM unnest(%(salons)s::text[]) AS salon_id, generate_series(1, %(customers)s) AS n
        RETURNING salon_id, conversation_id, phone_number
    ), numbered AS (
        SELECT row_number() OVER (PARTITION BY salon_id) - 1 AS place, talks.* FROM talks
    )
    INSERT INTO messages (salon_id, conversation_id, phone_number, direction, whatsapp_id, type, content, status,
        cost_micros, currency_code, created_at)
    SELECT salon_id, conversation_id, phone_number, 'OUTBOUND', 'wamid.old.' || n, 'TEXT', 'hello number ' || n,
        'SENT', CASE WHEN n %% 5 = 0 THEN n ELSE 0 END, 'EUR', now() - random() * interval '900 days'
    FROM generate_series(1, %(messages)s) AS n JOIN numbered ON place = n %% %(customers)s"""


async def fill(stack: Stack, messages: int, customers: int = CUSTOMERS) -> None:
    """Create three salons with this many messages each, in as many conversations as customers."""
    salons = [SALON, QUIET_SALON, ROWS_SALON]
    for salon_id in salons:
        await salon(stack, salon_id, resources=())
    with psycopg.connect(stack.database_url, autocommit=True) as conn:
        conn.execute(FILL, {"salons": salons, "customers": customers, "messages": messages})
        conn.execute("ANALYZE messages")


class Load:
    """Calls at random, each timed: `calls` has the time of its end and its duration, in seconds."""

    def __init__(self, stack: Stack, messages: int, customers: int = CUSTOMERS, seed: int = 1) -> None:
        """Prepare; `messages` and `customers` as in `fill`."""
        self.stack = stack
        self.customers = customers
        self.messages = messages
        self.random = Random(seed)
        self.calls: list[tuple[float, float, str]] = []
        self.failed: list[str] = []
        self.commits = 0
        self._kinds: list[Callable[[], Awaitable[Any]]] = [
            *(self.record, self.record, self.status, self.status, self.edit, self.call, self.sent, self.erase),
            *(self.list, self.list, self.conversation, self.get, self.search, self.statistics),
        ]

    def phone(self) -> str:
        """Return the number of one of the customers."""
        return f"+4915100{10000 + self.random.randint(1, self.customers)}"

    def old(self) -> str:
        """Return the WhatsApp ID of a message of `fill`; it may be erased."""
        return f"wamid.old.{self.random.randint(1, self.messages)}"

    async def record(self) -> None:
        """Record a message of now, or one that comes late."""
        fields: Fields = {"phone_number": self.phone(), "content": f"hi there {self.random.random()}"}
        if self.random.random() < 0.3:
            fields["send_time"] = {"seconds": int(time.time() - self.random.random() * 80_000_000)}
        await self.stack.messaging.RecordMessage(message_request(f"wamid.new.{uuid4()}", **fields))

    async def status(self) -> None:
        """Record a status."""
        status = pb.RecordMessageStatusRequest(salon_id=SALON, whatsapp_id=self.old(), status=pb.MESSAGE_STATUS_READ)
        await self.stack.messaging.RecordMessageStatus(status)

    async def edit(self) -> None:
        """Change a text."""
        item = edit(f"wamid.edit.{self.random.random()}", self.old(), int(time.time()), "a better text")
        await ingest(self.stack, webhook_body(f"10{SALON}", messages=[item]))

    async def call(self) -> None:
        """Record a call, whose earlier event comes later: its message may change its month."""
        name, end = f"wacid.{self.random.random()}", int(time.time() - self.random.random() * 40_000_000)
        for event, second in (("terminate", end), ("connect", end - 2_000_000)):
            items = [{**call(name, event, second), "from": self.phone()[1:]}]
            await ingest(self.stack, body(f"10{SALON}", "calls", calls=items))

    async def sent(self) -> None:
        """Record a message before it is sent, then its WhatsApp ID."""
        fields: Fields = {"phone_number": self.phone(), "direction": 2, "type": "MESSAGE_TYPE_TEMPLATE"}
        message = await self.stack.messaging.RecordMessage(message_request("", **fields))
        request = pb.RecordMessageSentRequest(salon_id=SALON, message_id=message.message_id)
        request.whatsapp_id = f"wamid.sent.{self.random.random()}"
        await self.stack.messaging.RecordMessageSent(request)

    async def erase(self) -> None:
        """Erase a customer, sometimes."""
        if self.random.random() < 0.2:
            number = f"+4915100{10000 + self.random.randint(1, ERASED)}"
            await self.stack.messaging.EraseCustomer(pb.EraseCustomerRequest(salon_id=SALON, phone_number=number))

    async def list(self) -> None:
        """List messages of a salon or a customer, two pages."""
        by: Fields = {"phone_number": self.phone()} if self.random.random() < 0.5 else {}
        request = pb.ListMessagesRequest(salon_id=SALON, page_size=20, **by)
        reply = await self.stack.messaging.ListMessages(request, **PAST)
        if reply.next_page_token:
            request.page_token = reply.next_page_token
            await self.stack.messaging.ListMessages(request, **PAST)

    async def conversation(self) -> None:
        """List conversations, then read one."""
        request = pb.ListConversationsRequest(salon_id=SALON, page_size=20)
        [*found] = (await self.stack.messaging.ListConversations(request, **PAST)).conversations
        one = pb.GetConversationRequest(salon_id=SALON, conversation_id=self.random.choice(found).conversation_id)
        await self.stack.messaging.GetConversation(one, **PAST)

    async def get(self) -> None:
        """Read a message of a salon whose messages stay."""
        request = pb.GetMessageRequest(salon_id=QUIET_SALON, whatsapp_id=self.old())
        await self.stack.messaging.GetMessage(request, **PAST)

    async def search(self) -> None:
        """Search for a word."""
        request = pb.SearchMessagesRequest(salon_id=SALON, query=f"number {self.random.randrange(self.messages)}")
        await self.stack.messaging.SearchMessages(request, **PAST)

    async def statistics(self) -> None:
        """Read statistics of all time."""
        request = stats_pb2.GetMessageDirectionStatsRequest(salon_id=SALON, **ALL)
        await self.stack.stats.GetMessageDirectionStats(request, **PAST)

    @asynccontextmanager
    async def running(self, callers: int = 6, *, pause: float = 0, rows: bool = True) -> AsyncIterator[None]:
        """Call, with `rows` also write rows and read snapshots, until the block ends; then wait for the last call.

        Each caller pauses for a random time after a call, `pause` seconds on average.
        """
        stop = asyncio.Event()
        others = [self._rows(stop), self._rows(stop), self._snapshots(stop)] if rows else []
        tasks = [asyncio.create_task(other) for other in [*(self._call(stop, pause) for _ in range(callers)), *others]]
        try:
            yield
        finally:
            stop.set()
            await asyncio.gather(*tasks)

    async def _call(self, stop: asyncio.Event, pause: float) -> None:
        while not stop.is_set():
            await asyncio.sleep(2 * pause * self.random.random())
            kind = self.random.choice(self._kinds)
            started = time.monotonic()
            try:
                await kind()
            except grpc.aio.AioRpcError as error:
                if read_failure(error).reason != "CUSTOMER_ERASED":
                    self.failed.append(f"{kind.__name__}: {error!r}")
            self.calls.append((time.monotonic(), time.monotonic() - started, kind.__name__))

    async def _rows(self, stop: asyncio.Event) -> None:
        """Move, change and delete messages; abort some transactions and savepoints."""
        one = "SET {} WHERE salon_id = 'rows' AND message_id = (SELECT message_id FROM messages WHERE salon_id = 'rows'"
        one += " ORDER BY random() LIMIT 1)"
        changes = [
            "UPDATE messages " + one.format("created_at = created_at - interval '40 days'"),
            "UPDATE messages " + one.format("cost_micros = cost_micros + 7, currency_code = 'EUR'"),
            "UPDATE messages " + one.format("whatsapp_id = gen_random_uuid()::text"),
            "DELETE FROM messages" + one.format("").removeprefix("SET "),
            "INSERT INTO messages (salon_id, conversation_id, direction, type, status, created_at)"
            " SELECT salon_id, conversation_id, 'OUTBOUND', 'TEXT', 'SENT', now() - random() * interval '900 days'"
            " FROM conversations WHERE salon_id = 'rows' LIMIT 1",
        ]
        async with await psycopg.AsyncConnection.connect(self.stack.database_url, autocommit=True) as conn:
            while not stop.is_set():
                with suppress(SerializationFailure, DeadlockDetected):  # another moved the row to another partition
                    async with conn.transaction(force_rollback=self.random.random() < 0.2):
                        for _ in range(self.random.randint(1, 3)):
                            async with conn.transaction(force_rollback=self.random.random() < 0.2):
                                await conn.execute(self.random.choice(changes).encode())
                    self.commits += 1

    async def _snapshots(self, stop: asyncio.Event) -> None:
        """Count the messages that don't change, some time after the snapshot was taken."""
        query = b"SELECT count(*), sum(cost_micros) FROM messages WHERE salon_id = 'quiet'"
        [expected] = rows(self.stack.database_url, query.decode())
        async with await psycopg.AsyncConnection.connect(self.stack.database_url, autocommit=True) as conn:
            while not stop.is_set():
                async with conn.transaction():
                    await conn.execute(b"SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
                    await conn.execute(b"SELECT FROM salons")
                    await asyncio.sleep(self.random.random() / 5)
                    [found] = await (await conn.execute(query)).fetchall()
                if found != expected:
                    self.failed.append(f"a snapshot had {found} instead of {expected}")
