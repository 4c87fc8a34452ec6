"""`parlor archive` and `parlor restore-archive`: months that leave, and come back as they were."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from datetime import UTC, timedelta
from itertools import permutations
from pathlib import Path
from typing import Any

import psycopg
import pytest

from libs.server import RpcError
from ops.archive import archive, before
from ops.archive_files import ArchiveError, file_path, manifest_path
from ops.restore_archive import restore
from parlor.messaging.v1 import messaging_pb2 as pb
from parlor.ops.v1.ops_pb2 import InvalidateSalonRequest
from parlor.stats.v1.stats_pb2 import MessageDirectionStats, SalonStats
from services.stats.queries import Period, message_direction_stats, salon_stats
from tests.archive_load import ArchiveLoad
from tests.archives import OLD, SALONS, SUMMED, archive_all, create_months, differences, keep_copies
from tests.rollups import connection
from tests.stack import SALON, Fields, Stack, failure, message_request, rows, salon, webhook_body
from tests.test_webhook import PHONE_NUMBER_ID, ingest, text

COMPARISONS = int(os.environ.get("ROLLUP_COMPARISONS", "1500"))
FIRST, SECOND = (month.leaf.replace("messages_", "messages_archived_") for month in (OLD, OLD.later(1)))


@pytest.fixture
def database_url(one_table_url: str) -> str:
    """The URL of a database that the test partitions."""
    return one_table_url


def put_back(database_url: str, file: Path) -> None:
    """Restore a file."""
    restore(database_url, file, lambda: None, lambda *_: None)


async def statistics(database_url: str) -> list[Any]:
    """Return the statistics of periods in and around the archived months, whose edges are quarters of an hour."""
    edges = [
        OLD.start + timedelta(hours=hours, minutes=minutes) for hours in (-30, 3, 500, 900) for minutes in (0, 15, 45)
    ]
    periods = [
        Period(salon_id, start, end)
        for salon_id in SALONS
        for start in edges
        for end in (*(later + timedelta(minutes=30) for later in edges), SUMMED, OLD.later(4).start)
        if start < end
    ]
    async with await connection(database_url) as conn:
        await conn.execute(b"BEGIN ISOLATION LEVEL REPEATABLE READ")
        found = [
            (SalonStats, await salon_stats(conn, periods)),
            (MessageDirectionStats, await message_direction_stats(conn, periods)),
        ]
        await conn.rollback()
    return [_parsed(kind, loaded.value) for kind, loads in found for loaded in loads]


def _parsed(
    kind: type[SalonStats | MessageDirectionStats], value: bytes | RpcError
) -> SalonStats | MessageDirectionStats:
    assert isinstance(value, bytes)
    stats = kind.FromString(value)
    stats.ClearField("as_of")
    return stats


async def test_months_come_back_as_they_were_and_statistics_never_change(database_url: str, tmp_path: Path) -> None:
    await asyncio.to_thread(create_months, database_url)
    keep_copies(database_url)
    known = await statistics(database_url)
    written = archive_all(database_url, tmp_path)
    assert [one.name for one in written] == [FIRST, SECOND]
    assert rows(database_url, f"SELECT count(*) FROM messages WHERE created_at < '{SUMMED}'") == [(0,)]
    assert await statistics(database_url) == known
    for one in reversed(written):
        put_back(database_url, one.file)
        assert await statistics(database_url) == known
    assert differences(database_url) == {}
    parameters = "SELECT DISTINCT reloptions FROM pg_class WHERE relkind = 'r' AND relispartition"
    assert len(rows(database_url, parameters)) == 1
    assert os.listdir(tmp_path) == []
    assert rows(database_url, "SELECT count(*) FROM message_quarters") == [(0,)]
    # And again: the second time nothing is new.
    archive_all(database_url, tmp_path)
    put_back(database_url, file_path(tmp_path, FIRST))
    put_back(database_url, file_path(tmp_path, SECOND))
    assert differences(database_url) == {}
    assert await statistics(database_url) == known


async def test_changes_while_a_month_leaves_are_counted(database_url: str, tmp_path: Path) -> None:
    await asyncio.to_thread(create_months, database_url)
    known = await statistics(database_url)

    def change(what: str, done: int, _: int) -> None:  # called after each salon is summed
        if what.endswith("sums") and done == 1:
            with psycopg.connect(database_url) as conn:
                changed = (
                    "UPDATE messages SET cost_micros = cost_micros + 1000 WHERE cost_micros > 0 AND created_at < %s"
                )
                conn.execute(changed, [SUMMED])
                conn.execute("UPDATE messages SET created_at = created_at + interval '20 minutes' WHERE NOT counted")

    [*_] = archive(database_url, SUMMED, tmp_path, lambda: None, change)
    archived = await statistics(database_url)
    for name in (FIRST, SECOND):
        put_back(database_url, file_path(tmp_path, name))
    assert archived != known
    assert await statistics(database_url) == archived


STRIDE = 7  # all statements, by 1, take some minutes


async def run_killed(database_url: str, folder: Path, what: str, statement: int) -> bool:
    """Run what is killed before a statement; return whether it ended before."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.killed_archive", database_url, str(folder), what, str(statement)),
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    assert (process.returncode, out) in ((0, b"done\n"), (-signal.SIGKILL, b""))
    return bool(out)


