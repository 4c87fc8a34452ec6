"""Personal data planted in every RPC appears in no log, audit log, metric, slow query, key name or error text."""

from __future__ import annotations

import asyncio
import base64
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
import redis
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from ops.migrate import migrate
from ops.servers import Postgres
from parlor.booking.v1 import booking_pb2_grpc
from parlor.messaging.v1 import messaging_pb2 as pb
from parlor.ops.v1.ops_pb2 import GetCacheStatisticsRequest, GetDatabaseMetricsRequest
from tests.callers import Issuer, bearer
from tests.conftest import FAST
from tests.fuzz.callers import LIVES
from tests.fuzz.callers import settings as caller_settings
from tests.hostile import rpcs, valid_requests
from tests.processes import Processes, processes, stubs
from tests.stack import SALON, Connect, Fields, Stack, booking_request, message_request, salon, webhook_body
from tests.test_erase_failures import wamid
from tests.test_webhook import signed, status, text

PHONE = "+4917698765432"
USER = "DE.55443322110099canary"
NAME, WORDS, REASON, TAG = "Quincanary", "wordscanary", "reasoncanary", "tagcanary"
WAMID = wamid(PHONE)
BASE64 = base64.b64encode(PHONE[1:].encode()).decode()[:-4]
CANARIES = [PHONE[1:], PHONE[3:], USER, NAME, WORDS, REASON, TAG, WAMID, WAMID[6:30], BASE64]
# Values that a caller may send in a wrong field.
MISTAKEN = [PHONE, PHONE[1:], USER, WAMID, f"{NAME} {WORDS}"]
AMBIGUOUS = "the digits can be read as an international number"
NO_CUSTOMERS = (
    "salon_id",
    "salon_ids",
    "phone_number_id",
    "booking_code",
    "booking_codes",
    "excluding_booking_code",
    "resource_id",
    "resource_ids",
    "any_of_resource_ids",
    "service_id",
    "time_off_id",
)  # IDs that may be in texts


class Errors:
    """The texts of failed RPCs."""

    def __init__(self) -> None:
        """Begin without errors."""
        self.texts: list[str] = []

    async def call(self, rpc: Any) -> Any:
        """Return a reply, or None."""
        try:
            return await rpc
        except grpc.aio.AioRpcError as error:
            details = dict(error.trailing_metadata() or ())["grpc-status-details-bin"]
            self.texts += [str(error.details()), bytes(details).decode("latin-1")]
            return None


@pytest.fixture
def strict_postgres(tmp_path: Path) -> Iterator[Postgres]:
    """A Postgres with the log settings of `parlor up`."""
    with Postgres(tmp_path / "postgres", settings={**FAST, "log_error_verbosity": "terse"}) as server:
        migrate(server.dsn)
        yield server


def planted(message: Message) -> Iterator[Message]:
    """Yield copies of a request, each with a MISTAKEN value in one string field, also of its messages."""
    for field in message.DESCRIPTOR.fields:
        for value in MISTAKEN:
            copy = type(message)()
            copy.CopyFrom(message)
            if field.type == FieldDescriptor.TYPE_STRING and field.name not in NO_CUSTOMERS:
                if field.is_repeated:
                    getattr(copy, field.name).append(value)
                else:
                    setattr(copy, field.name, value)
                yield copy
        if field.message_type is not None and not field.message_type.GetOptions().map_entry:
            inside: Any = getattr(message, field.name)
            kind: Any = field.message_type
            for inner in planted(next(iter(inside), GetMessageClass(kind)()) if field.is_repeated else inside):
                copy = type(message)()
                copy.CopyFrom(message)
                if field.is_repeated:
                    getattr(copy, field.name).append(inner)
                else:
                    getattr(copy, field.name).CopyFrom(inner)
                yield copy


async def lived(stack: Stack, errors: Errors) -> None:
    """Record a customer with every kind of personal data, and fail some calls with it."""
    await salon(stack, region_code="DE", phone_number_id="77")
    texts: Fields = {"customer_phone": PHONE, "customer_name": NAME, "notes": WORDS, "resource_id": "ben"}
    booking = await stack.booking.CreateBooking(booking_request(**texts))
    assert await errors.call(stack.booking.CreateBooking(booking_request(**texts))) is None
    sender: Fields = {"from": PHONE[1:], "from_user_id": USER, "text": {"body": WORDS}}
    contact = {"profile": {"name": NAME}, "wa_id": PHONE[1:], "user_id": USER}
    messages = [text(id=WAMID, **sender), text(id=None, **sender), text(id=WAMID, **{**sender, "timestamp": WORDS})]
    statuses = [status(id=WAMID), status(id=WAMID, status=WORDS), status(id=WAMID, timestamp=PHONE)]
    body = webhook_body("77", contacts=[contact], messages=messages, statuses=statuses)
    for payload in (body, body, webhook_body("88", contacts=[contact], messages=messages), body[:-9]):
        await errors.call(stack.messaging.IngestWebhook(signed(payload)))
        await errors.call(stack.messaging.IngestWebhook(signed(payload, "wrong")))
    names: list[Fields] = [{"phone_number": PHONE}, {"user_id": USER}]
    for named in names:
        conversation = await stack.messaging.GetConversation(pb.GetConversationRequest(salon_id=SALON, **named))
        tag = pb.TagConversationRequest(salon_id=SALON, add_tags=[TAG], **named)
        await stack.messaging.TagConversation(tag)
        late = message_request("", direction=2, content=WORDS, **{"phone_number": "", **named})
        await errors.call(stack.messaging.RecordMessage(late))
    fields: Fields = {"salon_id": SALON, "conversation_id": conversation.conversation_id, "model": "m", "role": 3}
    await stack.messaging.RecordAiMessage(pb.RecordAiMessageRequest(**fields, content=f"{NAME} {WORDS}"))
    assert booking.customer_name == NAME and conversation.customer_name == NAME


