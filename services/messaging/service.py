"""The RPCs of the messaging service, put together."""

from libs.cache import Cache
from libs.db import Database
from libs.server import Service, channel
from parlor.booking.v1 import booking_pb2, booking_pb2_grpc
from parlor.messaging.v1 import messaging_pb2 as pb
from parlor.messaging.v1 import messaging_pb2_grpc
from services.messaging.ai import AiRpcs
from services.messaging.conversations import ConversationRpcs
from services.messaging.erasure import ErasureRpcs
from services.messaging.ingest import WebhookRpcs
from services.messaging.messages import MessageRpcs
from services.messaging.retention import Retention
from services.messaging.salons import Salons
from services.messaging.search import SearchRpcs
from services.messaging.settings import MessagingSettings

KIB = 1024
# Two methods take texts of 65,536 characters, of up to 4 bytes each; a webhook body is up to 8 MiB.
LARGEST_REQUESTS = {"RecordMessage": 512 * KIB, "RecordAiMessage": 512 * KIB, "IngestWebhook": 8704 * KIB}


class MessagingService(MessageRpcs, WebhookRpcs, ConversationRpcs, SearchRpcs, ErasureRpcs, AiRpcs):
    """Conversations and their messages."""


def build(cache: Cache, database: Database, settings: MessagingSettings | None = None) -> Service:
    """Return the service as a server takes it, with a channel to the booking service."""
    settings = settings or MessagingSettings()
    to_booking = channel(settings.booking_address, booking_pb2.DESCRIPTOR.services_by_name["BookingService"])
    salons = Salons(cache, booking_pb2_grpc.BookingServiceStub(to_booking), settings.booking_timeout)
    messaging = MessagingService(cache, database, salons, settings)
    return Service(
        descriptor=pb.DESCRIPTOR.services_by_name["MessagingService"],
        servicer=messaging,
        add=messaging_pb2_grpc.add_MessagingServiceServicer_to_server,
        salon_tags=messaging.tags.of_salon,
        largest_requests=LARGEST_REQUESTS,
        background=[lambda: messaging.write.purge(database.connection), Retention(cache, database, settings).run],
        close=to_booking.close,
    )