async def test_a_run_killed_before_any_statement_loses_nothing(database_url: str, tmp_path: Path) -> None:
    await asyncio.to_thread(create_months, database_url)
    keep_copies(database_url)
    known = await statistics(database_url)
    statement = 1
    while not await run_killed(
        database_url, tmp_path, "archive", statement
    ):  # each run goes further than the one before
        assert await statistics(database_url) == known, statement
        statement += STRIDE
    assert statement > 20
    assert rows(database_url, f"SELECT count(*) FROM messages WHERE created_at < '{SUMMED}'") == [(0,)]
    for name in (SECOND, FIRST):
        statement = 1
        file = file_path(tmp_path, name)
        while rows(database_url, f"SELECT FROM message_archives WHERE name = '{name}'"):
            await run_killed(database_url, tmp_path, file.name, statement)
            assert await statistics(database_url) == known, statement
            statement += STRIDE
        assert statement > 20
    assert differences(database_url) == {}


@pytest.mark.parametrize("order", list(permutations(("late", SECOND, FIRST))))
async def test_late_messages_of_an_archived_month_are_archived_beside_it(
    database_url: str, tmp_path: Path, order: tuple[str, ...]
) -> None:
    await asyncio.to_thread(create_months, database_url)
    keep_copies(database_url)
    archive_all(database_url, tmp_path)
    with psycopg.connect(database_url) as conn:
        conn.execute(
            """INSERT INTO messages (salon_id, conversation_id, direction, type, status, created_at)
            SELECT salon_id, conversation_id, 'INBOUND', 'TEXT', 'RECEIVED', %s FROM conversations""",
            [OLD.start + timedelta(hours=7)],
        )
    deltas = "SELECT count(*) FROM message_deltas"
    assert rows(database_url, deltas) == [(3 * len(SALONS),)]
    known = await statistics(database_url)
    [late] = await asyncio.to_thread(archive_all, database_url, tmp_path)
    assert late.rows == 3 * len(SALONS)
    assert await statistics(database_url) == known
    for name in order:
        put_back(database_url, late.file if name == "late" else file_path(tmp_path, name))
        assert await statistics(database_url) == known
    assert differences(database_url) == {"messages": (0, late.rows)}
    assert rows(database_url, deltas) == [(3 * len(SALONS),)]  # of the late messages: what is restored is no change


async def test_lists_say_that_older_messages_are_archived(stack: Stack, tmp_path: Path) -> None:
    await asyncio.to_thread(create_months, stack.database_url)
    first = await stack.messaging.ListMessages(pb.ListMessagesRequest(salon_id="berlin", page_size=100))
    assert not first.HasField("archived_before")
    await asyncio.to_thread(archive_all, stack.database_url, tmp_path)
    await stack.ops["messaging"].InvalidateSalon(InvalidateSalonRequest(salon_id="berlin"))
    request = pb.ListMessagesRequest(salon_id="berlin", page_size=100)
    pages = [await stack.messaging.ListMessages(request)]
    while pages[-1].next_page_token:
        assert not pages[-1].HasField("archived_before")
        request.page_token = pages[-1].next_page_token
        pages.append(await stack.messaging.ListMessages(request))
    assert pages[-1].archived_before.ToDatetime(UTC) == SUMMED
    assert min(message.create_time.ToDatetime(UTC) for page in pages for message in page.messages) >= SUMMED
    newer: Fields = {"salon_id": "berlin", "after_time": SUMMED + timedelta(days=29)}
    assert not (await stack.messaging.ListMessages(pb.ListMessagesRequest(**newer))).HasField("archived_before")
    older: Fields = {"salon_id": "berlin", "before_time": SUMMED}
    nothing = await stack.messaging.ListMessages(pb.ListMessagesRequest(**older))
    assert (len(nothing.messages), nothing.archived_before.ToDatetime(UTC)) == (0, SUMMED)