async def driven(stack: Stack, running: Processes, errors: Errors, connect: Connect) -> int:
    """Call every RPC with a valid request and with MISTAKEN values; return the number of calls."""
    calls = 0
    valid = await valid_requests(stack)
    for name, service in running.services.items():
        async with (
            connect(f"127.0.0.1:{service.port}") as channel,
            connect(f"127.0.0.1:{running.ops_ports[name]}") as ops,
        ):
            for rpc in rpcs(name, channel, ops):
                if rpc.method.name in ("InvalidateSalon", "InvalidateNamespace", "InvalidatePattern"):
                    continue  # the test reads the keys at its end
                request = rpc.kind(**valid[rpc.method.name])
                for each in (request, *planted(request)):
                    await errors.call(rpc.call(each.SerializeToString()))
                    calls += 1
    return calls


async def refused(running: Processes, errors: Errors, issuer: Issuer) -> None:
    """Make calls of callers without a right, whose names, salons and requests are numbers and IDs of a customer.

    A caller that is a text is in the audit log: it is what the issuer of tokens calls a caller, not a customer.
    """
    booking = f"127.0.0.1:{running.services['booking'].port}"
    request = booking_request(customer_phone=PHONE, customer_name=NAME, notes=WORDS)
    for caller in ("nothing", "clerk", *MISTAKEN[:4]):
        for salon_id in (SALON, PHONE, USER, WAMID):
            request.salon_id = salon_id
            async with bearer(issuer.token(caller))(booking) as channel:
                stub: Any = booking_pb2_grpc.BookingServiceStub(channel)
                assert await errors.call(stub.CreateBooking(request)) is None


def broken(database_url: str) -> None:
    """Make Postgres refuse rows with an error that contains their values."""
    with psycopg.connect(database_url, autocommit=True) as owner:
        owner.execute("ALTER TABLE bookings ADD CONSTRAINT never CHECK (service_name <> 'never')")
        owner.execute("ALTER TABLE messages ADD CONSTRAINT never CHECK (type <> 'VIDEO')")
        owner.execute("CREATE UNIQUE INDEX never ON bookings (salon_id, customer_phone) WHERE service_name = 'twice'")


def scraped(port: int) -> str:
    """Return the metrics of a service."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        found: bytes = answer.read()
    return found.decode()


def found(text: str) -> dict[str, str]:
    """Return the canaries in a text, each with its surroundings."""
    return {canary: text[max(0, place - 80) :][:160] for canary in CANARIES if (place := text.find(canary)) >= 0}


async def test_logs_metrics_and_errors_contain_no_personal_data(
    strict_postgres: Postgres, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOG_LEVEL", "debug")
    monkeypatch.setenv("DB_SLOW_QUERY_THRESHOLD", "0")
    monkeypatch.setenv("WHATSAPP_APP_SECRET", "parlor-test")
    errors, issuer = Errors(), Issuer()
    connect = bearer(issuer.token(lives=LIVES))
    with processes(strict_postgres.dsn, redis_url, tmp_path, caller_settings(tmp_path, issuer)) as running:
        async with stubs(running, connect) as stack:
            await lived(stack, errors)
            assert await driven(stack, running, errors, connect) > 300
            await refused(running, errors, issuer)
            broken(strict_postgres.dsn)
            for service_name in ("never", "twice", "twice"):
                request = booking_request(customer_phone=PHONE, customer_name=NAME, notes=WORDS)
                request.service_name = service_name
                await errors.call(stack.booking.CreateBooking(request))
            video = message_request(
                WAMID + "1", phone_number=PHONE, content=f"{WORDS}\n{WORDS}", type=pb.MESSAGE_TYPE_VIDEO
            )
            await errors.call(stack.messaging.RecordMessage(video))
            shown: dict[str, str] = {}
            for name, ops in stack.ops.items():
                shown[f"{name} database"] = str(await ops.GetDatabaseMetrics(GetDatabaseMetricsRequest()))
                shown[f"{name} cache"] = str(await ops.GetCacheStatistics(GetCacheStatisticsRequest()))
        assert "slow_queries" in shown["messaging database"]
        for name, port in running.metrics_ports.items():
            shown[f"{name} metrics"] = await asyncio.to_thread(scraped, port)
    with redis.Redis.from_url(redis_url) as client:
        shown["keys"] = "\n".join(key.decode() for key in client.keys("*"))
    shown |= {f"{name} log": service.log.read_text() for name, service in running.services.items()}
    shown["audit log"] = (tmp_path / "audit.log").read_text()
    assert "SALON_NOT_ALLOWED" in shown["audit log"] and "RecordAiMessage" in shown["audit log"]
    shown["postgres log"] = strict_postgres.log.read_text()
    assert "never" in shown["booking log"] and "never" in shown["postgres log"]  # the errors were logged
    # This one error offers the caller another spelling of the number that they sent.
    shown["errors"] = "\n".join(text for text in errors.texts if AMBIGUOUS not in text)
    assert "\n".join(f"{name}: {leaked}" for name, text in shown.items() if (leaked := found(text))) == ""
