"""Entries: their TTLs, their keys, and the secret that authenticates them."""

import asyncio
from binascii import crc_hqx
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from libs.cache import MAX_AGE, CacheSettings, Key, Namespace, Tag, server_figures, sizes
from libs.cache.codec import Codec, Entry, now_ms
from libs.cache.topology import hash_slot
from tests.cache.shop import Loaded, Shop, Start

REQUIRED_TTLS = {
    "salon": 1800,
    "booking": 300,
    "stats": 120,
    "conversation": 300,
    "messages": 180,
    "aiAnalytics": 600,
    "health": 30,
}
SETTINGS = CacheSettings()


async def store(shop: Shop, key: Key, value: str | None) -> None:
    async def load(conn: object) -> Loaded:
        return Loaded(2**52, value)

    await shop.cache.get(key, load)


def lifetimes(valkey: Any, keys: list[Key]) -> list[int]:
    """Return the remaining lifetime of each entry, in ms."""
    return [int(str(valkey.pttl(key.entry))) for key in keys]


async def test_namespaces_have_their_required_ttls_and_others_the_default(start: Start) -> None:
    cache = (await start(ttl_default=77, ttl={"stats": 60, "shop": 5})).cache
    assert {name: cache.namespace(name).ttl for name in REQUIRED_TTLS} == {**REQUIRED_TTLS, "stats": 60}
    assert [cache.namespace(name).ttl for name in ("shop", "other")] == [5, 77]


async def test_settings_are_read_from_their_documented_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://elsewhere:1")
    monkeypatch.setenv("REDIS_TTL_DEFAULT", "9")
    monkeypatch.setenv("REDIS_TTL", '{"stats": 60}')
    settings = CacheSettings()
    assert (settings.url, settings.ttl_default, settings.apply(Namespace.of("stats", 120)).ttl) == (
        "redis://elsewhere:1", 9, 60
    )  # fmt: skip
    monkeypatch.setenv("REDIS_TTL", '{"stats": 0}')
    with pytest.raises(ValidationError, match="86400"):
        CacheSettings()


@pytest.mark.parametrize("url", ["localhost:6379", "redis://:hidden@localhost:port", "rediss"])
def test_the_error_of_a_bad_url_names_the_setting_and_hides_the_password(url: str) -> None:
    with pytest.raises(ValidationError, match="url") as caught:
        CacheSettings(url=url)
    assert "hidden" not in str(caught.value)


async def test_an_entry_lives_for_the_ttl_of_its_namespace_which_jitter_only_shortens(
    start: Start, valkey: Any
) -> None:
    shop = await start(ttl={"shop": 100})
    keys = [shop.key(f"item {number}") for number in range(200)]
    await asyncio.gather(*(store(shop, key, "x") for key in keys))
    await shop.cache.settle()
    left = lifetimes(valkey, keys)
    assert max(left) <= 100_000
    assert min(left) > 85_000  # 10% of jitter, and the duration of the test
    assert max(left) - min(left) > 5_000


@pytest.mark.parametrize(("ttl", "longest"), [(100, 20), (10, 10)])
async def test_a_not_found_reply_is_cached_for_a_short_time(start: Start, valkey: Any, ttl: int, longest: int) -> None:
    shop = await start(ttl={"shop": ttl}, ttl_negative=20)
    assert (await shop.text("none"), (await shop.read("none"))[:2]) == (None, (None, "hit"))
    assert 0 < lifetimes(valkey, [shop.key("none")])[0] <= longest * 1000


async def test_an_empty_reply_is_not_a_not_found_reply(start: Start, valkey: Any) -> None:
    shop = await start(ttl={"shop": 100}, ttl_negative=20)
    await shop.write("")
    assert (await shop.text(), (await shop.read())[:2]) == ("", (b"", "hit"))
    assert lifetimes(valkey, [shop.key()])[0] > 20_000


async def test_a_tag_version_record_outlives_every_entry(start: Start, valkey: Any) -> None:
    shop = await start(ttl={"shop": 86_400})
    for change in (shop.text, shop.write, shop.text):
        await change()
        assert int(str(valkey.ttl(shop.shelf().version_key))) > 6 * 86_400


async def test_an_entry_stored_under_another_key_is_not_served(shop: Shop, valkey: Any) -> None:
    await shop.write("milky", "milk")
    assert (await shop.text("tea"), await shop.text("milk")) == ("old", "milky")
    valkey.copy(shop.key("milk").entry, shop.key("tea").entry, replace=True)
    assert (await shop.read("tea"))[:2] == (b"old", "miss")


async def test_no_two_replies_share_a_key_and_none_uses_that_of_a_tag_version_record(shop: Shop) -> None:
    tag = shop.cache.namespace("shop").tag
    keys: list[Key | Tag] = [
        tag("a").key("b", "c"),
        tag("a").key("b:c"),
        tag("a").key("b%3Ac"),
        tag("a:b").key("c"),
        tag("a}:b").key("c"),
        tag("a").key("b}", "c"),
        tag("a").key("meta"),
        tag("a").key("#meta"),
        tag("a"),
        tag(""),
        tag("%"),
        tag("a").key("x}#meta"),
        tag("a}:x"),
    ]
    names = [key.entry if isinstance(key, Key) else key.version_key for key in keys]
    assert len(set(names)) == len(names)
    assert tag("a").key("b", 1).entry == "query:shop:{a}:b:1"
    assert tag("a", "salon:").name == "query:shop:salon:{a}"


