"""Quotas of callers and salons: who exceeds one is refused, and the calls of others are answered.

No test depends on the speed of the machine: a quota is used up for the whole test, or the time that went by is counted.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import RetryInfo

from libs.server.auth import quotas
from parlor.booking.v1 import booking_pb2 as pb
from parlor.booking.v1 import booking_pb2_grpc
from tests.benchmarks.client import Call, Client, Result, calls_of
from tests.callers import POLICY, Issuer, bearer, jwt_settings
from tests.stack import SALON, Stack, failure, running, salon, warm

QUOTA = 50  # calls per second of a flood's caller and salon
TIMES = 10
OTHERS = 40  # within the quota of their salon
GET = pb.GetSalonRequest(salon_id=SALON)
GET_OTHER = pb.GetSalonRequest(salon_id="salon-2")
ONCE = "{ calls_per_second = 0.001 }"  # the second call has to wait for 16 minutes

ONE_CALL = f"""
[callers.once]
methods = ["booking:read"]
salons = ["*"]
quota = {ONCE}
[callers.soon]
methods = ["booking:read"]
salons = ["*"]
quota = {{ calls_per_second = 2 }}
[callers.wide]
methods = ["booking:read"]
salons = ["*"]
quota = {{ calls_under_way = 2 }}
"""
ONE_CALL_FOR_A_SALON = f"[quotas]\nsalon = {ONCE}\n"
FLOODED = f"""
[quotas]
salon = {{ calls_per_second = {QUOTA} }}
[callers.loud]
methods = ["booking:read"]
salons = ["*"]
quota = {{ calls_per_second = {QUOTA} }}
"""


@pytest.fixture
async def stack(database_url: str, redis_url: str, tmp_path: Path, issuer: Issuer) -> AsyncIterator[Stack]:
    """The services with two salons; `limit` adds quotas."""
    (tmp_path / "token").write_text(issuer.token())
    async with running(
        database_url,
        redis_url,
        server=jwt_settings(tmp_path, issuer),
        messaging={"booking_token_file": tmp_path / "token"},
        connect=bearer(issuer.token()),
    ) as stack:
        await salon(stack)
        await salon(stack, "salon-2")
        yield stack


async def limit(stack: Stack, folder: Path, more: str) -> None:
    """Add to the policy of booking; quotas that change are unused."""
    (folder / "policy.toml").write_text(POLICY + more)
    await stack.servers["booking"].reload()


async def watches(booking: Any) -> list[Any]:
    """Begin two calls of WatchBookings."""
    watching = [booking.WatchBookings(pb.WatchBookingsRequest(salon_id=SALON)) for _ in range(2)]
    for each in watching:
        await each.read()
    return watching


async def reasons(stub: Any, times: int, request: Any = GET) -> list[str]:
    """Return the reasons for which calls fail, "OK" for those that do not."""
    method = stub.GetSalon if isinstance(request, pb.GetSalonRequest) else stub.BatchGetSalons
    found = []
    for _ in range(times):
        call = method(request)
        try:
            await call
            found.append("OK")
        except grpc.aio.AioRpcError:
            error = await failure(call)
            assert error.code == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert error.has(RetryInfo) and int(error.trailing["grpc-retry-pushback-ms"]) >= 250
            found.append(error.reason)
    return found


def channel(stack: Stack, token: str) -> grpc.aio.Channel:
    """Return a channel to booking."""
    return bearer(token)(f"127.0.0.1:{stack.servers['booking'].port}")


async def test_a_caller_over_its_calls_per_second_is_refused_and_others_are_not(
    stack: Stack, issuer: Issuer, tmp_path: Path
) -> None:
    await limit(stack, tmp_path, ONE_CALL)
    async with channel(stack, issuer.token("once")) as opened:
        assert await reasons(booking_pb2_grpc.BookingServiceStub(opened), 3) == ["OK", *["QUOTA_EXCEEDED"] * 2]
    async with channel(stack, issuer.token("once", salons=[SALON])) as opened:  # another token of the same caller
        assert await reasons(booking_pb2_grpc.BookingServiceStub(opened), 1) == ["QUOTA_EXCEEDED"]
    assert await reasons(stack.booking, 3) == ["OK"] * 3


async def test_a_caller_over_its_calls_per_second_is_answered_again_later(
    stack: Stack, issuer: Issuer, tmp_path: Path
) -> None:
    await limit(stack, tmp_path, ONE_CALL)
    async with channel(stack, issuer.token("soon")) as opened, asyncio.timeout(60):
        booking = booking_pb2_grpc.BookingServiceStub(opened)
        began = time.monotonic()
        found = await reasons(booking, 50)
        most = 2 * (1 + time.monotonic() - began)
        assert found[0] == "OK" and found.count("OK") <= most and set(found) <= {"OK", "QUOTA_EXCEEDED"}
        while await reasons(booking, 1) != ["OK"]:
            pass


async def test_a_salon_over_its_calls_per_second_is_refused_to_all_callers_and_others_are_not(
    stack: Stack, issuer: Issuer, tmp_path: Path
) -> None:
    await limit(stack, tmp_path, ONE_CALL_FOR_A_SALON)
    assert await reasons(stack.booking, 3) == ["OK", *["QUOTA_EXCEEDED"] * 2]
    async with channel(stack, issuer.token("owner")) as opened:
        assert await reasons(booking_pb2_grpc.BookingServiceStub(opened), 1) == ["QUOTA_EXCEEDED"]
    assert await reasons(stack.booking, 1, GET_OTHER) == ["OK"]
    both = pb.BatchGetSalonsRequest(salon_ids=["salon-2", SALON])
    assert await reasons(stack.booking, 1, both) == ["QUOTA_EXCEEDED"]


async def test_a_call_over_the_quota_of_its_salon_counts_once_for_its_caller(
    stack: Stack, issuer: Issuer, tmp_path: Path
) -> None:
    await warm(stack.booking.GetSalon, GET)
    await warm(stack.booking.GetSalon, GET)  # the near cache has it
    await limit(stack, tmp_path, ONE_CALL_FOR_A_SALON + ONE_CALL)
    assert await reasons(stack.booking, 1) == ["OK"]
    async with channel(stack, issuer.token("once")) as opened:
        booking = booking_pb2_grpc.BookingServiceStub(opened)
        not_counted = await failure(
            booking.DeleteResource(pb.DeleteResourceRequest(salon_id=SALON, resource_id="anna"))
        )
        assert not_counted.reason == "METHOD_NOT_ALLOWED"  # now the caller is known
        refused = await failure(booking.GetSalon(GET))
    assert refused.message.startswith("the salon has too many calls")


@pytest.mark.parametrize("quota", [ONE_CALL, ONE_CALL_FOR_A_SALON], ids=["of a caller", "of a salon"])
async def test_a_reload_refills_no_quota_that_is_unchanged(
    stack: Stack, issuer: Issuer, tmp_path: Path, quota: str
) -> None:
    caller = "once" if quota == ONE_CALL else "reader"
    await limit(stack, tmp_path, quota)
    async with channel(stack, issuer.token(caller)) as opened:
        booking = booking_pb2_grpc.BookingServiceStub(opened)
        assert await reasons(booking, 2) == ["OK", "QUOTA_EXCEEDED"]
        await limit(stack, tmp_path, quota + '[callers.new]\nmethods = ["read"]\n')
        assert await reasons(booking, 2) == ["QUOTA_EXCEEDED"] * 2
        await limit(stack, tmp_path, quota.replace("0.001", "0.002"))
        assert await reasons(booking, 2) == ["OK", "QUOTA_EXCEEDED"]


@pytest.mark.parametrize("of", ["caller", "salon"])
async def test_calls_under_way_still_count_after_a_reload(
    stack: Stack, issuer: Issuer, tmp_path: Path, of: str
) -> None:
    await limit(stack, tmp_path, f"[quotas]\n{of} = {{ calls_under_way = 2 }}\n")
    async with channel(stack, issuer.token("reader")) as opened:
        booking: Any = booking_pb2_grpc.BookingServiceStub(opened)
        watching = await watches(booking)
        assert await reasons(booking, 1) == ["QUOTA_EXCEEDED"]
        for most in (2, 1, 2):
            await limit(stack, tmp_path, f"[quotas]\n{of} = {{ calls_under_way = {most} }}\n")
            assert await reasons(booking, 1) == ["QUOTA_EXCEEDED"]
        watching[0].cancel()
        async with asyncio.timeout(10):
            while await reasons(booking, 1) != ["OK"]:
                pass
        watching[1].cancel()


def test_with_too_many_salons_one_without_calls_under_way_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quotas, "MOST_SALONS", 3)
    usages = quotas.SalonUsages()
    usages.limit(quotas.Quota(calls_per_second=0.001, calls_under_way=1))
    first, second = usages.of("1"), usages.of("2")
    assert first and second and first.take() and second.take()
    first.under_way += 1
    for number in range(3, 20):
        usages.of(str(number))
    assert usages.of("1") is first
    forgotten = usages.of("2")
    assert forgotten is not second and forgotten and forgotten.take()
    first.under_way -= 1
    for number in range(3, 20):
        usages.of(str(number))
    assert usages.of("1") is not first


async def test_calls_under_way_are_counted_until_they_end(stack: Stack, issuer: Issuer, tmp_path: Path) -> None:
    await limit(stack, tmp_path, ONE_CALL)
    async with channel(stack, issuer.token("wide")) as opened:
        booking: Any = booking_pb2_grpc.BookingServiceStub(opened)
        watching = await watches(booking)
        assert await reasons(booking, 1) == ["QUOTA_EXCEEDED"]
        watching[0].cancel()
        async with asyncio.timeout(10):
            while await reasons(booking, 1) != ["OK"]:
                pass
        watching[1].cancel()


def call_of(issuer: Issuer, caller: str, request: pb.GetSalonRequest) -> Call:
    """Return a call that reads from the database if it is not refused."""
    metadata = (("authorization", f"Bearer {issuer.token(caller)}"), ("cache-control", "no-cache"))
    return calls_of("/parlor.booking.v1.BookingService/GetSalon", [request.SerializeToString()], metadata)[0]


@pytest.mark.parametrize("loud", ["a caller", "a salon"])
async def test_a_flood_is_refused_beyond_its_quota_and_the_calls_of_others_are_answered(
    stack: Stack, issuer: Issuer, tmp_path: Path, loud: str
) -> None:
    await limit(stack, tmp_path, FLOODED)
    flood = call_of(issuer, *(("loud", GET_OTHER) if loud == "a caller" else ("reader", GET)))
    other = call_of(issuer, "reader", GET if loud == "a caller" else GET_OTHER)
    began = time.monotonic()
    flooded, others = await asyncio.gather(
        _run(stack, [flood] * QUOTA * TIMES, QUOTA), _run(stack, [other] * OTHERS, 1)
    )
    assert others.statuses == {"OK": OTHERS}
    assert flooded.statuses.keys() <= {"OK", "RESOURCE_EXHAUSTED"}
    assert flooded.calls == QUOTA * TIMES
    assert QUOTA <= flooded.statuses["OK"] <= QUOTA * (1 + time.monotonic() - began)


async def _run(stack: Stack, calls: list[Call], in_flight: int) -> Result:
    with closing(await Client.connect([stack.servers["booking"].port])) as client:
        return await client.run(calls, in_flight, check=False)
