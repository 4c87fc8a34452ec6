"""The RPCs of the booking service."""

import secrets
from functools import cache as once
from typing import Any
from zoneinfo import available_timezones

from libs.cache import Cache, Group, Reply, digest
from libs.db import Database, Loaded
from libs.rpc import Mutations, Service, errors, moment, page
from parlor.booking.v1 import booking_pb2 as pb
from parlor.booking.v1 import booking_pb2_grpc
from services.booking import queries, transitions
from services.groups import Groups

# No 0, 1, I, L, O or U: a code is read out and typed.
CODE_LETTERS = "23456789ABCDEFGHJKMNPQRSTVWXYZ"


class BookingService(booking_pb2_grpc.BookingServiceServicer):
    """Salons and their bookings."""

    def __init__(self, cache: Cache, database: Database) -> None:
        """Take what the RPCs stand on."""
        self.cache = cache
        self.database = database
        self.groups = Groups(cache)
        self.write = Mutations(cache, "booking_requests")

    async def UpsertSalon(self, request: pb.UpsertSalonRequest, context: Any) -> pb.Salon:
        """Create or replace a salon."""
        salon, groups = request.salon, self.groups
        if salon.time_zone not in _time_zones():
            raise errors.invalid_fields([("salon.time_zone", "must be an IANA time zone, such as Europe/Berlin")])
        async with self.write(
            request,
            salon.salon_id,
            groups.salon(salon.salon_id),
            groups.phone_number_id(salon.phone_number_id),
            groups.stats(salon.salon_id),
            locks=(f"salon {salon.salon_id}",),
        ) as write:
            before = await queries.lock_salon(write.conn, salon.salon_id)
            if salon.etag and (before is None or salon.etag != before.etag):
                raise errors.etag_mismatch("salon", salon.salon_id)
            if before is not None:
                write.invalidate(groups.phone_number_id(before.phone_number_id))
            after = write.reply = await queries.upsert_salon(write.conn, salon)
        return after

    async def GetSalon(self, request: pb.GetSalonRequest, context: Any) -> Reply:
        """Return a salon by its id."""
        key = self.groups.salon(request.salon_id).key()
        reply = await self.cache.look_up(key, request.salon_id, queries.salons_by_id)
        return _found(reply, "salon", request.salon_id)

    async def GetSalonByPhoneNumberId(self, request: pb.GetSalonByPhoneNumberIdRequest, context: Any) -> Reply:
        """Return a salon by its WhatsApp phone_number_id."""
        key = self.groups.phone_number_id(request.phone_number_id).key()
        reply = await self.cache.look_up(key, request.phone_number_id, queries.salons_by_phone_number_id)
        return _found(reply, "salon", request.phone_number_id)

    async def ListSalons(self, request: pb.ListSalonsRequest, context: Any) -> pb.ListSalonsResponse:
        """List all salons."""
        wanted = page(request.page_size, request.page_token, uuid=False)
        async with self.database.connection() as conn:
            salons = await queries.list_salons(conn, wanted)
        response: pb.ListSalonsResponse = wanted.fill(pb.ListSalonsResponse(), salons, "create_time", "salon_id")
        return response

    async def CreateBooking(self, request: pb.CreateBookingRequest, context: Any) -> pb.Booking:
        """Book a time."""
        start, end = moment(request, "start_time"), moment(request, "end_time")
        if start == end:
            raise errors.invalid_fields([("end_time", "end_time must be at least a microsecond after start_time")])
        salon_id = request.salon_id
        code = "".join(secrets.choice(CODE_LETTERS) for _ in range(6))
        async with self.write(request, salon_id, self.groups.bookings(salon_id), self.groups.stats(salon_id)) as write:
            booking = write.reply = await queries.insert_booking(write.conn, request, code, start, end)
            if booking is None:
                message = f"{request.resource_id} is taken at that time"
                raise errors.failed_precondition("SLOT_UNAVAILABLE", f"resource/{request.resource_id}", message)
        return booking

    async def GetBookingByCode(self, request: pb.GetBookingByCodeRequest, context: Any) -> Reply:
        """Return a booking by its code."""
        salon_id, code = request.salon_id, request.booking_code.upper()
        key = self.groups.bookings(salon_id).key("code", code)
        reply = await self.cache.look_up(key, (salon_id, code), queries.bookings_by_code)
        return _found(reply, "booking", f"{salon_id}/{code}")

    async def ListBookings(self, request: pb.ListBookingsRequest, context: Any) -> Reply:
        """List a salon's bookings."""
        start, end = moment(request, "start_time"), moment(request, "end_time")
        filters = (request.salon_id, request.status, request.customer_phone, start, end)
        wanted = page(request.page_size, request.page_token, "ListBookings", *filters)
        status = pb.BookingStatus.Name(request.status).removeprefix("BOOKING_STATUS_") if request.status else ""

        async def load(conn: Any) -> Loaded[pb.ListBookingsResponse]:
            try:
                stamp, bookings = await queries.list_bookings(
                    conn, request.salon_id, status, request.customer_phone, start, end, wanted
                )
            except LookupError as error:
                raise errors.not_found("salon", request.salon_id) from error
            return Loaded(stamp, wanted.fill(pb.ListBookingsResponse(), bookings, "start_time", "booking_id"))

        return await self.cache.read(self.groups.bookings(request.salon_id).key("list", digest(wanted)), load)

    async def UpdateBookingStatus(self, request: pb.UpdateBookingStatusRequest, context: Any) -> pb.Booking:
        """Move a booking to another status."""
        salon_id, code = request.salon_id, request.booking_code.upper()
        status = pb.BookingStatus.Name(request.status).removeprefix("BOOKING_STATUS_")
        async with self.write(request, salon_id, self.groups.bookings(salon_id), self.groups.stats(salon_id)) as write:
            booking = await queries.lock_booking(write.conn, salon_id, code)
            if booking is None:
                raise errors.not_found("booking", f"{salon_id}/{code}")
            if request.etag and request.etag != booking.etag:
                raise errors.etag_mismatch("booking", f"{salon_id}/{code}")
            transitions.check(code, booking.status, request.status)
            after = write.reply = await queries.update_booking_status(write.conn, booking, status)
        return after

    async def salon_groups(self, salon_id: str) -> list[Group]:
        """Return all cache groups of a salon, the look-up by its phone_number_id included."""
        async with self.database.connection() as conn:
            salons = await queries.salons_by_id(conn, [salon_id])
        by_phone = [self.groups.phone_number_id(salon.value.phone_number_id) for salon in salons if salon.value]
        return await self.groups.of_salon(salon_id) + by_phone


def build(cache: Cache, database: Database) -> Service:
    """Return the service as a server takes it."""
    booking = BookingService(cache, database)
    return Service(
        descriptor=pb.DESCRIPTOR.services_by_name["BookingService"],
        servicer=booking,
        add=booking_pb2_grpc.add_BookingServiceServicer_to_server,
        salon_groups=booking.salon_groups,
        constraints={
            "bookings_salon_id_fkey": lambda request: errors.not_found("salon", request.salon_id),
            "salons_phone_number_id_key": lambda request: errors.already_exists(
                "phone_number_id", "salon", request.salon.phone_number_id
            ),
        },
        background=[lambda: booking.write.purge(database.connection)],
    )


def _found(reply: Reply, kind: str, name: str) -> Reply:
    if reply.body is None:
        raise errors.not_found(kind, name)
    return reply


@once
def _time_zones() -> frozenset[str]:
    return frozenset(available_timezones())
