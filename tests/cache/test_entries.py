"""What is kept, for how long, and under which key."""

import asyncio
from binascii import crc_hqx
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from libs.cache import MAX_AGE, NAMESPACES, CacheSettings, Group, Key, server_figures, sizes
from libs.cache.servers import hash_slot
from tests.cache.outside import reaching
from tests.cache.shop import Loaded, Shop, Start

SEED = {
    "salon": 1800,
    "booking": 300,
    "stats": 120,
    "conversation": 300,
    "messages": 180,
    "aiAnalytics": 600,
    "health": 30,
}
SETTINGS = CacheSettings()


@pytest.fixture
def valkey(redis_url: str) -> Iterator[Any]:
    """The server, seen from outside."""
    with reaching(redis_url) as client:
        yield client


async def store(shop: Shop, key: Key, value: str | None) -> None:
    async def load(conn: object) -> Loaded:
        return Loaded(2**52, value)

    await shop.cache.read(key, load)


def lifetimes(valkey: Any, keys: list[Key]) -> list[int]:
    """Return what is left of each entry's lifetime, in ms."""
    return [int(str(valkey.pttl(key.entry))) for key in keys]


async def test_namespaces_have_the_seeds_lifetimes_and_any_other_the_default(start: Start) -> None:
    cache = (await start(ttl_default=77, ttl={"stats": 60, "shop": 5})).cache
    assert {name: cache.namespace(name).ttl for name in NAMESPACES} == {**SEED, "stats": 60}
    assert [cache.namespace(name).ttl for name in ("shop", "other")] == [5, 77]


async def test_settings_are_read_by_the_names_that_operators_know(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://elsewhere:1")
    monkeypatch.setenv("REDIS_TTL_DEFAULT", "9")
    monkeypatch.setenv("REDIS_TTL", '{"stats": 60}')
    settings = CacheSettings()
    assert (settings.url, settings.namespace("any").ttl, settings.namespace("stats").ttl) == (
        "redis://elsewhere:1", 9, 60
    )  # fmt: skip
    monkeypatch.setenv("REDIS_TTL", '{"stats": 0}')
    with pytest.raises(ValidationError, match="86400"):
        CacheSettings()


@pytest.mark.parametrize("url", ["localhost:6379", "redis://:hidden@localhost:port", "rediss"])
def test_a_bad_url_is_an_error_that_names_the_setting_and_no_password(url: str) -> None:
    with pytest.raises(ValidationError, match="url") as caught:
        CacheSettings(url=url)
    assert "hidden" not in str(caught.value)


async def test_an_entry_lives_for_its_namespaces_time_and_jitter_only_shortens_it(start: Start, valkey: Any) -> None:
    shop = await start(ttl={"shop": 100})
    keys = [shop.key(f"item {number}") for number in range(200)]
    await asyncio.gather(*(store(shop, key, "x") for key in keys))
    await shop.cache.settle()
    left = lifetimes(valkey, keys)
    assert max(left) <= 100_000
    assert min(left) > 85_000  # a tenth of jitter, and the time that the test took
    assert max(left) - min(left) > 5_000


@pytest.mark.parametrize(("ttl", "longest"), [(100, 20), (10, 10)])
async def test_the_answer_that_there_is_nothing_is_kept_for_a_short_time(
    start: Start, valkey: Any, ttl: int, longest: int
) -> None:
    shop = await start(ttl={"shop": ttl}, ttl_negative=20)
    assert (await shop.text("none"), (await shop.read("none"))[:2]) == (None, (None, "hit"))
    assert 0 < lifetimes(valkey, [shop.key("none")])[0] <= longest * 1000


async def test_an_empty_reply_is_not_the_answer_that_there_is_nothing(start: Start, valkey: Any) -> None:
    shop = await start(ttl={"shop": 100}, ttl_negative=20)
    await shop.write("")
    assert (await shop.text(), (await shop.read())[:2]) == ("", (b"", "hit"))
    assert lifetimes(valkey, [shop.key()])[0] > 20_000


async def test_a_meta_outlives_every_entry(start: Start, valkey: Any) -> None:
    shop = await start(ttl={"shop": 86_400})
    for change in (shop.text, shop.write, shop.text):
        await change()
        assert int(str(valkey.ttl(shop.shelf().meta))) > 6 * 86_400


async def test_an_entry_stored_under_another_key_is_not_served(shop: Shop, valkey: Any) -> None:
    await shop.write("milky", "milk")
    assert (await shop.text("tea"), await shop.text("milk")) == ("old", "milky")
    valkey.copy(shop.key("milk").entry, shop.key("tea").entry, replace=True)
    assert (await shop.read("tea"))[:2] == (b"old", "miss")


async def test_no_two_replies_share_a_key_and_none_takes_the_place_of_a_meta(shop: Shop) -> None:
    group = shop.cache.namespace("shop").group
    keys: list[Key | Group] = [
        group("a").key("b", "c"),
        group("a").key("b:c"),
        group("a").key("b%3Ac"),
        group("a:b").key("c"),
        group("a}:b").key("c"),
        group("a").key("b}", "c"),
        group("a").key("meta"),
        group("a").key("#meta"),
        group("a"),
        group(""),
        group("%"),
        group("a").key("x}#meta"),
        group("a}:x"),
    ]
    names = [key.entry if isinstance(key, Key) else key.meta for key in keys]
    assert len(set(names)) == len(names)
    assert group("a").key("b", 1).entry == "query:shop:{a}:b:1"
    assert group("a", "salon:").name == "query:shop:salon:{a}"


@settings(max_examples=50, deadline=None)
@given(st.text(), st.text(), st.lists(st.text(), max_size=3))
@example("a", "", [])
@example("a", "{}", ["{}"])
@example("{}", "}{", ["{b}"])
def test_all_keys_of_a_group_have_one_hash_slot_and_the_group_alone_decides_it(
    namespace: str, identifier: str, parts: list[str]
) -> None:
    group = SETTINGS.namespace(namespace).group(identifier, "shelf:")
    tag = group.name.partition("{")[2].removesuffix("}")
    assert tag
    assert {hash_slot(group.meta), hash_slot(group.key(*parts).entry)} == {crc_hqx(tag.encode(), 0) % 16_384}


async def test_sizes_count_the_entries_of_every_namespace_and_no_meta(start: Start) -> None:
    shop, other = await start(), await start()
    await asyncio.gather(*(shop.text(name) for name in ("tea", "milk", "none")))
    ai = other.cache.namespace("aiAnalytics").group("1", "salon:")
    await store(other, ai.key(), "x")
    await other.cache.settle()
    counted = await sizes(shop.cache.store, shop.cache.settings)
    assert counted == {**dict.fromkeys(NAMESPACES, 0), "shop": 3, "aiAnalytics": 1}


async def test_figures_of_the_server_are_for_people(shop: Shop) -> None:
    figures = await server_figures(shop.cache.store)
    assert figures["connected"] is True
    assert isinstance(figures["uptime"], int)
    assert figures["memory"].endswith("B")


async def test_a_caller_that_takes_no_old_answers_asks_past_the_cache(start: Start) -> None:
    shop = await start()
    await shop.text()
    token = MAX_AGE.set(1)
    assert (await shop.read()).source == "hit"
    MAX_AGE.reset(token)
    token = MAX_AGE.set(0)
    assert (await shop.read()).source == "bypass"
    MAX_AGE.reset(token)
    assert len(shop.loads) == 2
