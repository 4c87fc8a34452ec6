"""The three services in the process of the test, called through their stubs."""

from __future__ import annotations  # the AsyncStubs exist in the .pyi only

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeAlias, TypeVar

import grpc
import psycopg
import pytest
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2
from google.rpc.status_pb2 import Status
from pydantic import SecretStr

from libs.cache import Cache, CacheSettings
from libs.db import Database, DatabaseSettings, Replica
from libs.server import Server, ServerSettings, serve
from ops.migrate import service_url
from parlor.booking.v1 import booking_pb2, booking_pb2_grpc
from parlor.messaging.v1 import messaging_pb2, messaging_pb2_grpc
from parlor.ops.v1 import ops_pb2_grpc
from parlor.ops.v1.ops_pb2 import GetDatabaseMetricsRequest
from parlor.stats.v1 import stats_pb2_grpc
from services.booking.service import build as build_booking
from services.messaging.service import build as build_messaging
from services.messaging.settings import MessagingSettings
from services.namespaces import NAMESPACES
from services.stats.service import build as build_stats

M = TypeVar("M", bound=Message)
Fields: TypeAlias = dict[str, Any]
Connect: TypeAlias = Callable[[str], grpc.aio.Channel]
SECRET = "parlor-test"  # noqa: S105
SALON = "salon-1"
RESOURCES = ("anna", "ben", "cleo", "chair_1")
PHONE = "+4915112345678"
REDIS_TIMEOUT = 10_000  # in ms, so long that a busy machine does not look like an outage


@dataclass
class Stack:
    """Stubs and servers of the three services; `ops[name]` is the stub of a service's OpsService."""

    booking: booking_pb2_grpc.BookingServiceAsyncStub
    messaging: messaging_pb2_grpc.MessagingServiceAsyncStub
    stats: stats_pb2_grpc.StatsServiceAsyncStub
    ops: dict[str, ops_pb2_grpc.OpsServiceAsyncStub]
    servers: dict[str, Server]
    database_url: str
    connect: Connect = grpc.aio.insecure_channel

    def channel(self, name: str) -> grpc.aio.Channel:
        """Return a new channel to a service; the caller closes it."""
        return self.connect(f"127.0.0.1:{self.servers[name].port}")

    def ops_channel(self, name: str) -> grpc.aio.Channel:
        """Return a new channel to a service's OpsService; the caller closes it."""
        return self.connect(f"127.0.0.1:{self.servers[name].ops_port}")


@asynccontextmanager
async def running(
    database_url: str,
    redis_url: str,
    *,
    cache: dict[str, Any] | None = None,
    database: dict[str, Any] | None = None,
    server: dict[str, Any] | None = None,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
    messaging: dict[str, Any] | None = None,
    connect: Connect = grpc.aio.insecure_channel,
    replica_url: str = "",
) -> AsyncIterator[Stack]:
    """Run the three services; the dicts are settings that differ from the defaults, `now` is the clock of booking.

    `connect` returns the channel to an address, for the stubs.
    """
    async with AsyncExitStack() as exits:
        servers: dict[str, Server] = {}

        async def start(name: str, build: Callable[..., Any], *, read_only: bool = False) -> list[grpc.aio.Channel]:
            url = SecretStr(service_url(database_url, f"parlor_{name}"))
            pool = Database(DatabaseSettings(url=url, **(database or {})), f"test-{name}")
            settings = CacheSettings(**{"url": redis_url, "refill": 0, **(cache or {})})  # removed entries stay misses
            replica = None
            if replica_url:
                standby = DatabaseSettings(url=SecretStr(service_url(replica_url, f"parlor_{name}")))
                replica = Replica(standby, f"test-{name}", pool)
            if "timeout" not in (cache or {}):
                settings = settings.model_copy(update={"timeout": REDIS_TIMEOUT})
            cached = Cache(settings, pool.connection, bytes, NAMESPACES, read_only=read_only, replica=replica)
            listen = ServerSettings(**{"port": 0, "ops_port": 0, **(server or {})})
            servers[name] = await exits.enter_async_context(
                serve(listen, pool, cached, build(cached, pool), replica=replica)
            )
            return [
                await exits.enter_async_context(connect(f"127.0.0.1:{port}"))
                for port in (servers[name].port, servers[name].ops_port)
            ]

        booking, *ops = await start("booking", lambda cached, pool: build_booking(cached, pool, now))
        settings = MessagingSettings(
            booking_address=f"127.0.0.1:{servers['booking'].port}",
            whatsapp_app_secret=SecretStr(SECRET),
            **(messaging or {}),
        )
        to_messaging, *more = await start("messaging", lambda cached, pool: build_messaging(cached, pool, settings))
        stats, *most = await start("stats", build_stats, read_only=True)
        channels = dict(zip(servers, ops + more + most, strict=True))
        yield Stack(
            booking_pb2_grpc.BookingServiceStub(booking),
            messaging_pb2_grpc.MessagingServiceStub(to_messaging),
            stats_pb2_grpc.StatsServiceStub(stats),
            {name: ops_pb2_grpc.OpsServiceStub(channel) for name, channel in channels.items()},
            servers,
            database_url,
            connect,
        )


