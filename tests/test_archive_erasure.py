"""After EraseCustomer nothing of a customer is left in the files of `parlor archive`, nor in what is restored."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psycopg
import pytest
import zstandard

from ops.archive_files import SUFFIX
from ops.maintain import maintain
from ops.partition import partition
from ops.restore_archive import restore
from tests.archives import OLD, archive_all
from tests.stack import Stack, rows
from tests.test_erase_customer import erase
from tests.test_erase_everything import NAMES, PHONE, USER, body, history, late, left, lived, secrets, wamid_of, wamids
from tests.test_webhook import ingest


@pytest.fixture
def database_url(one_table_url: str) -> str:
    """The URL of a database that the test partitions."""
    return one_table_url


def in_files(folder: Path, ids: list[str]) -> set[str]:
    """Return the secrets that the files still have."""
    found: set[str] = set()
    for file in folder.glob(f"*{SUFFIX}"):
        with file.open("rb") as stream:
            content = zstandard.ZstdDecompressor().stream_reader(stream).read().decode()
        found |= {secret for secret in secrets(ids) if secret in content}
    return found


def archived(database_url: str, folder: Path) -> None:
    """Make all messages those of an old month, and archive it."""
    with psycopg.connect(database_url) as conn:
        conn.execute("UPDATE messages SET created_at = %s + (created_at - 'epoch') / 1e6", [OLD.start])
    assert all(outcome.ok for outcome in maintain(database_url))
    partition(database_url)
    [_] = archive_all(database_url, folder)


def restored(database_url: str, folder: Path) -> None:
    """Restore the one file of a folder."""
    [file] = folder.glob(f"*{SUFFIX}")
    restore(database_url, file, lambda: None, lambda *_: None)


@pytest.mark.parametrize("is_restored", [False, True])
async def test_an_erased_customer_is_removed_from_archives(
    stack: Stack, redis_url: str, tmp_path: Path, *, is_restored: bool
) -> None:
    past = history()
    bodies = [*map(body, NAMES), *past]
    await lived(stack, bodies)
    ids = sorted({*wamids(*bodies), *map(wamid_of, ("first", "sent", "early"))})
    await asyncio.to_thread(archived, stack.database_url, tmp_path)
    assert {PHONE[1:], USER, wamid_of("first")} <= in_files(tmp_path, ids)
    counted = "SELECT sum(messages) FROM message_quarters"
    known = rows(stack.database_url, counted)
    await erase(stack, phone_number=PHONE)
    for payload in late(ids):
        await ingest(stack, payload)
    if is_restored:
        await asyncio.to_thread(restored, stack.database_url, tmp_path)
    else:
        await asyncio.to_thread(archive_all, stack.database_url, tmp_path)
        assert rows(stack.database_url, counted) == known
    assert in_files(tmp_path, ids) == set()
    assert left(stack, redis_url, ids) == set()
    assert rows(stack.database_url, "SELECT count(*) FROM message_erasures") == [(0,)]
    for payload in (*late(ids), *past):
        await ingest(stack, payload)
    assert left(stack, redis_url, ids) == set()
