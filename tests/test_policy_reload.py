"""SIGHUP makes a service read its policy again; a broken one keeps the old, and the log says what is wrong with it."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import grpc
import pytest

from ops.process import free_ports
from ops.up import SERVICES, Plan, Service, environments
from parlor.booking.v1 import booking_pb2 as pb
from parlor.booking.v1 import booking_pb2_grpc
from tests.callers import POLICY, Issuer, bearer, jwt_settings
from tests.load import until
from tests.stack import SALON, read_failure

GET = pb.GetSalonRequest(salon_id=SALON)
REMOVED = POLICY.replace("callers.reader", "callers.former_reader")
BROKEN = {
    "[callers.x": "is no valid TOML",
    '[callers.x]\nmethods = ["booking:Nothing"]': "callers.'x'.methods: 'booking:Nothing': booking has no such method",
    '[callers.x]\nmethods = ["all"]': "callers.'x'.methods: 'all' is none of SERVICE:METHOD",
    "[callers.x]\nmethods = 1": "callers.x.methods: Input should be a valid list",
    '[callers.x]\nmethods = []\nsalon = ["*"]': "callers.x.salon: Extra inputs are not permitted",
    "[quotas]\nsalon = { calls_per_second = 0 }": "quotas.salon.calls_per_second: Input should be greater than 0",
}


def lines_of(log: Path, event: str, level: str = "info") -> list[str]:
    """Return the errors of the log's lines of an event, "" for those without."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [line.get("error", "") for line in lines if line["event"] == event and line["level"] == level]


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_hangup_reloads_the_policy_and_a_broken_one_keeps_the_old(
    database_url: str, redis_url: str, tmp_path: Path, workers: int
) -> None:
    issuer = Issuer()
    port, metrics_port = free_ports(2)
    plan = Plan(tmp_path, None, False, None, dict.fromkeys(SERVICES, port), metrics_port)
    settings = {name.upper(): str(value) for name, value in jwt_settings(tmp_path, issuer).items()}
    environment = environments(plan, database_url, redis_url)["booking"] | settings | {"WORKERS": str(workers)}
    with Service("booking", port, tmp_path / "booking.log", environment) as service:

        async def logged(event: str, level: str, lines: int) -> None:
            async def is_logged() -> bool:
                return len(lines_of(service.log, event, level)) == lines * workers

            await until(is_logged)

        async def reload(policy: str) -> None:
            (tmp_path / "policy.toml").write_text(policy)
            os.kill(service.pid, signal.SIGHUP)

        async def outcome() -> str:
            """Return why the reader is refused. It gets a new connection, so any worker may answer."""
            async with bearer(issuer.token("reader"))(f"127.0.0.1:{port}") as channel:
                booking: Any = booking_pb2_grpc.BookingServiceStub(channel)
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await booking.GetSalon(GET)
                return read_failure(refused.value).reason

        await logged("serving", "info", 1)
        for number, policy in enumerate(BROKEN, 1):
            await reload(policy)
            await logged("policy", "error", number)
            assert {await outcome() for _ in range(4)} == {"SALON_NOT_FOUND"}
        found = lines_of(service.log, "policy", "error")
        for number, wanted in enumerate(BROKEN.values()):
            for line in found[number * workers : (number + 1) * workers]:
                assert line.startswith(str(tmp_path / "policy.toml")) and wanted in line
        await reload(REMOVED)
        await logged("policy", "info", 1)
        assert {await outcome() for _ in range(4)} == {"METHOD_NOT_ALLOWED"}
