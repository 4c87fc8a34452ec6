"""The RPCs that read bookings and their history."""

from typing import Any

from libs.cache import Reply, digest
from libs.server import moment, names_given, page
from parlor.booking.v1 import booking_pb2 as pb
from services.booking import booking_queries as queries
from services.booking.booking_queries import BookingFilters, BookingNamed
from services.booking.rpcs import Rpcs, batch, found
from services.phones import is_national


class BookingRpcs(Rpcs):
    """Bookings by code and by what they have in common, and what happened to them."""

    async def GetBookingByCode(self, request: pb.GetBookingByCodeRequest, context: Any) -> Reply:
        """Return a booking by its code."""
        return await self._booking(request.salon_id, request.booking_code.upper())

    async def BatchGetBookings(self, request: pb.BatchGetBookingsRequest, context: Any) -> Reply:
        """Return bookings by their codes."""
        salon_id, codes = request.salon_id, [code.upper() for code in request.booking_codes]
        wanted = list(dict.fromkeys(codes))
        keys = [self.tags.booking(salon_id, code).key() for code in wanted]
        arguments = [(salon_id, code) for code in wanted]
        replies = await self.cache.get_many(keys, arguments, queries.bookings_by_code)
        return batch(dict(zip(wanted, replies, strict=True)), codes, "booking", f"{salon_id}/")

    async def ListBookings(self, request: pb.ListBookingsRequest, context: Any) -> Reply:
        """List a salon's bookings."""
        salon_id = request.salon_id
        start, end = moment(request, "start_time"), moment(request, "end_time")
        phone = await self.phone(request, "customer_phone") if request.customer_phone else ""
        wanted = page(
            request.page_size, request.page_token, "ListBookings", salon_id, request.status, phone, start, end
        )
        status = pb.BookingStatus.Name(request.status).removeprefix("BOOKING_STATUS_") if request.status else ""
        filters = BookingFilters(salon_id, status, phone, start, end)
        key = self.tags.bookings(salon_id).key("list", digest(wanted))
        return await self.cache.get_batched(
            key,
            (filters, wanted),
            queries.list_bookings,
            batch=names_given,
            rows=wanted.rows,
            repeatable=not is_national(request.customer_phone),
        )

    async def ListBookingEvents(self, request: pb.ListBookingEventsRequest, context: Any) -> Reply:
        """List what happened to a booking."""
        salon_id, code = request.salon_id, request.booking_code.upper()
        wanted = page(request.page_size, request.page_token, "ListBookingEvents", salon_id, code, uuid=False)
        key = self.tags.booking(salon_id, code).key("events", digest(wanted))
        return await self.cache.get_batched(
            key,
            (BookingNamed(salon_id, code), wanted),
            queries.list_booking_events,
            batch=names_given,
            rows=wanted.rows,
            repeatable=True,
        )

    async def _booking(self, salon_id: str, code: str) -> Reply:
        key = self.tags.booking(salon_id, code).key()
        reply = await self.cache.get_batched(key, (salon_id, code), queries.bookings_by_code, repeatable=True)
        return found(reply, "booking", f"{salon_id}/{code}")
