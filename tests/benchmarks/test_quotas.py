"""The p99 of calls while another caller, or salon, exceeds its quota ten times: it at most doubles."""

from __future__ import annotations

import asyncio
import time
from contextlib import closing
from pathlib import Path
from statistics import quantiles
from typing import Any

from ops.process import free_ports
from ops.up import SERVICES, Plan, Service, environments
from parlor.booking.v1 import booking_pb2 as pb
from parlor.booking.v1 import booking_pb2_grpc
from tests.benchmarks.client import Call, Client, calls_of
from tests.benchmarks.conftest import Report
from tests.callers import POLICY, Issuer, bearer, jwt_settings

QUOTA = 200  # calls per second
TIMES = 10
TICK_SECONDS = 0.005
CALLS = 500
ATTEMPTS = 6
TITLE = "Calls of others during a flood of ten times a quota: p99 in ms"


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
    database_url: str, redis_url: str, tmp_path: Path, report: Report
) -> None:
    issuer = Issuer()
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
                report.add(TITLE, kind, without=f"{quiet:.2f}", during=f"{loud:.2f}", ratio=f"{loud / quiet:.1f}")
                if loud <= 2 * quiet:
                    break
                assert attempt < ATTEMPTS
