"""What the RPCs of the messaging service have in common."""

from typing import Any

from libs.cache import Cache, Tag
from libs.db import Database, for_searches
from libs.server import IdempotentWrites, Slices
from parlor.messaging.v1 import messaging_pb2_grpc
from services.cache_tags import CacheTags, of_names
from services.messaging.salons import Salons
from services.messaging.settings import MessagingSettings
from services.phones import e164


class Rpcs(messaging_pb2_grpc.MessagingServiceServicer):
    """A part of the service."""

    def __init__(self, cache: Cache, database: Database, salons: Salons, settings: MessagingSettings) -> None:
        """Take what the RPCs stand on."""
        self.cache = cache
        self.database = database
        self.tags = CacheTags(cache)
        self.write = IdempotentWrites(cache, database, "messaging_requests")
        database.canary = "messaging_requests"
        self.salons = salons
        self.searches = for_searches(database)
        self.slices = Slices()
        self.settings = settings

    async def phone_number(self, request: Any) -> str:
        """Return a request's phone_number as E.164, "" if it has none. Raises: INVALID_FIELD, BOOKING_UNAVAILABLE."""
        if not request.phone_number:
            return ""
        return await e164("phone_number", request.phone_number, lambda: self.salons.region_code(request.salon_id))

    def wholes(self, salon_id: str) -> tuple[Tag, Tag]:
        """Return the tags of all that a salon's messages show in."""
        return self.tags.messages(salon_id), self.tags.conversations(salon_id)

    def touched(self, *rows: Any) -> list[Tag]:
        """Return the tags that a change of these messages, or of what names these conversations, invalidates."""
        names = {(row.salon_id, row.conversation_id, row.phone_number) for row in rows}
        return [
            part
            for salon_id, conversation_id, phone_number in names
            for tag in self.wholes(salon_id)
            for part in of_names(tag, [conversation_id], [phone_number])
        ]


def word(kind: Any, value: int) -> str:
    """Return the bare word of an enum value, as the database stores it."""
    name: str = kind.Name(value)
    words = kind.Name(0).removesuffix("UNSPECIFIED")
    return name.removeprefix(words)
