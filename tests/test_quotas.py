"""Quotas of callers and salons, and what the calls of others notice of somebody who exceeds them ten times."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from statistics import quantiles
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import RetryInfo

from ops.process import free_ports
from ops.up import SERVICES, Plan, Service, environments
from parlor.booking.v1 import booking_pb2 as pb
from parlor.booking.v1 import booking_pb2_grpc
from tests.benchmarks.client import Call, Client, calls_of
from tests.callers import POLICY, Issuer, bearer, jwt_settings
from tests.stack import SALON, Stack, failure, running, salon

QUOTA = 200  # calls per second
TIMES = 10
TICK_SECONDS = 0.005
CALLS = 500
ATTEMPTS = 6
GET = pb.GetSalonRequest(salon_id=SALON)

LIMITED = f"""
[quotas.salon]
calls_per_second = 20
[callers.admin]
methods = ["booking:*", "messaging:*", "stats:*", "ops:*"]
salons = ["*"]
[callers.fast]
methods = ["booking:read"]
salons = ["{SALON}"]
quota = {{ calls_per_second = 5 }}
[callers.wide]
methods = ["booking:read"]
salons = ["{SALON}", "salon-2"]
quota = {{ calls_under_way = 2 }}
"""


@pytest.fixture(scope="module")
def issuer() -> Issuer:
    """The issuer of the tokens."""
    return Issuer()


@pytest.fixture
async def stack(database_url: str, redis_url: str, tmp_path: Path, issuer: Issuer) -> AsyncIterator[Stack]:
    """The services with LIMITED."""
    (tmp_path / "token").write_text(issuer.token())
    async with running(
        database_url,
        redis_url,
        server=jwt_settings(tmp_path, issuer, LIMITED),
        messaging={"booking_token_file": tmp_path / "token"},
        connect=bearer(issuer.token()),
    ) as stack:
        await salon(stack)
        await salon(stack, "salon-2")
        yield stack


async def reasons(stub: Any, times: int, request: Any = GET, **options: Any) -> list[str]:
    """Return the reasons for which calls fail, "OK" for those that do not."""
    method = stub.GetSalon if isinstance(request, pb.GetSalonRequest) else stub.BatchGetSalons
    found = []
    for _ in range(times):
        call = method(request, **options)
        try:
            await call
            found.append("OK")
        except grpc.aio.AioRpcError:
            error = await failure(call)
            assert error.code == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert error.has(RetryInfo) and int(error.trailing["grpc-retry-pushback-ms"]) >= 250
            found.append(error.reason)
    return found


async def test_a_caller_over_its_calls_per_second_is_refused_and_others_are_not(stack: Stack, issuer: Issuer) -> None:
    async with bearer(issuer.token("fast"))(f"127.0.0.1:{stack.servers['booking'].port}") as channel:
        found = await reasons(booking_pb2_grpc.BookingServiceStub(channel), 12)
        assert found[:5] == ["OK"] * 5
        assert "QUOTA_EXCEEDED" in found
        assert await reasons(stack.booking, 1) == ["OK"]
        other = bearer(issuer.token("fast", salons=[SALON]))  # another token of the same caller
        async with other(f"127.0.0.1:{stack.servers['booking'].port}") as again:
            assert "QUOTA_EXCEEDED" in await reasons(booking_pb2_grpc.BookingServiceStub(again), 3)


async def test_a_salon_over_its_calls_per_second_is_refused_to_all_callers_and_others_are_not(
    stack: Stack, issuer: Issuer
) -> None:
    both = pb.BatchGetSalonsRequest(salon_ids=[SALON, "salon-2"])
    found = await reasons(stack.booking, 40)
    assert "QUOTA_EXCEEDED" in found[20:]
    assert set(found[:15]) == {"OK"}
    assert await reasons(stack.booking, 1, pb.GetSalonRequest(salon_id="salon-2")) == ["OK"]
    assert "QUOTA_EXCEEDED" in await reasons(stack.booking, 3, both)
    async with bearer(issuer.token("wide"))(f"127.0.0.1:{stack.servers['booking'].port}") as channel:
        assert "QUOTA_EXCEEDED" in await reasons(booking_pb2_grpc.BookingServiceStub(channel), 3)


async def test_calls_under_way_are_counted_until_they_end(stack: Stack, issuer: Issuer) -> None:
    async with bearer(issuer.token("wide"))(f"127.0.0.1:{stack.servers['booking'].port}") as channel:
        booking: Any = booking_pb2_grpc.BookingServiceStub(channel)
        watching = [booking.WatchBookings(pb.WatchBookingsRequest(salon_id=SALON)) for _ in range(2)]
        for each in watching:
            await each.read()
        assert await reasons(booking, 1) == ["QUOTA_EXCEEDED"]
        watching[0].cancel()
        async with asyncio.timeout(10):
            while await reasons(booking, 1) != ["OK"]:
                pass
        watching[1].cancel()


class Street:
    """The booking service as a process, called by a loud caller and a quiet one, each on its own connection."""

    def __init__(self, port: int, issuer: Issuer) -> None:
        """Make the calls. Those of the loud read from the database, as far as they are admitted."""
        self._port = port
        self._quiet = self._call(issuer, "quiet", "quiet")
        self.floods = {
            "of a caller": self._call(issuer, "loud", "other", "no-cache"),
            "for a salon": self._call(issuer, "bot", "loud", "no-cache"),
        }

    def _call(self, issuer: Issuer, caller: str, salon_id: str, cache_control: str = "max-age=3600") -> Call:
        metadata = (("authorization", f"Bearer {issuer.token(caller)}"), ("cache-control", cache_control))
        request = pb.GetSalonRequest(salon_id=salon_id)
        path = "/parlor.booking.v1.BookingService/GetSalon"
        return calls_of(path, [request.SerializeToString()], metadata)[0]

    async def p99_ms(self, flood: Call | None = None) -> float:
        """Return the p99 of the quiet calls, in ms, during a flood of TIMES the quota."""
        times: list[float] = []
        async with asyncio.TaskGroup() as group:
            flooding = group.create_task(self._flood(flood)) if flood else None
            with closing(await Client.connect([self._port])) as client:
                for _ in range(CALLS):
                    await asyncio.sleep(TICK_SECONDS)
                    times += (await client.run([self._quiet])).latencies
            if flooding:
                flooding.cancel()
        return quantiles(times, n=100)[98] * 1000

    async def _flood(self, call: Call) -> None:
        began, sent, refused = time.monotonic(), 0, 0
        with closing(await Client.connect([self._port])) as client:
            try:
                while True:
                    await asyncio.sleep(TICK_SECONDS)
                    due = int((time.monotonic() - began) * QUOTA * TIMES) - sent
                    result = await client.run([call] * due, due, check=False)
                    assert result.statuses.keys() <= {"OK", "RESOURCE_EXHAUSTED"}
                    sent, refused = sent + due, refused + result.statuses["RESOURCE_EXHAUSTED"]
            finally:
                print(f"{sent / (time.monotonic() - began):.0f} calls per second, {refused / sent:.0%} refused")
                assert refused > sent / 2


async def test_a_flood_of_ten_times_a_quota_at_most_doubles_the_p99_of_others(
    database_url: str, redis_url: str, tmp_path: Path, issuer: Issuer
) -> None:
    quota = f"{{ calls_per_second = {QUOTA} }}"
    policy = POLICY + f"[quotas]\nsalon = {quota}\n"
    policy += f'[callers.loud]\nmethods = ["read"]\nsalons = ["*"]\nquota = {quota}\n'
    policy += "".join(f'[callers.{name}]\nmethods = ["read"]\nsalons = ["*"]\n' for name in ("quiet", "bot"))
    port, metrics_port = free_ports(2)
    plan = Plan(tmp_path, None, False, None, dict.fromkeys(SERVICES, port), metrics_port)
    environment = environments(plan, database_url, redis_url)["booking"]
    settings = {name.upper(): str(value) for name, value in jwt_settings(tmp_path, issuer, policy).items()}
    with Service("booking", port, tmp_path / "booking.log", environment | settings):
        async with bearer(issuer.token())(f"127.0.0.1:{port}") as channel:
            booking: Any = booking_pb2_grpc.BookingServiceStub(channel)
            for name in ("quiet", "loud", "other"):
                made = pb.Salon(salon_id=name, phone_number_id=name, name=name, time_zone="Europe/Berlin")
                await booking.UpsertSalon(pb.UpsertSalonRequest(salon=made))
        street = Street(port, issuer)
        for kind, flood in street.floods.items():
            for attempt in range(1, ATTEMPTS + 1):  # the best counts: other work of the machine makes times longer
                quiet, loud = await street.p99_ms(), await street.p99_ms(flood)
                print(f"flood {kind}: p99 {quiet:.2f} ms, during it {loud:.2f} ms")
                if loud <= 2 * quiet:
                    break
                assert attempt < ATTEMPTS
