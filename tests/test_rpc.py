"""What every server offers besides its RPCs, and the retries of our channels."""

from __future__ import annotations  # the AsyncStubs exist in the .pyi only

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from libs.server.client import channel
from parlor.booking.v1 import booking_pb2 as pb
from parlor.booking.v1 import booking_pb2_grpc
from tests.locks import SALONS, holding, waiting
from tests.stack import SALON, Stack, booking_request, cached, failure, fresh, salon, unary, warm

SERVICES = {name: f"parlor.{name}.v1.{name.capitalize()}Service" for name in ("booking", "messaging", "stats")}
OPS = "parlor.ops.v1.OpsService"
GET_SALON = pb.GetSalonRequest(salon_id=SALON)
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.mark.parametrize("name", SERVICES)
async def test_reflection_describes_every_method(stack: Stack, name: str) -> None:
    def ask() -> None:
        server = stack.servers[name]
        for port, described in ((server.port, [SERVICES[name]]), (server.ops_port, [SERVICES[name], OPS])):
            with grpc.insecure_channel(f"127.0.0.1:{port}") as plain:
                database = ProtoReflectionDescriptorDatabase(plain)
                health, reflection = "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"
                assert set(database.get_services()) == {*described, health, reflection}
                pool = DescriptorPool(database)
                for service in described:
                    for method in pool.FindServiceByName(service).methods:
                        assert method.input_type.full_name.endswith(f"{method.name}Request")

    await asyncio.to_thread(ask)


@pytest.mark.parametrize("name", SERVICES)
async def test_health_has_a_status_per_service_and_one_for_the_process(stack: Stack, name: str) -> None:
    async with stack.channel(name) as plain:
        health: Any = health_pb2_grpc.HealthStub(plain)
        for service in (SERVICES[name], OPS, ""):
            reply = await health.Check(health_pb2.HealthCheckRequest(service=service))
            assert reply.status == SERVING
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await health.Check(health_pb2.HealthCheckRequest(service="parlor.unknown"))
        assert error.value.code() == grpc.StatusCode.NOT_FOUND
        listed = await health.List(health_pb2.HealthListRequest())  # type: ignore[attr-defined]
        assert {name: reply.status for name, reply in listed.statuses.items()} == dict.fromkeys(
            (SERVICES[name], OPS, ""), SERVING
        )


async def test_while_draining_health_is_not_serving_and_an_accepted_rpc_is_answered(stack: Stack) -> None:
    await salon(stack)
    async with stack.channel("booking") as plain, holding(stack.database_url, SALONS) as other:
        health: Any = health_pb2_grpc.HealthStub(plain)
        watch = health.Watch(health_pb2.HealthCheckRequest(service=SERVICES["booking"]))
        assert (await watch.read()).status == SERVING
        call = stack.booking.CreateBooking(booking_request())
        await waiting(other)
        drain = asyncio.ensure_future(stack.servers["booking"].drain())
        assert (await watch.read()).status == NOT_SERVING
        await other.rollback()
        assert (await call).salon_id == SALON
        await drain


async def test_a_reply_has_its_source_and_its_age(stack: Stack) -> None:
    await salon(stack)
    await fresh(stack.booking.GetSalon, GET_SALON)
    await warm(stack.booking.GetSalon, GET_SALON)
    for metadata, source in ((("cache-control", "max-age=60"),), "hit"), ((), "near"):
        call = stack.booking.GetSalon(GET_SALON, metadata=metadata)
        trailers = dict(await call.trailing_metadata())
        assert trailers["x-cache"] == source
        assert 0 <= int(trailers["x-cache-age-ms"]) < 10_000


