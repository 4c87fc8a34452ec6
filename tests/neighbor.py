"""A well-behaved salon: `python -m tests.neighbor RPC SALON_ID PORT PID`; see tests/http2_abuse/neighbor.py."""

import asyncio
import itertools
import sys
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

import grpc

from parlor.booking.v1 import booking_pb2, booking_pb2_grpc
from parlor.messaging.v1 import messaging_pb2, messaging_pb2_grpc
from tests.http2_abuse.neighbor import repeat
from tests.stack import PHONE, message_request, webhook_body
from tests.test_webhook import signed, text

DEV_SECRET = "parlor-dev"  # noqa: S105
QUIET_NUMBER = "2"  # phone_number_id of the salon


def call_of(rpc: str, salon_id: str, channel: grpc.aio.Channel) -> Callable[[], Awaitable[Any]]:
    """Return a function that calls an RPC."""
    booking: Any = booking_pb2_grpc.BookingServiceStub(channel)
    messaging: Any = messaging_pb2_grpc.MessagingServiceStub(channel)
    ids = (f"{uuid4()}.{number}" for number in itertools.count())
    salon = booking_pb2.GetSalonRequest(salon_id=salon_id)
    conversation = messaging_pb2.GetConversationRequest(salon_id=salon_id, phone_number=PHONE)
    uncached = (("cache-control", "no-cache"),)
    calls: dict[str, Callable[[], Awaitable[Any]]] = {
        "GetSalon": lambda: booking.GetSalon(salon, timeout=10),
        "GetSalon uncached": lambda: booking.GetSalon(salon, timeout=10, metadata=uncached),
        "GetConversation": lambda: messaging.GetConversation(conversation, timeout=10),
        "GetConversation uncached": lambda: messaging.GetConversation(conversation, timeout=10, metadata=uncached),
        "IngestWebhook": lambda: messaging.IngestWebhook(
            signed(webhook_body(QUIET_NUMBER, messages=[text(next(ids))]), DEV_SECRET), timeout=10
        ),
        "RecordMessage": lambda: messaging.RecordMessage(message_request(next(ids), salon_id=salon_id), timeout=10),
    }
    return calls[rpc]


async def main(rpc: str, salon_id: str, port: int, pid: int) -> None:
    """Call until the input ends."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        await repeat(pid, call_of(rpc, salon_id, channel))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
