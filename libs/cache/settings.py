"""Settings of the cache: environment variables that begin with REDIS_."""

from dataclasses import replace
from enum import StrEnum
from typing import Annotated

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from libs.cache.address import parse_address
from libs.cache.keys import Namespace

SHORTEST_KEY = 16  # characters


class WithoutRedis(StrEnum):
    """What a write does when its invalidation can't reach Redis."""

    BOUNDED = "bounded"
    WAIT = "wait"
    REFUSE = "refuse"


class TtlProfile(StrEnum):
    """Which TTLs namespaces have that REDIS_TTL does not list."""

    SHORT = "short"
    LONG = "long"


class CacheSettings(BaseSettings):
    """How a process uses Redis or Valkey. It must keep nothing on disk, and have this database to itself."""

    model_config = SettingsConfigDict(
        env_prefix="REDIS_", env_ignore_empty=True, hide_input_in_errors=True, populate_by_name=True
    )

    url: str = Field(
        "redis://localhost:6379",
        description="The server, or several hosts of which the first master, or any node of a cluster, is used; or the "
        "Sentinels that name it: redis+sentinel://h1,h2,h3/name.",
    )
    key: SecretStr = Field(
        SecretStr(""),
        validation_alias="CACHE_KEY",
        description="A secret of at least 16 characters by which entries are signed, so that nobody who can write to "
        "the server can make up a reply; empty: none. The same in all processes; a change empties the cache.",
    )
    ttl_profile: TtlProfile = Field(
        TtlProfile.SHORT,
        description="`long` keeps bookings, conversations and messages for an hour: more hits, and no less fresh.",
    )
    ttl_default: int = Field(300, ge=1, le=86_400, description="TTL of a namespace that is not listed, in s.")
    ttl: dict[str, int] = Field({}, description='TTL by namespace, in s, as JSON: {"stats": 60}.')
    ttl_negative: int = Field(30, ge=1, le=86_400, description="Longest TTL of an answer that there is nothing, in s.")
    refresh: dict[str, Annotated[float, Field(gt=0, le=1)]] = Field(
        {},
        description="By namespace, the share of its TTL from which on a hit is loaded again behind the reply, as JSON: "
        '{"stats": 0.6}; 1 is never.',
    )
    refill: int = Field(
        10_000,
        ge=0,
        le=1_000_000,
        description="How many entries a process remembers that callers missed, to load those that are read often again "
        "after its own writes; 0: none.",
    )
    timeout: int = Field(90, ge=1, le=100, description="Longest time of a call to the server, in ms.")
    without: WithoutRedis = Field(
        WithoutRedis.BOUNDED,
        description="When a write can't reach the server: `bounded` commits, and readers that still reach it may be "
        "behind for one `poll`; `wait` answers when no reader can be behind any more, after one `poll` at most, and no "
        "process serves hits without Postgres; `refuse` fails the write with UNAVAILABLE. The same in all processes.",
    )
    poll: int = Field(
        1000,
        ge=10,
        le=60_000,
        description="How often writes without the server are looked for, in ms; with `wait`, the longest time that "
        "such a write is kept waiting: they are looked for three times as often. The same in all processes.",
    )
    near: tuple[str, ...] | None = Field(
        None,
        description='Namespaces that each process also keeps itself, as JSON: ["salon"]; unset: their own default.',
    )
    near_lease: int = Field(
        1000, ge=0, le=60_000, description="How far those may be behind a write, in ms; 0: no such."
    )
    near_size: int = Field(32, ge=1, le=65_536, description="Most that the near cache holds, in MiB.")

    @field_validator("url")
    @classmethod
    def _readable(cls, url: str) -> str:
        parse_address(url)
        return url

    @field_validator("key")
    @classmethod
    def _long_enough(cls, key: SecretStr) -> SecretStr:
        if 0 < len(key) < SHORTEST_KEY:
            raise ValueError(f"a secret has at least {SHORTEST_KEY} characters")
        return key

    @field_validator("ttl")
    @classmethod
    def _positive(cls, ttl: dict[str, int]) -> dict[str, int]:
        if any(not 1 <= seconds <= 86_400 for seconds in ttl.values()):
            raise ValueError("a TTL is 1 to 86400 s")
        return ttl

    def apply(self, namespace: Namespace) -> Namespace:
        """Return a namespace with the TTL, refresh and near cache that the settings say."""
        is_long = self.ttl_profile is TtlProfile.LONG
        near = namespace.near if self.near is None else namespace.name in self.near
        return replace(
            namespace,
            ttl=self.ttl.get(namespace.name, namespace.long_ttl if is_long else namespace.ttl),
            refresh=self.refresh.get(namespace.name, namespace.refresh),
            near=near and self.near_lease > 0,
        )