async def test_an_archived_message_does_not_come_twice(stack: Stack, tmp_path: Path) -> None:
    await salon(stack, phone_number_id=PHONE_NUMBER_ID)
    await asyncio.to_thread(create_months, stack.database_url)
    old = text("old", timestamp=str(int(OLD.start.timestamp())))
    await ingest(stack, webhook_body(PHONE_NUMBER_ID, messages=[old]))
    await asyncio.to_thread(archive_all, stack.database_url, tmp_path)
    refused = await failure(stack.messaging.RecordMessage(message_request("wamid.old")))
    assert refused.reason == "MESSAGE_ARCHIVED"
    items = [old, text("new")]
    assert await ingest(stack, webhook_body(PHONE_NUMBER_ID, messages=items)) == {"messages": 1, "duplicates": 1}
    unsent = message_request("", direction=2, type="MESSAGE_TYPE_TEMPLATE")
    pending = await stack.messaging.RecordMessage(unsent)
    named: Fields = {"salon_id": SALON, "message_id": pending.message_id, "whatsapp_id": "wamid.old"}
    refused = await failure(stack.messaging.RecordMessageSent(pb.RecordMessageSentRequest(**named)))
    assert refused.reason == "MESSAGE_ARCHIVED"
    await asyncio.to_thread(put_back, stack.database_url, file_path(tmp_path, FIRST))
    again = await stack.messaging.RecordMessage(message_request("wamid.old"))
    assert again.create_time.ToDatetime(UTC) == OLD.start


def refusal(database_url: str, file: Path) -> str:
    """Return why a file is not restored."""
    with pytest.raises(ArchiveError) as error:
        put_back(database_url, file)
    return str(error.value)


async def test_only_the_file_that_was_written_is_restored(database_url: str, tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="one table"):
        archive_all(database_url, tmp_path)
    await asyncio.to_thread(create_months, database_url)
    archive_all(database_url, tmp_path)
    count = "SELECT count(*) FROM messages"
    known = rows(database_url, count)
    file = file_path(tmp_path, FIRST)
    written, manifest = file.read_bytes(), manifest_path(file).read_bytes()
    file.write_bytes(written[:-1])
    assert "damaged" in refusal(database_url, file)
    file.write_bytes(written)
    manifest_path(file).write_bytes(b"{}")
    assert "not the manifest" in refusal(database_url, file)
    manifest_path(file).unlink()
    assert "not the manifest" in refusal(database_url, file)
    assert "not an archive of this database" in refusal(database_url, tmp_path / "other.copy.zst")
    assert rows(database_url, count) == known
    manifest_path(file).write_bytes(manifest)
    put_back(database_url, file)
    assert rows(database_url, count) > known


@pytest.mark.parametrize("age", ["", "13", "0mo", "-1mo", "13 months", "1y", "1000mo"])
def test_an_age_is_a_number_of_months(age: str) -> None:
    with pytest.raises(ArchiveError, match="such as 13mo"):
        before(age)


async def test_a_month_that_is_not_summed_stays(database_url: str, tmp_path: Path) -> None:
    await asyncio.to_thread(create_months, database_url)
    with psycopg.connect(database_url) as conn:
        conn.execute("UPDATE rollups SET sealed_to = %s", [OLD.later(1).start - timedelta(hours=1)])
    with pytest.raises(ArchiveError, match="run `parlor maintain` first"):
        archive_all(database_url, tmp_path)
    assert rows(database_url, "SELECT count(*) FROM message_archives") == [(0,)]


async def test_statistics_are_exact_while_months_leave_and_come_back(database_url: str, tmp_path: Path) -> None:
    await asyncio.to_thread(create_months, database_url)
    load = ArchiveLoad(database_url, COMPARISONS, int(os.environ.get("ROLLUP_SEED", "1")), tmp_path)
    await load.run()
    print(f"\n{COMPARISONS} comparisons, {load.commits} commits, {load.archived} archived, {load.restored} restored")
    assert load.different == []
