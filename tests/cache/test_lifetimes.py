"""The lifetime of tag version records: those without entries expire soon."""

import asyncio
from typing import Any

import pytest

from libs.cache import Key
from libs.cache.store import UNVERIFIED_SECONDS, VERSION_LIFETIME_SECONDS
from tests.cache.servers import each
from tests.cache.shop import Loaded, Shop, Start

LOOK_UPS = 2_000  # 140,000 took 30 MB


async def reply(shop: Shop, key: Key, value: str | None) -> None:
    async def load(conn: object) -> Loaded:
        return Loaded(2**52, value)

    await shop.cache.get(key, load)


def longest_life(redis_url: str) -> float:
    """Return the longest remaining lifetime of a key, in s."""
    return max(float(client.pttl(key)) / 1000 for client in each(redis_url) for key in client.scan_iter("query:*{*"))


async def test_a_record_lives_a_minute_until_something_is_stored_under_it(shop: Shop, valkey: Any) -> None:
    await shop.cache.store.open(shop.shelf().version_key)
    assert 0 < valkey.ttl(shop.shelf().version_key) <= UNVERIFIED_SECONDS
    await shop.text()
    assert valkey.ttl(shop.shelf().version_key) > VERSION_LIFETIME_SECONDS - 60


@pytest.mark.parametrize("nothing", [None, ""], ids=["no reply", "an empty page"])
async def test_reads_of_missing_tags_leave_no_lasting_records(
    start: Start, redis_url: str, nothing: str | None
) -> None:
    shop = await start(ttl={"shop": 60}, ttl_negative=30)
    for first in range(0, LOOK_UPS, 500):
        keys = [shop.key(shelf=f"missing {number}") for number in range(first, first + 500)]
        await asyncio.gather(*(reply(shop, key, nothing) for key in keys))
    await shop.cache.settle()
    assert longest_life(redis_url) <= (2 * 60 if nothing == "" else UNVERIFIED_SECONDS)


async def test_failed_writes_to_missing_tags_leave_no_lasting_records(shop: Shop, redis_url: str) -> None:
    for number in range(100):
        with pytest.raises(ZeroDivisionError):
            async with shop.cache.transaction(shop.shelf(f"missing {number}")):
                raise ZeroDivisionError
    assert longest_life(redis_url) <= UNVERIFIED_SECONDS


async def test_a_write_does_not_change_the_lifetime_of_a_record(shop: Shop, valkey: Any) -> None:
    await shop.text()
    valkey.expire(shop.shelf().version_key, 1000)
    await shop.write()
    assert 990 < valkey.ttl(shop.shelf().version_key) <= 1000


async def test_a_record_that_expires_during_a_transaction_still_refuses_old_rows(start: Start, valkey: Any) -> None:
    writer, reader = await start(), await start()
    async with writer.writing("new"):
        valkey.delete(writer.shelf().version_key)  # as after a minute
        assert await reader.text() == "old"
        assert (await reader.read()).source == "miss"
    assert (await reader.text(), (await reader.read()).source) == ("new", "hit")