@settings(max_examples=50, deadline=None)
@given(st.text(), st.text(), st.lists(st.text(), max_size=3))
@example("a", "", [])
@example("a", "{}", ["{}"])
@example("{}", "}{", ["{b}"])
def test_all_keys_of_a_tag_have_one_hash_slot_that_depends_on_the_tag_alone(
    namespace: str, identifier: str, parts: list[str]
) -> None:
    tag = Namespace.of(namespace, 60).tag(identifier, "shelf:")
    hash_tag = tag.name.partition("{")[2].removesuffix("}")
    assert tag
    assert {hash_slot(tag.version_key), hash_slot(tag.key(*parts).entry)} == {crc_hqx(hash_tag.encode(), 0) % 16_384}


async def test_sizes_count_the_entries_of_every_namespace_and_no_tag_version_records(start: Start) -> None:
    shop, other = await start(), await start()
    await asyncio.gather(*(shop.text(name) for name in ("tea", "milk", "none")))
    ai = other.cache.namespace("aiAnalytics").tag("1", "salon:")
    await store(other, ai.key(), "x")
    await other.cache.settle()
    counted = await sizes(shop.cache.store, shop.cache.namespaces.values())
    assert counted == {**dict.fromkeys(REQUIRED_TTLS, 0), "shop": 3, "aiAnalytics": 1}


async def test_server_figures_are_readable(shop: Shop) -> None:
    figures = await server_figures(shop.cache.store)
    assert figures["connected"] is True
    assert isinstance(figures["uptime"], int)
    assert figures["memory"].endswith("B")


async def test_a_read_with_max_age_0_bypasses_the_cache(start: Start) -> None:
    shop = await start()
    await shop.text()
    token = MAX_AGE.set(1)
    assert (await shop.read()).source == "hit"
    MAX_AGE.reset(token)
    token = MAX_AGE.set(0)
    assert (await shop.read()).source == "bypass"
    MAX_AGE.reset(token)
    assert len(shop.loads) == 2


SIGNER = "a secret of this test"
FORGERIES: dict[str, Callable[[bytes], bytes]] = {
    "the body changed": lambda entry: entry[:-1] + b"!",
    "the body shortened": lambda entry: entry[:-1],
    "the body lengthened": lambda entry: entry + b"!",
    "another time": lambda entry: entry[:46] + bytes([entry[46] ^ 1]) + entry[47:],
    "changed to not found": lambda entry: entry[:53] + b"\0" + entry[54:],
    "another digest": lambda entry: entry[:30] + bytes([entry[30] ^ 1]) + entry[31:],
    "made without the secret": lambda entry: entry[:29] + Codec("").encode(FORGED, b"", Entry(b"forged", now_ms())),
    "made with another secret": lambda entry: (
        entry[:29] + Codec(SIGNER + "!").encode(FORGED, entry[:29], Entry(b"forged", now_ms()))
    ),
}
FORGED = "query:shop:shelf:{a}:tea"


@pytest.mark.parametrize("forge", FORGERIES.values(), ids=FORGERIES)
async def test_with_a_cache_key_a_forged_entry_is_a_miss(
    start: Start, valkey: Any, forge: Callable[[bytes], bytes]
) -> None:
    shop = await start(key=SIGNER)
    assert shop.key().entry == FORGED
    assert (await shop.text(), (await shop.read())[:2]) == ("old", (b"old", "hit"))
    valkey.set(FORGED, forge(valkey.get(FORGED)))
    assert (await shop.read())[:2] == (b"old", "miss")
    await shop.cache.settle()
    assert (await shop.read())[:2] == (b"old", "hit")


async def test_with_a_cache_key_an_entry_counts_only_under_its_own_key_and_version(start: Start, valkey: Any) -> None:
    shop = await start(key=SIGNER)
    await shop.write("milky", "milk")
    assert (await shop.text("tea"), await shop.text("milk")) == ("old", "milky")
    valkey.copy(shop.key("milk").entry, shop.key("tea").entry, replace=True)
    assert (await shop.read("tea"))[:2] == (b"old", "miss")
    before = valkey.get(FORGED)
    await shop.write("new")
    version = valkey.get(shop.shelf().version_key)[:29]
    valkey.set(FORGED, version + before[29:])
    assert (await shop.read())[:2] == (b"new", "miss")


async def test_processes_with_different_cache_keys_share_no_entry(start: Start) -> None:
    shops = [await start(key=key) for key in (SIGNER, SIGNER + "!", "")]
    assert [await shop.text() for shop in shops] == ["old"] * 3
    # A miss replaces the entry 20 ms later.
    assert [(await shop.read()).source for shop in reversed(shops)] == ["hit", "miss", "miss"]
    await shops[0].cache.settle()
    await shops[1].write("new")
    assert [await shop.text() for shop in shops] == ["new"] * 3


@pytest.mark.parametrize("key", ["short", "x" * 15])
def test_a_short_cache_key_is_an_error_that_does_not_show_it(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("CACHE_KEY", key)
    with pytest.raises(ValidationError, match="16 characters") as caught:
        CacheSettings()
    assert key not in str(caught.value)
    monkeypatch.setenv("CACHE_KEY", "")
    assert not CacheSettings().key
    monkeypatch.setenv("CACHE_KEY", "x" * 16)
    assert CacheSettings().key.get_secret_value() == "x" * 16
    assert "xxx" not in repr(CacheSettings())