async def test_cache_control_limits_the_age_of_a_reply(stack: Stack) -> None:
    known = await salon(stack)
    await warm(stack.booking.GetSalon, GET_SALON)
    for value, source in (
        ("no-cache", "bypass"),
        ("max-age=0", "bypass"),
        ("max-age=3600", "hit"),
        ("max-age=99999999999999999999", "hit"),
        ("max-age=" + "9" * 5000, "hit"),  # int() refuses as many digits
        ("max-age=" + "0" * 5000, "bypass"),
        ("max-age=" + "0" * 5000 + "9", "hit"),
        ("max-age=" + "x" * 5000, "near"),
        ("max-age=", "near"),
        ("max-age=+1", "near"),
        ("max-age=-1", "near"),
        ("max-age=x", "near"),
        ("private", "near"),
    ):
        call = stack.booking.GetSalon(GET_SALON, metadata=(("cache-control", value),), timeout=10)
        assert await cached(call) == (known, source), value[:20]
    assert (await cached(stack.booking.GetSalon(GET_SALON)))[1] == "near"


async def test_an_unknown_method_is_unimplemented(stack: Stack) -> None:
    async with stack.channel("stats") as plain:
        for method in ("/parlor.stats.v1.StatsService/Nothing", "/parlor.booking.v1.BookingService/GetSalon", "/x"):
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await unary(plain, method)(b"")
            assert error.value.code() == grpc.StatusCode.UNIMPLEMENTED


class Flaky:
    """A booking service that is UNAVAILABLE `failures` times before it answers; `asked` has the requests."""

    def __init__(self, failures: int, *metadata: tuple[str, str]) -> None:
        """Fail `failures` times, with `metadata`."""
        self.failures = failures
        self.metadata = metadata
        self.asked: list[Any] = []

    async def answer(self, request: Any, context: Any) -> bytes:
        """Record the request; answer an empty message, or fail."""
        self.asked.append(request)
        if len(self.asked) <= self.failures:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "not yet", self.metadata)
        return b""


@asynccontextmanager
async def served(flaky: Flaky) -> AsyncIterator[booking_pb2_grpc.BookingServiceAsyncStub]:
    """Serve it and yield a stub on one of our channels."""
    kinds: dict[str, Any] = {"GetSalon": pb.GetSalonRequest, "CreateBooking": pb.CreateBookingRequest}
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        name: grpc.unary_unary_rpc_method_handler(flaky.answer, request_deserializer=kind.FromString)
        for name, kind in kinds.items()
    }
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICES["booking"], handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with channel(f"127.0.0.1:{port}", pb.DESCRIPTOR.services_by_name["BookingService"]) as ours:
            yield booking_pb2_grpc.BookingServiceStub(ours)
    finally:
        await server.stop(None)


async def test_a_read_is_retried_while_the_server_is_unavailable() -> None:
    flaky = Flaky(3)
    async with served(flaky) as stub:
        assert await stub.GetSalon(GET_SALON) == pb.Salon()
    assert flaky.asked == [GET_SALON] * 4


async def test_a_negative_pushback_prevents_the_retry() -> None:
    flaky = Flaky(1, ("grpc-retry-pushback-ms", "-1"))
    async with served(flaky) as stub:
        with pytest.raises(grpc.aio.AioRpcError, match="not yet"):
            await stub.GetSalon(GET_SALON)
    assert len(flaky.asked) == 1


async def test_a_mutation_is_retried_with_its_request_id() -> None:
    flaky = Flaky(2)
    request = booking_request()
    async with served(flaky) as stub:
        await stub.CreateBooking(request)
        named = booking_request(request_id="6e6e3a60-43ba-4ab9-8d2a-7b1a3d6f2c11")
        await stub.CreateBooking(named)
    first, *retries, last = flaky.asked
    assert UUID(first.request_id).version == 4
    assert retries == [first, first]
    assert last == named
    assert request.request_id == ""


async def test_our_channel_passes_on_the_details_of_an_error(stack: Stack) -> None:
    async with channel(
        f"127.0.0.1:{stack.servers['booking'].port}", pb.DESCRIPTOR.services_by_name["BookingService"]
    ) as ours:
        error = await failure(booking_pb2_grpc.BookingServiceStub(ours).GetSalon(GET_SALON))
        assert error.reason == "SALON_NOT_FOUND"