@asynccontextmanager
async def quiet(database_url: str, redis_url: str, **settings: Any) -> AsyncIterator[Stack]:
    """Run services that send no background statements: one connection, no poll of cache_outbox, all first jobs done."""
    settings |= {"database": {"connection_limit": 1}, "cache": {"poll": 60_000}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("services.booking.expiry.EVERY_SECONDS", 3600)
        patch.setattr("services.messaging.rollups.FIRST_SECONDS", 3600)
        async with running(database_url, redis_url, **settings) as stack:
            before, now = list[int](), [await executed(stack, name) for name in ("booking", "messaging")]
            while now != before:
                await asyncio.sleep(0.5)
                before, now = now, [await executed(stack, name) for name in ("booking", "messaging")]
            yield stack


@dataclass
class Failure:
    """The error of a failed RPC."""

    code: grpc.StatusCode
    message: str
    reason: str
    domain: str
    metadata: dict[str, str]
    details: list[Message]
    trailing: dict[str, str | bytes]

    @property
    def fields(self) -> list[str]:
        """The fields named by BadRequest."""
        return [
            violation.field
            for detail in self.details
            if isinstance(detail, error_details_pb2.BadRequest)
            for violation in detail.field_violations
        ]

    def has(self, kind: type[Message]) -> bool:
        """Return whether there is a detail of a kind."""
        return any(isinstance(detail, kind) for detail in self.details)


_KINDS = [
    error_details_pb2.BadRequest,
    error_details_pb2.PreconditionFailure,
    error_details_pb2.ResourceInfo,
    error_details_pb2.RetryInfo,
]


async def failure(call: Awaitable[Any]) -> Failure:
    """Return the error of a call, which must fail with ErrorInfo as its first detail."""
    try:
        answer = await call
    except grpc.aio.AioRpcError as error:
        return read_failure(error)
    raise AssertionError(f"did not fail: {answer}")


def read_failure(error: grpc.aio.AioRpcError) -> Failure:
    """Parse an error of grpcio."""
    trailing: dict[str, str | bytes] = dict(error.trailing_metadata() or ())
    status = Status.FromString(bytes(trailing["grpc-status-details-bin"]))  # type: ignore[arg-type]
    assert status.code == error.code().value[0]
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    details: list[Message] = []
    for packed in status.details[1:]:
        kind = next(kind for kind in _KINDS if packed.Is(kind.DESCRIPTOR))
        detail = kind()
        packed.Unpack(detail)
        details.append(detail)
    message, metadata = error.details() or "", dict(info.metadata)
    return Failure(error.code(), message, info.reason, info.domain, metadata, details, trailing)


def unary(channel: grpc.aio.Channel, method: str) -> Callable[[bytes], Any]:
    """Return a method of a channel that takes and returns bytes."""
    call: Any = channel.unary_unary(method)
    return lambda data: call(data)


async def cached(call: Any) -> tuple[Any, str]:
    """Return the reply of a call, and its `x-cache`."""
    reply = await call
    return reply, str(dict(await call.trailing_metadata())["x-cache"])


async def warm(rpc: Callable[[Any], Any], request: Any) -> Any:
    """Return the reply as soon as it comes from the cache, which stores replies in the background."""
    async with asyncio.timeout(10):
        while True:
            reply, source = await cached(rpc(request))
            if source in ("hit", "near"):
                return reply


async def fresh(rpc: Callable[[Any], Any], request: Any) -> Any:
    """Return the reply, which must not come from the cache."""
    reply, source = await cached(rpc(request))
    assert source not in ("hit", "near")
    return reply


async def walk(rpc: Callable[[Any], Any], request: Any, page_size: int) -> list[Any]:
    """Return the items of all pages of a list; only the last page may be short."""
    found: list[Any] = []
    asked = type(request)()
    asked.CopyFrom(request)
    asked.page_size = page_size
    while True:
        reply = await rpc(asked)
        found += getattr(reply, reply.DESCRIPTOR.fields[0].name)
        if not reply.next_page_token:
            return found
        assert len(found) % page_size == 0
        asked.page_token = reply.next_page_token


async def executed(stack: Stack, name: str) -> int:
    """Return the number of statements that a service has sent; see `quiet`."""
    return (await stack.ops[name].GetDatabaseMetrics(GetDatabaseMetricsRequest())).queries.queries_executed


def unconnected_cache() -> Cache:
    """Return a cache that has the services' namespaces, for their tags, and can't read or write."""
    return Cache(CacheSettings(), lambda: None, bytes, NAMESPACES)  # type: ignore[arg-type, return-value]


def rows(database_url: str, query: str) -> list[Any]:
    """Return the rows of a query, run as the owner of the database."""
    with psycopg.connect(database_url, autocommit=True) as conn:
        return conn.execute(query.encode()).fetchall()


def deadlocks(stack: Stack) -> int:
    """Return the number of deadlocks. Ends all connections, because idle ones report theirs late."""
    query = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename LIKE 'parlor_%'"
    assert all(ended for (ended,) in rows(stack.database_url, query + " AND datname = current_database()"))
    [[found]] = rows(stack.database_url, "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    return int(found)


async def salon(
    stack: Stack, salon_id: str = SALON, resources: Sequence[str] = RESOURCES, **fields: Any
) -> booking_pb2.Salon:
    """Create or replace a salon, with resources that are always available."""
    values = {"phone_number_id": f"10{salon_id}", "name": "Hair", "time_zone": "Europe/Berlin", **fields}
    found = await stack.booking.UpsertSalon(
        booking_pb2.UpsertSalonRequest(salon=booking_pb2.Salon(salon_id=salon_id, **values))
    )
    if resources:
        with psycopg.connect(stack.database_url, autocommit=True) as conn:
            conn.execute(
                "INSERT INTO resources (salon_id, resource_id, name) SELECT %s, id, id FROM unnest(%s::text[]) AS id"
                " ON CONFLICT DO NOTHING",
                [salon_id, list(resources)],
            )
    return found


def booking_request(start: int = 1_800_000_000, **fields: Any) -> booking_pb2.CreateBookingRequest:
    """Return a request for an hour from `start`, in s since 1970. It ignores the rules: the salon may be closed."""
    times = {"start_time": Timestamp(seconds=start), "end_time": Timestamp(seconds=start + 3600)}
    values = {"salon_id": SALON, "customer_phone": PHONE, "ignore_rules": True, **times, **fields}
    return booking_pb2.CreateBookingRequest(**values)


def message_request(whatsapp_id: str = "wamid.1", **fields: Any) -> messaging_pb2.RecordMessageRequest:
    """Return a request to record an inbound message."""
    values = {"salon_id": SALON, "phone_number": PHONE, "direction": "MESSAGE_DIRECTION_INBOUND", "content": "hi"}
    return messaging_pb2.RecordMessageRequest(whatsapp_id=whatsapp_id, **{**values, **fields})


def webhook_body(phone_number_id: str, **items: Any) -> bytes:
    """Return a webhook body of one change; `items` are its `messages` and `statuses`."""
    metadata = {"display_phone_number": "15550001111", "phone_number_id": phone_number_id}
    value = {"messaging_product": "whatsapp", "metadata": metadata, **items}
    entry = {"id": "1", "changes": [{"field": "messages", "value": value}]}
    return json.dumps({"object": "whatsapp_business_account", "entry": [entry]}).encode()
