"""Every RPC that there is answers only callers with an identity and the right to its method and its salon."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from libs.server.auth.methods import SALON_FIELDS, describe
from parlor.booking.v1 import booking_pb2 as pb
from parlor.booking.v1 import booking_pb2_grpc
from tests.callers import POLICY, Callers, Issuer, bearer, fields_of, named_salons, rename, with_tokens
from tests.hostile import OWN, rpcs, valid_requests
from tests.load import until
from tests.stack import (
    SALON,
    Stack,
    failure,
    message_request,
    read_failure,
    salon,
    unary,
    warm,
)

DEPLOYED = Path(__file__).parents[1] / "deploy/policy.toml"
GET = pb.GetSalonRequest(salon_id=SALON)


@pytest.fixture
async def stack(database_url: str, redis_url: str, tmp_path: Path, issuer: Issuer) -> AsyncIterator[Stack]:
    """The services with POLICY."""
    async with with_tokens(database_url, redis_url, tmp_path, issuer) as stack:
        yield stack


@pytest.mark.parametrize("name", OWN)
async def test_every_rpc_refuses_callers_without_identity_method_or_salon(
    stack: Stack, issuer: Issuer, name: str
) -> None:
    requests = await valid_requests(stack)
    async with stack.channel(name) as channel, stack.ops_channel(name) as ops, Callers(stack, issuer, name) as callers:
        for rpc in rpcs(name, channel, ops):
            method = rpc.method.full_name
            valid = rpc.kind(**requests[rpc.method.name])
            names_salons = bool(named_salons(valid))
            expected = {"": "UNAUTHENTICATED", "nothing": "METHOD_NOT_ALLOWED", "elsewhere": "SALON_NOT_ALLOWED"}
            for caller, reason in expected.items():
                error = await callers.outcome(caller, method, valid)
                assert error is not None and error.reason == reason, (method, caller, error)
                code = "UNAUTHENTICATED" if not caller else "PERMISSION_DENIED"
                assert error.code.name == code
            error = await callers.outcome("reader", method, valid)
            may_read = rpc.reads and name in method
            assert (error is None) == may_read, (method, error)
            if names_salons:
                foreign = rpc.kind(**requests[rpc.method.name])
                rename(foreign, "salon-9")
                error = await callers.outcome("owner", method, foreign)
                assert error is not None and error.reason == "SALON_NOT_ALLOWED", (method, error)
                rename(foreign, "")
                error = await callers.outcome("owner", method, foreign)
                assert error is not None and error.reason in ("SALON_NOT_ALLOWED", "INVALID_FIELD"), (method, error)
            caller = "owner" if names_salons else "admin"
            error = await callers.outcome(caller, method, valid)
            assert error is None or error.reason == "INVALID_SIGNATURE", (method, error)


def test_a_field_whose_name_says_salon_is_one_that_is_checked() -> None:
    methods = [
        method
        for module in OWN.values()
        for each in module.DESCRIPTOR.services_by_name.values()
        for method in each.methods
    ]
    fields = [field for method in methods for field in fields_of(method.input_type)]
    named = {field.name for field in fields if "salon" in field.name and field.message_type is None}
    assert named == set(SALON_FIELDS)
    assert {describe(method).group for method in methods} == {"read", "write", "erase"}


async def test_messaging_needs_no_more_rights_than_deploy_grants_it(
    database_url: str, redis_url: str, tmp_path: Path, issuer: Issuer
) -> None:
    granted = DEPLOYED.read_text()
    name = "spiffe://parlor.example/messaging"
    async with with_tokens(database_url, redis_url, tmp_path, issuer, POLICY + granted, name) as stack:
        requests = await valid_requests(stack)
        async with stack.channel("messaging") as channel, stack.ops_channel("messaging") as ops:
            asked = [rpc for rpc in rpcs("messaging", channel, ops) if "messaging" in rpc.method.full_name]
        async with Callers(stack, issuer, "messaging") as callers:
            for rpc in asked:
                error = await callers.outcome("admin", rpc.method.full_name, rpc.kind(**requests[rpc.method.name]))
                assert error is None or error.reason == "INVALID_SIGNATURE", (rpc.method.full_name, error)
        async with Callers(stack, issuer, "booking") as callers, stack.channel("booking") as channel:
            async with stack.ops_channel("booking") as ops:
                asked = rpcs("booking", channel, ops)
            allowed = set()
            for rpc in asked:
                error = await callers.outcome(name, rpc.method.full_name, rpc.kind(**requests[rpc.method.name]))
                if error is None or error.reason != "METHOD_NOT_ALLOWED":
                    allowed.add(rpc.method.name)
        assert allowed == {"GetSalon", "GetSalonByPhoneNumberId"}


async def test_what_was_read_for_one_caller_is_not_given_to_another(stack: Stack, issuer: Issuer) -> None:
    await salon(stack)
    await warm(stack.booking.GetSalon, GET)
    async with Callers(stack, issuer, "booking") as callers:
        method = "parlor.booking.v1.BookingService.GetSalon"
        for caller, reason in {
            "": "UNAUTHENTICATED",
            "nothing": "METHOD_NOT_ALLOWED",
            "elsewhere": "SALON_NOT_ALLOWED",
        }.items():
            await warm(stack.booking.GetSalon, GET)  # near and known by its bytes
            error = await callers.outcome(caller, method, GET)
            assert error is not None and error.reason == reason
        assert await callers.outcome("owner", method, GET) is None


async def test_an_identity_is_not_remembered_for_the_calls_that_follow_on_a_connection(
    stack: Stack, issuer: Issuer
) -> None:
    await salon(stack)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{stack.servers['booking'].port}") as channel:
        booking = booking_pb2_grpc.BookingServiceStub(channel)
        for _ in range(2):
            token = issuer.token("admin")
            assert await booking.GetSalon(GET, metadata=(("authorization", f"Bearer {token}"),))
            assert (await failure(booking.GetSalon(GET))).reason == "UNAUTHENTICATED"


async def test_a_page_token_of_another_salon_leads_nowhere(stack: Stack, issuer: Issuer) -> None:
    for each in (SALON, "salon-9"):
        await salon(stack, each, ["anna", "ben"])
    async with Callers(stack, issuer, "booking") as callers:
        listed: list[Any] = [
            await stack.booking.ListResources(pb.ListResourcesRequest(salon_id="salon-9", page_size=1)),
            await stack.booking.ListBookingChanges(pb.ListBookingChangesRequest(salon_id="salon-9")),
            await stack.booking.ListBookingChanges(pb.ListBookingChangesRequest()),
        ]
        for reply, rpc in zip(listed, ("ListResources", "ListBookingChanges", "ListBookingChanges"), strict=True):
            kind: Any = getattr(pb, f"{rpc}Request")
            request = kind(salon_id=SALON, page_token=reply.next_page_token)
            error = await callers.outcome("owner", f"parlor.booking.v1.BookingService.{rpc}", request)
            assert error is not None and error.code == grpc.StatusCode.INVALID_ARGUMENT


async def test_a_token_narrows_the_salons_of_its_caller_and_never_widens_them(stack: Stack, issuer: Issuer) -> None:
    for each in (SALON, "salon-9"):
        await salon(stack, each)
    allowed = {
        ("admin", SALON): ["salon-1"],
        ("admin", "*"): ["salon-1", "salon-9", ""],
        ("owner", "salon-9"): [],
        ("owner", "*"): ["salon-1"],
        ("owner", f"{SALON} salon-9"): ["salon-1"],
        ("admin", ""): [],
    }
    for (caller, claim), salons in allowed.items():
        connect = bearer(issuer.token(caller, salons=claim.split()))
        async with connect(f"127.0.0.1:{stack.servers['booking'].port}") as channel:
            booking = booking_pb2_grpc.BookingServiceStub(channel)
            for each in (SALON, "salon-9"):
                call = booking.GetSalon(pb.GetSalonRequest(salon_id=each))
                if each in salons:
                    await call
                else:
                    assert (await failure(call)).reason == "SALON_NOT_ALLOWED"
            of_all = booking.ListSalons(pb.ListSalonsRequest())
            if "" in salons:
                await of_all
            else:
                assert (await failure(of_all)).reason == "SALON_NOT_ALLOWED"


async def test_health_needs_no_identity(stack: Stack) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{stack.servers['booking'].port}") as channel:
        assert await unary(channel, "/grpc.health.v1.Health/Check")(b"") == b"\x08\x01"


async def test_messaging_calls_booking_with_its_own_identity(
    database_url: str, redis_url: str, tmp_path: Path, issuer: Issuer
) -> None:
    policy = POLICY + '[callers.messaging]\nmethods = ["booking:GetSalon"]\nsalons = ["*"]\n'
    async with with_tokens(database_url, redis_url, tmp_path, issuer, policy) as stack:
        await salon(stack)
        (tmp_path / "token").write_text(issuer.token("nothing"))
        await salon(stack, "salon-2")

        async def record(salon_id: str, whatsapp_id: str) -> str:
            try:
                await stack.messaging.RecordMessage(message_request(whatsapp_id, salon_id=salon_id))
            except grpc.aio.AioRpcError as error:
                return read_failure(error).reason
            return "OK"

        async def fails() -> bool:
            numbers.append(f"wamid.{len(numbers)}")
            return await record(f"salon-{len(numbers)}", numbers[-1]) == "BOOKING_UNAVAILABLE"

        numbers: list[str] = []
        await until(fails)
        (tmp_path / "token").write_text(issuer.token("messaging"))

        async def succeeds() -> bool:
            return await record("salon-2", "wamid.new") == "OK"

        await until(succeeds)


async def test_a_changed_policy_applies_at_once_also_to_open_streams_and_a_broken_one_does_not(
    stack: Stack, issuer: Issuer, tmp_path: Path
) -> None:
    await salon(stack)
    async with bearer(issuer.token("owner"))(f"127.0.0.1:{stack.servers['booking'].port}") as channel:
        booking: Any = booking_pb2_grpc.BookingServiceStub(channel)
        watching = booking.WatchBookings(pb.WatchBookingsRequest(salon_id=SALON))
        await watching.read()
        broken = ['[callers."x"]\nmethods = 1', "[", '[callers."x"]\nmethods = ["booking:Nothing"]', "\n[other]\nx = 1"]
        for text in broken:
            (tmp_path / "policy.toml").write_text(text)
            await stack.servers["booking"].reload()
            assert await booking.GetSalon(GET)
        (tmp_path / "policy.toml").write_text(POLICY.replace("callers.owner", "callers.other"))
        await stack.servers["booking"].reload()
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            async with asyncio.timeout(10):
                await watching.read()
                await watching.read()
        assert read_failure(ended.value).reason == "METHOD_NOT_ALLOWED"
        assert (await failure(booking.GetSalon(GET))).reason == "METHOD_NOT_ALLOWED"


async def test_a_stream_ends_when_its_token_expires(stack: Stack, issuer: Issuer) -> None:
    await salon(stack)
    token = issuer.token("owner", lives=-27)  # 30 s of leeway
    async with bearer(token)(f"127.0.0.1:{stack.servers['booking'].port}") as channel:
        booking: Any = booking_pb2_grpc.BookingServiceStub(channel)
        watching = booking.WatchBookings(pb.WatchBookingsRequest(salon_id=SALON))
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            async with asyncio.timeout(20):
                while True:
                    await watching.read()
        assert read_failure(ended.value).reason == "UNAUTHENTICATED"
        assert (await failure(booking.GetSalon(GET))).reason == "UNAUTHENTICATED"
