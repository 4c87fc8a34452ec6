"""Postgres and Redis that speak TLS only: every connection of ours is encrypted and verified."""

from __future__ import annotations  # the AsyncStubs exist in the .pyi only

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis
from pydantic import SecretStr
from structlog.testing import capture_logs

from libs.db import Database, DatabaseSettings
from ops.dev_certs import write_certificates
from ops.migrate import migrate, service_url
from ops.servers import Postgres, Valkey
from parlor.booking.v1 import booking_pb2
from parlor.messaging.v1 import messaging_pb2
from parlor.stats.v1 import stats_pb2
from tests.conftest import PASSWORD, USER
from tests.stack import PHONE, SALON, Fields, booking_request, message_request, rows, running, salon, warm
from tests.tls_front import Front, tls_front

OURS = "SELECT client_port FROM pg_stat_activity WHERE usename LIKE 'parlor\\_%' AND datname = current_database()"


@dataclass(frozen=True)
class Secured:
    """TLS in front of both servers, and where their certificates are."""

    certificates: Path
    postgres: Front
    redis: Front
    database: str

    def database_url(self, host: str = "localhost", **parameters: str) -> str:
        """Return the owner's URL, verified unless the parameters say otherwise."""
        chosen = {"sslmode": "verify-full", "sslrootcert": str(self.certificates / "ca.pem"), **parameters}
        query = "&".join(f"{name}={value}" for name, value in chosen.items())
        return f"postgresql://postgres@{host}:{self.postgres.port}/{self.database}?{query}"

    @property
    def redis_url(self) -> str:
        """The URL for the user with the least rights."""
        return f"rediss://{USER}:{PASSWORD}@localhost:{self.redis.port}/0?ssl_ca_certs={self.certificates / 'ca.pem'}"


@pytest.fixture
def secured(
    postgres: Postgres, database_url: str, valkey_server: Valkey, redis_url: str, tmp_path: Path
) -> Iterator[Secured]:
    """Both servers, behind TLS; Valkey also knows the user."""
    write_certificates(tmp_path)
    with ExitStack() as stack, redis.Redis.from_url(redis_url) as client:
        client.execute_command("ACL", "LOG", "RESET")
        in_front_of_postgres = stack.enter_context(tls_front(postgres.port, tmp_path, postgres=True))
        in_front_of_valkey = stack.enter_context(tls_front(valkey_server.port, tmp_path))
        yield Secured(tmp_path, in_front_of_postgres, in_front_of_valkey, database_url.rpartition("/")[2])
        assert client.execute_command("ACL", "LOG") == []


async def test_the_services_work_over_tls_with_the_least_rights(secured: Secured, database_url: str) -> None:
    async with running(secured.database_url(), secured.redis_url) as stack:
        await salon(stack)
        booked = await stack.booking.CreateBooking(booking_request())
        get = booking_pb2.GetBookingByCodeRequest(salon_id=SALON, booking_code=booked.booking_code)
        assert (await warm(stack.booking.GetBookingByCode, get)).revision == 1
        change: Fields = {"salon_id": SALON, "booking_code": booked.booking_code, "status": "BOOKING_STATUS_CONFIRMED"}
        await stack.booking.UpdateBookingStatus(booking_pb2.UpdateBookingStatusRequest(**change))
        assert (await warm(stack.booking.GetBookingByCode, get)).revision == 2
        await stack.messaging.RecordMessage(message_request())
        conversation = messaging_pb2.GetConversationRequest(salon_id=SALON, phone_number=PHONE, message_limit=1)
        assert (await warm(stack.messaging.GetConversation, conversation)).messages
        period: Fields = {"start_time": {"seconds": 1_800_000_000}, "end_time": {"seconds": 1_800_086_400}}
        assert (
            await warm(stack.stats.GetSalonStats, stats_pb2.GetSalonStatsRequest(salon_id=SALON, **period))
        ).bookings
        ports = {port for (port,) in rows(database_url, OURS)}
        assert ports and ports <= secured.postgres.local_ports  # every connection comes from the TLS front
    assert secured.postgres.accepted > 3 and secured.redis.accepted >= 3
    assert secured.postgres.refused == 0


def test_migrate_works_over_tls(secured: Secured) -> None:
    assert migrate(secured.database_url()) == []
    assert secured.postgres.accepted >= 2 and secured.postgres.refused == 0


WRONG = {
    "no TLS": ({"sslmode": "disable"}, "no encryption"),
    "another host": ({"host": "127.0.0.2"}, 'does not match host name "127.0.0.2"'),
    "an unknown authority": ({"sslrootcert": "other"}, "certificate verify failed"),
    "a missing file": ({"sslrootcert": "/no/such.pem"}, "/no/such.pem"),
}


@pytest.mark.parametrize("wrong", WRONG)
async def test_a_connection_that_is_not_verified_is_refused_and_the_log_says_why(
    secured: Secured, tmp_path: Path, wrong: str
) -> None:
    parameters, text = WRONG[wrong]
    if parameters.get("sslrootcert") == "other":
        write_certificates(tmp_path / "other")
        parameters = {"sslrootcert": str(tmp_path / "other/ca.pem")}
    if host := parameters.get("host"):
        parameters = {"host": host, "hostaddr": "127.0.0.1"}
    url = service_url(secured.database_url(**parameters), "parlor_booking")
    database = Database(DatabaseSettings(url=SecretStr(url)), "test")
    with capture_logs() as logs:
        await database.open()
        assert not database.available
        await database.close()
    assert text in str(next(line["problems"] for line in logs if line["event"] == "database"))


async def test_a_plain_connection_to_redis_is_refused(secured: Secured) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", secured.redis.port)
    writer.write(b"PING\r\n")
    assert b"PONG" not in await reader.read()
    writer.close()
