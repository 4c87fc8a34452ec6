"""The booking service, as a server takes it: the RPCs of salons, resources and bookings together."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from libs.cache import Cache, Reply, Tag
from libs.db import Database
from libs.server import Service, errors
from parlor.booking.v1 import booking_pb2 as pb
from parlor.booking.v1 import booking_pb2_grpc
from services.booking import salon_queries
from services.booking.bookings import BookingRpcs
from services.booking.changes import ChangeRpcs, taken
from services.booking.resources import ResourceRpcs
from services.booking.salons import SalonRpcs
from services.busy_salons import BusySalon, warm


class BookingService(SalonRpcs, ResourceRpcs, BookingRpcs, ChangeRpcs):
    """Salons, who works there and when, and their bookings."""

    def expected(self, salon: BusySalon) -> list[Callable[[], Awaitable[Reply]]]:
        """Return the reads to be expected of a busy salon: its look-ups, and its bookings of today."""
        return [
            lambda: self.GetSalon(pb.GetSalonRequest(salon_id=salon.salon_id), None),
            lambda: self.GetSalonByPhoneNumberId(
                pb.GetSalonByPhoneNumberIdRequest(phone_number_id=salon.phone_number_id), None
            ),
            lambda: self.ListBookings(pb.ListBookingsRequest(salon_id=salon.salon_id, **salon.today), None),
        ]

    async def salon_tags(self, salon_id: str) -> list[Tag]:
        """Return all cache tags of a salon, the look-up by its phone_number_id included."""
        async with self.database.connection() as conn:
            salons = await salon_queries.salons_by_id(conn, [salon_id])
        found = [pb.Salon.FromString(salon.value) for salon in salons if salon.value]
        by_phone = [self.tags.phone_number_id(salon.phone_number_id) for salon in found]
        return await self.tags.of_salon(salon_id) + by_phone


def build(cache: Cache, database: Database, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> Service:
    """Return the service as a server takes it; `now` is the time by which slots are offered."""
    booking = BookingService(cache, database, now)
    return Service(
        descriptor=pb.DESCRIPTOR.services_by_name["BookingService"],
        servicer=booking,
        add=booking_pb2_grpc.add_BookingServiceServicer_to_server,
        salon_tags=booking.salon_tags,
        constraints={
            "bookings_no_overlap": taken,
            "bookings_salon_id_fkey": lambda request: errors.not_found("salon", request.salon_id),
            "resources_salon_id_fkey": lambda request: errors.not_found("salon", request.salon_id),
            "salons_phone_number_id_key": lambda request: errors.already_exists(
                "phone_number_id", "salon", request.salon.phone_number_id
            ),
        },
        background=[
            lambda: booking.write.purge(database.connection),
            lambda: warm(cache, database, booking.expected),
        ],
    )
