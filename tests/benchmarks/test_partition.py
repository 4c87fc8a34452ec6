"""`parlor partition` beside callers: how slow their calls get, and what reads cost on partitions (decision 0067).

PARTITION_MESSAGES is the number of messages, of three salons, in 250 times fewer conversations.
"""

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median, quantiles
from typing import Any

import psycopg
from psycopg import sql

from ops.partition import Partitioned, partition
from ops.servers import Postgres
from parlor.messaging.v1 import messaging_pb2 as pb
from services.messaging.rollups import Rollups
from tests.benchmarks.conftest import Report
from tests.partition_load import PAST, QUIET_SALON, Load, fill
from tests.rollups import connecting
from tests.stack import SALON, Fields, Stack, rows, running

MESSAGES = int(os.environ.get("PARTITION_MESSAGES", "200000"))
OF_SALON = MESSAGES // 3
CUSTOMERS = max(10, OF_SALON // 250)
SECONDS = float(os.environ.get("PARTITION_SECONDS", "20"))  # of the same load before
CALLERS, PAUSE_SECONDS = 4, 0.1
ROUNDS = 60
SLOW_SECONDS = 0.2
TITLE = f"Calls before and while {MESSAGES:,} messages are partitioned, ms"
READS_TITLE = f"Calls one by one, without the cache, on one table of {MESSAGES:,} messages and on its partitions, ms"


async def test_calls_while_messages_are_partitioned(own_postgres: Postgres, redis_url: str, report: Report) -> None:
    async with running(own_postgres.dsn, redis_url) as stack:
        started = time.monotonic()
        with without_indexes(own_postgres.dsn):
            await fill(stack, OF_SALON, CUSTOMERS)
        with psycopg.connect(own_postgres.dsn, autocommit=True) as conn:
            conn.execute("VACUUM (ANALYZE)")
        await Rollups(connecting(own_postgres.dsn)).advance()
        print(f"\nfilled in {time.monotonic() - started:.0f} s", flush=True)
        on_one_table = await reads(stack, 2)
        load = Load(stack, OF_SALON, CUSTOMERS)
        async with load.running(CALLERS, pause=PAUSE_SECONDS, rows=False):
            await asyncio.sleep(SECONDS)
            begin = time.monotonic()
            done, steps = await run_with_steps(own_postgres.dsn)
            end = time.monotonic()
            await asyncio.sleep(SECONDS / 2)
        on_partitions = await reads(stack, 3)
    show(report, load, {"before": (0, begin), "meanwhile": (begin, end), "afterwards": (end, time.monotonic())})
    slowest = sorted(((took, at - took - begin, name) for at, took, name in load.calls), reverse=True)[:20]
    print("slowest, and their start:", *(f"{name} {1000 * took:.0f} ms at {at:.2f} s" for took, at, name in slowest))
    print(f"{done}; {steps}; {len(load.calls)} calls, {len(load.failed)} failed", flush=True)
    for name, before in on_one_table.items():
        after = on_partitions[name]
        cells = {"one_table": f"{before:.1f}", "partitions": f"{after:.1f}", "ratio": f"{after / before:.2f}"}
        report.add(READS_TITLE, name, **cells)
    assert load.failed == []
    assert done.messages >= 3 * OF_SALON
    assert done.locked_milliseconds < 1000 * SLOW_SECONDS


async def run_with_steps(database_url: str) -> tuple[Partitioned, dict[str, float]]:
    """Partition; return also the seconds at which each step began."""
    started, steps = time.monotonic(), dict[str, float]()

    def step(name: str) -> None:
        steps[name] = round(time.monotonic() - started, 2)

    return await asyncio.to_thread(partition, database_url, step=step), steps


def show(report: Report, load: Load, periods: dict[str, tuple[float, float]]) -> None:
    """Report the times of calls by kind and period."""
    for kind in sorted({name for _, _, name in load.calls}):
        for period, (start, end) in periods.items():
            # Calls that began in the period.
            times = [1000 * took for at, took, name in load.calls if name == kind and start <= at - took < end]
            if len(times) > 1:
                ninety_nine = quantiles(times, n=100, method="inclusive")[-1]
                cells = {"median": median(times), "99_%": ninety_nine, "slowest": max(times)}
                shown = {f"{cell}_{period}": f"{value:.0f}" for cell, value in cells.items()}
                slow = sum(ms > 1000 * SLOW_SECONDS for ms in times)
                report.add(TITLE, kind, **shown, **{f"over_200_{period}": f"{slow} of {len(times)}"})


async def reads(stack: Stack, seed: int) -> dict[str, float]:
    """Return the median ms of some calls on a salon that the load leaves alone, but for a status."""
    load = Load(stack, OF_SALON, CUSTOMERS, seed)
    found: dict[str, list[float]] = {}

    async def timed(name: str, call: Any) -> Any:
        started = time.monotonic()
        reply = await call
        found.setdefault(name, []).append(1000 * (time.monotonic() - started))
        return reply

    messaging = stack.messaging
    for _ in range(ROUNDS):
        one = pb.GetMessageRequest(salon_id=QUIET_SALON, whatsapp_id=load.old())
        message = await timed("message by whatsapp_id", messaging.GetMessage(one, **PAST))
        by_id = pb.GetMessageRequest(salon_id=QUIET_SALON, message_id=message.message_id)
        await timed("message by message_id", messaging.GetMessage(by_id, **PAST))
        talk = pb.GetConversationRequest(salon_id=QUIET_SALON, conversation_id=message.conversation_id)
        await timed("conversation", messaging.GetConversation(talk, **PAST))
        filters: list[tuple[str, Fields]] = [
            ("list of the salon", {}),
            ("list of the conversation", {"conversation_id": message.conversation_id}),
            ("list of the number", {"phone_number": message.phone_number}),
        ]
        for name, values in filters:
            listed = pb.ListMessagesRequest(salon_id=QUIET_SALON, page_size=20, **values)
            reply = await timed(name, messaging.ListMessages(listed, **PAST))
            listed.page_token = reply.next_page_token
            await timed(f"{name}, page 2", messaging.ListMessages(listed, **PAST))
        around = pb.ListMessagesRequest(salon_id=QUIET_SALON, page_size=20, around_message_id=message.message_id)
        await timed("list around a message", messaging.ListMessages(around, **PAST))
        search = pb.SearchMessagesRequest(salon_id=QUIET_SALON, query=f"number {load.random.randrange(OF_SALON)}")
        await timed("search of a rare word", messaging.SearchMessages(search, **PAST))
        status = pb.RecordMessageStatusRequest(salon_id=SALON, whatsapp_id=load.old())
        status.status = pb.MESSAGE_STATUS_READ
        try:
            await timed("status of a message", messaging.RecordMessageStatus(status))
        except Exception:  # noqa: S110 - of an erased customer
            pass
        await timed("new message", load.record())
    return {name: median(times) for name, times in found.items()}


@contextmanager
def without_indexes(database_url: str) -> Iterator[None]:
    """Drop the indexes of messages that no constraint has, and disable its triggers, while it is filled."""
    query = """
        SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid) FROM pg_index
        WHERE indrelid = 'messages'::regclass AND NOT indisunique"""
    indexes = rows(database_url, query)
    with psycopg.connect(database_url, autocommit=True) as conn:
        conn.execute("ALTER TABLE messages DISABLE TRIGGER ALL")
        for name, _ in indexes:
            conn.execute(sql.SQL("DROP INDEX {}").format(sql.Identifier(name)))
        yield
        conn.execute("ALTER TABLE messages ENABLE TRIGGER ALL")
        conn.execute("SET maintenance_work_mem = '512MB'")
        for _, definition in indexes:
            conn.execute(definition.encode())
