"""The RPCs of the booking service, in the proto's order: each validates, names its cache tags, queries and replies."""

from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any

from libs.cache import Cache, Reply, Tag, digest
from libs.db import Database
from libs.messages import text_array
from libs.server import (
    Service,
    errors,
    moment,
    names_given,
    page,
    whole_seconds,
)
from parlor.booking.v1 import booking_pb2 as pb
from parlor.booking.v1 import booking_pb2_grpc
from services.booking import (
    availability,
    booking_queries,
    salon_queries,
)
from services.booking.availability_queries import read_availability
from services.booking.booking_queries import BookingFilters, EventFilters
from services.booking.expiry import HoldExpiry
from services.booking.salon_rpcs import batch_reply
from services.booking.write_rpcs import BookingWriteRpcs, slot_unavailable
from services.phones import e164, is_national

MOST_SLOTS = 10_000


class BookingService(BookingWriteRpcs):
    """All RPCs of the service: those of salons, those that write bookings, and those here, which read bookings."""

    async def GetBookingByCode(self, request: pb.GetBookingByCodeRequest, context: Any) -> Reply:
        """Return a booking by its code."""
        salon_id, code = request.salon_id, request.booking_code.upper()
        key = self.tags.booking(salon_id, code).key()
        load = booking_queries.bookings_by_code
        reply = await self.cache.get_batched(key, (salon_id, code), load, repeatable=True)
        if reply.body is None:
            raise errors.not_found("booking", f"{salon_id}/{code}")
        return reply

    async def BatchGetBookings(self, request: pb.BatchGetBookingsRequest, context: Any) -> Reply:
        """Return bookings by their codes."""
        salon_id, codes = request.salon_id, [code.upper() for code in request.booking_codes]
        arguments = [(salon_id, code) for code in dict.fromkeys(codes)]
        keys = [self.tags.booking(salon_id, code).key() for _, code in arguments]
        replies = await self.cache.get_many(keys, arguments, booking_queries.bookings_by_code)
        return batch_reply(dict(zip(dict.fromkeys(codes), replies, strict=True)), codes, "booking", f"{salon_id}/")

    async def ListBookings(self, request: pb.ListBookingsRequest, context: Any) -> Reply:
        """List a salon's bookings."""
        salon_id, phone = request.salon_id, request.customer_phone
        start, end = moment(request, "start_time"), moment(request, "end_time")
        if phone:
            phone = await e164("customer_phone", phone, lambda: self._region_code(salon_id))
        status = _status_name(request.status) if request.status else ""
        filters = BookingFilters(salon_id, status, phone, start, end)._replace(**_further_filters(request))
        further = filters[5:] if any(filters[5:]) else ()
        list_page = page(
            request.page_size, request.page_token, "ListBookings", salon_id, request.status, phone, start, end, *further
        )
        tag = self.tags.bookings(salon_id)
        if start and end:
            last = request.end_time.seconds + (request.end_time.nanos > 0)
            tag = self.tags.bookings_between(salon_id, request.start_time.seconds, last)
        return await self.cache.get_batched(
            tag.key("list", digest(list_page)),
            (filters, list_page),
            booking_queries.list_bookings,
            batch=names_given,
            rows=list_page.rows,
            repeatable=not is_national(request.customer_phone),
            replica=bool(request.page_token),
        )

    async def ListBookingEvents(self, request: pb.ListBookingEventsRequest, context: Any) -> Reply:
        """List the history of a booking."""
        salon_id, code = request.salon_id, request.booking_code.upper()
        list_page = page(request.page_size, request.page_token, "ListBookingEvents", salon_id, code, uuid=False)
        return await self.cache.get_batched(
            self.tags.booking(salon_id, code).key("events", digest(list_page)),
            (EventFilters(salon_id, code), list_page),
            booking_queries.list_booking_events,
            batch=names_given,
            rows=list_page.rows,
            repeatable=True,
            replica=bool(request.page_token),
        )

    async def SearchAvailability(self, request: pb.SearchAvailabilityRequest, context: Any) -> bytes:
        """Return the free slots of a salon's resources in a period."""
        salon_id, resource_ids, now = request.salon_id, list(dict.fromkeys(request.resource_ids)), self.now()
        code = request.excluding_booking_code.upper()
        filters = pb.SearchAvailabilityRequest()
        filters.CopyFrom(request)
        filters.ClearField("page_size")
        filters.ClearField("page_token")
        made_for = filters.SerializeToString(deterministic=True)
        slot_page = page(0, request.page_token, "SearchAvailability", made_for, uuid=False)
        slot_page = slot_page._replace(size=min(request.page_size or MOST_SLOTS, MOST_SLOTS))
        statement = read_availability(
            salon_id,
            resource_ids,
            *availability.seconds(request, now),
            buffers=(whole_seconds(request, "buffer_before") or 0, whole_seconds(request, "buffer_after") or 0),
            service_id=request.service_id,
            excluding_booking_code=code,
        )
        async with self.searches.connection(salon_id) as conn:
            [found] = await conn.run(statement)
            availability.check_found(found, request)
            asked, query = availability.slot_queries(request, now, found)
            if slot_page.after_micros is not None:
                query = query._replace(first=max(query.first, slot_page.after_micros // 1_000_000))
            return await anext(self.slices.each(availability.search(found, asked, query, slot_page)))

    async def ListBookingChanges(self, request: pb.ListBookingChangesRequest, context: Any) -> bytes:
        """List the changes of one salon or all, in an order that loses none."""
        return await self.changes.list(request)

    def WatchBookings(self, request: pb.WatchBookingsRequest, context: Any) -> AsyncIterator[bytes]:
        """Stream the changes of one salon or all."""
        return self.changes.watch(request)

    async def salon_tags(self, salon_id: str) -> list[Tag]:
        """Return all cache tags of a salon, also that of its phone_number_id."""
        async with self.database.connection() as conn:
            [salon] = await salon_queries.salons_by_id(conn, [salon_id])
        tags = await self.tags.of_salon(salon_id)
        if salon.value:
            tags.append(self.tags.phone_number_id(pb.Salon.FromString(salon.value).phone_number_id))
        return tags


def _further_filters(request: pb.ListBookingsRequest) -> dict[str, Any]:
    """Return the fields of BookingFilters that are seldom given. Raises: INVALID_FIELD."""
    found: dict[str, Any] = {"customer_user_id": request.customer_user_id}
    if request.resource_ids:
        found["resource_ids"] = text_array(sorted(set(request.resource_ids)))
    if request.statuses:
        found["statuses"] = text_array(map(_status_name, sorted(set(request.statuses))))
    if request.HasField("overlapping"):
        found["overlaps_from"] = moment(request.overlapping, "start_time", "overlapping.")
        found["overlaps_until"] = moment(request.overlapping, "end_time", "overlapping.")
    found["updated_since"] = moment(request, "updated_since")
    found["by_update_time"] = request.order_by == "update_time"
    return found


def _status_name(status: pb.BookingStatus.ValueType) -> str:
    """Return a status as the database has it."""
    return pb.BookingStatus.Name(status).removeprefix("BOOKING_STATUS_")


def build(cache: Cache, database: Database, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> Service:
    """Return the service for a server to run; `now` decides which slots lie in the past."""
    booking = BookingService(cache, database, now)
    return Service(
        descriptor=pb.DESCRIPTOR.services_by_name["BookingService"],
        servicer=booking,
        add=booking_pb2_grpc.add_BookingServiceServicer_to_server,
        salon_tags=booking.salon_tags,
        # The errors of violated constraints, by their names.
        constraints={
            "bookings_no_overlap": slot_unavailable,
            "bookings_resource_id_fkey": lambda request: errors.not_found(
                "resource", f"{request.salon_id}/{request.resource_id}"
            ),
            "bookings_salon_id_fkey": lambda request: errors.not_found("salon", request.salon_id),
            "resources_salon_id_fkey": lambda request: errors.not_found("salon", request.salon_id),
            "services_salon_id_fkey": lambda request: errors.not_found("salon", request.salon_id),
            "time_off_salon_id_fkey": lambda request: errors.not_found("salon", request.salon_id),
            "salons_phone_number_id_key": lambda request: errors.already_exists(
                "phone_number_id", "salon", request.salon.phone_number_id
            ),
        },
        background=[
            lambda: booking.write.purge(database.connection),
            HoldExpiry(cache, database).run,
            booking.changes.run,
            booking.changes.purge,
        ],
        metrics=[booking.changes],
    )
