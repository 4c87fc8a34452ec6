"""Unreadable values count as missing, affect no other key, and are replaced by the next read or write."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.cache import garbage
from tests.cache.shop import Shop

VALUES = [*((kind, b"garbage") for kind in garbage.KINDS[1:]), *(("string", value) for value in garbage.ALMOST_RECORDS)]
every_value = pytest.mark.parametrize(
    ("kind", "value"), VALUES, ids=[kind if kind != "string" else repr(value[:50]) for kind, value in VALUES]
)


async def undisturbed(shop: Shop) -> None:
    """Assert that the server was not lost and that another shelf is still cached."""
    assert (await shop.read(shelf="other")).source == "hit"
    assert (shop.cache.store.errors, shop.cache.store.ready, shop.cache.counters.bypasses) == (0, True, 0)


@every_value
async def test_a_write_to_a_tag_with_an_unreadable_record_counts_it_as_missing(
    shop: Shop, valkey: Any, kind: str, value: bytes
) -> None:
    await shop.text(shelf="other")
    await shop.text()
    garbage.write(valkey, shop.shelf().version_key, kind, value)
    await shop.write("new")
    await undisturbed(shop)
    assert (await shop.text(), (await shop.read()).source) == ("new", "hit")


@every_value
@pytest.mark.parametrize("which", ["record", "entry"])
async def test_a_read_of_an_unreadable_record_or_entry_misses_once(
    shop: Shop, valkey: Any, kind: str, value: bytes, which: str
) -> None:
    await shop.text(shelf="other")
    await shop.text()
    garbage.write(valkey, shop.shelf().version_key if which == "record" else shop.key().entry, kind, value)
    assert (await shop.read())[:2] == (b"old", "miss")
    await shop.cache.settle()
    assert (await shop.read())[:2] == (b"old", "hit")
    await undisturbed(shop)


def cut(length: int) -> Callable[[bytes], bytes]:
    return lambda entry: entry[:length]


@pytest.mark.parametrize("length", [0, 10, 29, 30, 45], ids=lambda length: f"{length} bytes")
async def test_a_truncated_entry_of_the_right_version_is_a_miss(shop: Shop, valkey: Any, length: int) -> None:
    await shop.text()
    entry = valkey.get(shop.key().entry)
    valkey.set(shop.key().entry, cut(length)(entry))
    assert ((await shop.read()).source, await shop.text(), (await shop.read()).source) == ("miss", "old", "hit")
    assert shop.cache.counters.bypasses == 0
