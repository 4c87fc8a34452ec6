"""What the RPCs of the booking service stand on, and share."""

from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime
from typing import Any

from libs.cache import Cache, Reply, Tag
from libs.db import Database, for_searches
from libs.messages import encode_repeated
from libs.server import IdempotentWrites, Slices, errors
from parlor.booking.v1 import booking_pb2 as pb
from parlor.booking.v1 import booking_pb2_grpc
from services.booking import salon_queries
from services.cache_tags import CacheTags
from services.phones import e164


class Rpcs(booking_pb2_grpc.BookingServiceServicer):
    """A part of the service."""

    def __init__(self, cache: Cache, database: Database, now: Callable[[], datetime]) -> None:
        """Take what the RPCs stand on; `now` is the time by which slots are offered."""
        self.cache = cache
        self.database = database
        self.now = now
        self.tags = CacheTags(cache)
        self.searches = for_searches(database)
        self.slices = Slices()
        self.write = IdempotentWrites(cache, database, "booking_requests")
        database.canary = "booking_requests"

    def touched(self, salon_id: str, *booking_codes: str) -> list[Tag]:
        """Return the tags that a change of bookings invalidates."""
        bookings = [self.tags.booking(salon_id, code) for code in booking_codes]
        return [self.tags.bookings(salon_id), self.tags.stats(salon_id), *bookings]

    async def salon(self, salon_id: str) -> Reply:
        """Return a salon as it is cached. Raises: SALON_NOT_FOUND."""
        key = self.tags.salon(salon_id).key()
        reply = await self.cache.get_batched(key, salon_id, salon_queries.salons_by_id, repeatable=True)
        return found(reply, "salon", salon_id)

    async def phone(self, request: Any, field: str) -> str:
        """Return a phone number of a request as E.164. Raises: INVALID_FIELD; SALON_NOT_FOUND if it is national."""

        async def region_code() -> str:
            return pb.Salon.FromString((await self.salon(request.salon_id)).body or b"").region_code

        return await e164(field, getattr(request, field), region_code)


def found(reply: Reply, kind: str, name: str) -> Reply:
    """Return a reply that has a body. Raises: `<KIND>_NOT_FOUND`."""
    if reply.body is None:
        raise errors.not_found(kind, name)
    return reply


def batch(replies: Mapping[str, Reply], names: Sequence[str], kind: str, within: str = "") -> Reply:
    """Return the reply of a batch: what was asked for, in its order, as fresh as the least fresh of it.

    Raises: `<KIND>_NOT_FOUND` for the first that is not there, which lies `within`.
    """
    bodies = {name: found(reply, kind, within + name).body or b"" for name, reply in replies.items()}
    source = max((reply.source for reply in replies.values()), key=("hit", "miss", "bypass").index)
    return Reply(
        encode_repeated([bodies[name] for name in names]), source, max(reply.age_ms for reply in replies.values())
    )


def resource_lock(salon_id: str, resource_id: str) -> str:
    """Return the name of the lock that writers of a resource's time take, before any lock on a row."""
    return f"resource {salon_id} {resource_id}"


def check_dates(field: str, special_hours: Sequence[pb.SpecialHours]) -> None:
    """Raise INVALID_FIELD unless each date is one, and has either hours or none."""
    closed = {_day(hours.date) for hours in special_hours if not hours.HasField("open_time")}
    for place, hours in enumerate(special_hours):
        on = hours.date
        try:
            date(on.year, on.month, on.day)
        except ValueError as error:
            raise errors.invalid_fields([(f"{field}[{place}].date", "is no date of the calendar")]) from error
        if hours.HasField("open_time") and _day(on) in closed:
            raise errors.invalid_fields([(f"{field}[{place}].open_time", "the date is also said to be closed")])


def _day(on: Any) -> tuple[int, int, int]:
    return on.year, on.month, on.day
