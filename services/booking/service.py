"""The RPCs of the booking service, in the proto's order: each validates, names its cache tags, queries and replies."""

import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache as once
from typing import Any
from zoneinfo import available_timezones

from libs.cache import Cache, Reply, Tag, digest
from libs.db import Database, Statement, for_searches
from libs.messages import encode_repeated
from libs.server import IdempotentWrites, Service, Slices, Write, errors, moment, names_given, page, whole_seconds
from parlor.booking.v1 import booking_pb2 as pb
from parlor.booking.v1 import booking_pb2_grpc
from services.booking import (
    availability,
    booking_queries,
    booking_write_queries,
    resource_queries,
    salon_queries,
    transitions,
)
from services.booking.booking_queries import BookingFilters, EventFilters
from services.booking.booking_write_queries import BookedSlot, LockedBooking, resource_lock
from services.booking.opening_hours import check_special_hours
from services.booking.resource_queries import ResourceFilters
from services.busy_salons import BusySalon, warm
from services.cache_tags import CacheTags
from services.phones import e164, is_national

# Codes are read out and typed, so they have no 0, 1, I, L, O or U.
CODE_LETTERS = "23456789ABCDEFGHJKMNPQRSTVWXYZ"
CODE_LENGTH = 6
MOST_SLOTS = 10_000
# A booking may change its resource while a writer waits for the resource's lock; the writer then tries again.
LOCK_ATTEMPTS = 5


class BookingService(booking_pb2_grpc.BookingServiceServicer):
    """Salons, their resources and opening hours, and their bookings."""

    def __init__(self, cache: Cache, database: Database, now: Callable[[], datetime]) -> None:
        """Prepare; `now` decides which slots lie in the past."""
        self.cache = cache
        self.database = database
        self.now = now
        self.tags = CacheTags(cache)
        self.searches = for_searches(database)
        self.slices = Slices()
        self.write = IdempotentWrites(cache, database, "booking_requests")
        database.canary = "booking_requests"

    async def UpsertSalon(self, request: pb.UpsertSalonRequest, context: Any) -> pb.Salon:
        """Create or replace a salon; invalidate its cache entries under the old and the new phone_number_id."""
        salon, salon_id, tags = request.salon, request.salon.salon_id, self.tags
        if salon.time_zone not in _time_zones():
            raise errors.invalid_fields([("salon.time_zone", "must be an IANA time zone, such as Europe/Berlin")])
        check_special_hours("salon.special_hours", salon.special_hours)
        async with self.write(
            request,
            salon_id,
            invalidates=[tags.salon(salon_id), tags.phone_number_id(salon.phone_number_id), tags.stats(salon_id)],
            locks=(f"salon {salon_id}",),
        ) as write:
            before = await salon_queries.lock_salon(write.conn, salon_id)
            if salon.etag and (before is None or salon.etag != before.etag):
                raise errors.etag_mismatch("salon", salon_id)
            if before is not None:
                write.invalidate(tags.phone_number_id(before.phone_number_id))
            after = write.reply = await salon_queries.upsert_salon(write.conn, salon)
        return after

    async def GetSalon(self, request: pb.GetSalonRequest, context: Any) -> Reply:
        """Return a salon by its id."""
        salon_id = request.salon_id
        key = self.tags.salon(salon_id).key()
        reply = await self.cache.get_batched(key, salon_id, salon_queries.salons_by_id, repeatable=True)
        if reply.body is None:
            raise errors.not_found("salon", salon_id)
        return reply

    async def GetSalonByPhoneNumberId(self, request: pb.GetSalonByPhoneNumberIdRequest, context: Any) -> Reply:
        """Return a salon by its WhatsApp phone_number_id."""
        phone_number_id = request.phone_number_id
        key = self.tags.phone_number_id(phone_number_id).key()
        load = salon_queries.salons_by_phone_number_id
        reply = await self.cache.get_batched(key, phone_number_id, load, repeatable=True)
        if reply.body is None:
            raise errors.not_found("salon", phone_number_id)
        return reply

    async def BatchGetSalons(self, request: pb.BatchGetSalonsRequest, context: Any) -> Reply:
        """Return salons by their ids."""
        ids = list(dict.fromkeys(request.salon_ids))
        keys = [self.tags.salon(salon_id).key() for salon_id in ids]
        replies = await self.cache.get_many(keys, ids, salon_queries.salons_by_id)
        return _batch_reply(dict(zip(ids, replies, strict=True)), request.salon_ids, "salon")

    async def ListSalons(self, request: pb.ListSalonsRequest, context: Any) -> bytes:
        """List all salons."""
        list_page = page(request.page_size, request.page_token, uuid=False)
        async with self.database.connection() as conn:
            salons = await salon_queries.list_salons(conn, list_page)
        return list_page.fill(pb.ListSalonsResponse, salons, "create_time", "salon_id")

    async def UpsertResource(self, request: pb.UpsertResourceRequest, context: Any) -> pb.Resource:
        """Create or replace a resource."""
        salon_id, resource_id = request.salon_id, request.resource_id
        check_special_hours("special_hours", request.special_hours)
        lock = resource_lock(salon_id, resource_id)
        async with self.write(request, salon_id, invalidates=[self.tags.bookings(salon_id)], locks=(lock,)) as write:
            before = await resource_queries.lock_resource(write.conn, salon_id, resource_id)
            if request.etag and (before is None or request.etag != before.etag):
                raise errors.etag_mismatch("resource", f"{salon_id}/{resource_id}")
            after = write.reply = await resource_queries.upsert_resource(write.conn, request)
        return after

    async def ListResources(self, request: pb.ListResourcesRequest, context: Any) -> Reply:
        """List a salon's resources."""
        salon_id, active_only = request.salon_id, request.active_only
        list_page = page(request.page_size, request.page_token, "ListResources", salon_id, active_only, uuid=False)
        return await self.cache.get_batched(
            self.tags.bookings(salon_id).key("resources", digest(list_page)),
            (ResourceFilters(salon_id, active_only), list_page),
            resource_queries.list_resources,
            batch=names_given,
            rows=list_page.rows,
            repeatable=True,
        )

    async def CreateBooking(self, request: pb.CreateBookingRequest, context: Any) -> bytes:
        """Book a time. The constraint bookings_no_overlap refuses a time that overlaps another booking's."""
        salon_id, resource_id, code = request.salon_id, request.resource_id, new_code()
        start, end = moment(request, "start_time"), moment(request, "end_time")
        if start == end:
            raise transitions.empty_time()
        whole_seconds(request, "hold_duration")
        phone = await e164("customer_phone", request.customer_phone, lambda: self._region_code(salon_id))
        insert = booking_write_queries.insert_booking(request, phone, code, start, end)
        locks = (resource_lock(salon_id, resource_id),) if resource_id else ()
        tags = self.tags.of_bookings(salon_id, code)
        async with self.write(request, salon_id, invalidates=tags, locks=locks, first=[insert]) as write:
            booked: BookedSlot | None = write.first[0]
            if booked is None:
                raise slot_unavailable(request)
            if booked.cancelled:
                write.invalidate(*self.tags.of_bookings(salon_id, *booked.cancelled))
            write.reply = booked.booking
        return booked.booking

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
        return _batch_reply(dict(zip(dict.fromkeys(codes), replies, strict=True)), codes, "booking", f"{salon_id}/")

    async def ListBookings(self, request: pb.ListBookingsRequest, context: Any) -> Reply:
        """List a salon's bookings."""
        salon_id, phone = request.salon_id, request.customer_phone
        start, end = moment(request, "start_time"), moment(request, "end_time")
        if phone:
            phone = await e164("customer_phone", phone, lambda: self._region_code(salon_id))
        list_page = page(
            request.page_size, request.page_token, "ListBookings", salon_id, request.status, phone, start, end
        )
        status = pb.BookingStatus.Name(request.status).removeprefix("BOOKING_STATUS_") if request.status else ""
        return await self.cache.get_batched(
            self.tags.bookings(salon_id).key("list", digest(list_page)),
            (BookingFilters(salon_id, status, phone, start, end), list_page),
            booking_queries.list_bookings,
            batch=names_given,
            rows=list_page.rows,
            repeatable=not is_national(request.customer_phone),
        )

    async def UpdateBookingStatus(self, request: pb.UpdateBookingStatusRequest, context: Any) -> bytes:
        """Move a booking to another status. Confirming it blocks the time for good, and so locks the resource first."""
        salon_id, code = request.salon_id, request.booking_code.upper()
        confirms = request.status == pb.BOOKING_STATUS_CONFIRMED
        read = booking_write_queries.resource_of if confirms else booking_write_queries.lock_booking
        first: Statement[Any] = read(salon_id, code)
        tags = self.tags.of_bookings(salon_id, code)
        async with self.write(request, salon_id, invalidates=tags, first=[first]) as write:
            if confirms:
                before = await self._lock_with_resources(write, request, write.first[0])
            else:
                before = _check_booking(request, write.first[0])
            transitions.check_status(before.booking, request.status, hold_expired=before.hold_expired)
            after: bytes
            [after] = await write.conn.run(booking_write_queries.update_booking_status(before.booking, request))
            write.reply = after
        return after

    async def RescheduleBooking(self, request: pb.RescheduleBookingRequest, context: Any) -> bytes:
        """Move a booking to another time or resource, or both."""
        salon_id, code = request.salon_id, request.booking_code.upper()
        first = booking_write_queries.resource_of(salon_id, code)
        tags = self.tags.of_bookings(salon_id, code)
        async with self.write(request, salon_id, invalidates=tags, first=[first]) as write:
            before = await self._lock_with_resources(write, request, write.first[0], request.resource_id)
            transitions.check_time(before.booking, hold_expired=before.hold_expired)
            start, end = transitions.new_times(request, before.booking)
            after: BookedSlot
            [after] = await write.conn.run(
                booking_write_queries.reschedule_booking(before.booking, request, start, end)
            )
            write.invalidate(*self.tags.of_bookings(salon_id, *after.cancelled))
            write.reply = after.booking
        return after.booking

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
        )

    async def SearchAvailability(self, request: pb.SearchAvailabilityRequest, context: Any) -> bytes:
        """Return the free slots of a salon's resources in a period."""
        salon_id, resource_ids = request.salon_id, request.resource_ids
        query = availability.slot_query(request, self.now())
        filters = pb.SearchAvailabilityRequest()
        filters.CopyFrom(request)
        filters.ClearField("page_size")
        filters.ClearField("page_token")
        made_for = filters.SerializeToString(deterministic=True)
        slot_page = page(0, request.page_token, "SearchAvailability", made_for, uuid=False)
        slot_page = slot_page._replace(size=min(request.page_size or MOST_SLOTS, MOST_SLOTS))
        if slot_page.after_micros is not None:
            query = query._replace(first=max(query.first, slot_page.after_micros // 1_000_000))
        async with self.searches.connection(salon_id) as conn:
            times = query.busy_from, query.busy_until
            rows = await resource_queries.availability(conn, salon_id, resource_ids, *times)
            if not any(row[0] is None for row in rows):
                raise errors.not_found("salon", salon_id)
            # The first start of a later page may also have slots that the page before has shown: one per resource.
            limit = slot_page.size + len(rows) + len(resource_ids)
            steps = availability.search(rows, resource_ids, query, slot_page, limit)
            return await anext(self.slices.each(steps))

    async def EraseCustomer(self, request: pb.EraseCustomerRequest, context: Any) -> pb.EraseCustomerResponse:
        """Remove a customer from their bookings, the history of these, kept replies and the cache."""
        salon_id = request.salon_id
        phone = await e164("phone_number", request.phone_number, lambda: self._region_code(salon_id))
        tags = self.tags.of_bookings(salon_id)
        try:
            async with self.write(request, salon_id, invalidates=tags) as write:
                codes = await self._lock_bookings_of_customer(write, salon_id, phone)
                write.invalidate(*self.tags.of_bookings(salon_id, *codes.values()))
                erased = write.reply = await booking_write_queries.erase_customer(
                    write.conn, salon_id, phone, list(codes)
                )
        finally:  # also for a repeated request: the first one may have failed right after its commit
            await self.cache.erase(*tags)
        return erased

    async def _region_code(self, salon_id: str) -> str:
        """Return a salon's region_code. Raises: SALON_NOT_FOUND."""
        reply = await self.GetSalon(pb.GetSalonRequest(salon_id=salon_id), None)
        return pb.Salon.FromString(reply.body or b"").region_code

    async def _lock_with_resources(
        self, write: Write, request: Any, resource_id: str | None, *other_ids: str
    ) -> LockedBooking:
        """Lock a request's booking, after its resource and others; return it.

        `resource_id` is the booking's resource as last read. Raises: as `_check_booking`; CONFLICT if the booking keeps
        changing its resource.
        """
        salon_id, code = request.salon_id, request.booking_code.upper()
        for _ in range(LOCK_ATTEMPTS):
            locks = [resource_lock(salon_id, name) for name in {resource_id, *other_ids} if name]
            [found] = await write.lock(locks, booking_write_queries.lock_booking(salon_id, code))
            locked = _check_booking(request, found)
            if locked.booking.resource_id == resource_id:
                return locked
            [resource_id] = await write.unlock(booking_write_queries.resource_of(salon_id, code))
        raise errors.conflict()

    async def _lock_bookings_of_customer(self, write: Write, salon_id: str, phone: str) -> dict[str, str]:
        """Lock a customer's bookings, after their resources; return their codes by their ids.

        Raises: CONFLICT if the bookings keep changing their resources.
        """
        for _ in range(LOCK_ATTEMPTS):
            resource_ids = await booking_write_queries.resources_of_customer(write.conn, salon_id, phone)
            await write.lock([resource_lock(salon_id, resource_id) for resource_id in resource_ids])
            locked = await booking_write_queries.lock_bookings_of_customer(write.conn, salon_id, phone)
            if {resource_id for _, _, resource_id in locked if resource_id} <= set(resource_ids):
                return {booking_id: code for booking_id, code, _ in locked}
            await write.unlock()
        raise errors.conflict()

    def expected_reads(self, salon: BusySalon) -> list[Callable[[], Awaitable[Reply]]]:
        """Return the reads that a busy salon will soon need: the salon by both its ids, and its bookings of today."""
        by_id = pb.GetSalonRequest(salon_id=salon.salon_id)
        by_phone_number_id = pb.GetSalonByPhoneNumberIdRequest(phone_number_id=salon.phone_number_id)
        bookings = pb.ListBookingsRequest(salon_id=salon.salon_id, **salon.today)
        return [
            lambda: self.GetSalon(by_id, None),
            lambda: self.GetSalonByPhoneNumberId(by_phone_number_id, None),
            lambda: self.ListBookings(bookings, None),
        ]

    async def salon_tags(self, salon_id: str) -> list[Tag]:
        """Return all cache tags of a salon, also that of its phone_number_id."""
        async with self.database.connection() as conn:
            [salon] = await salon_queries.salons_by_id(conn, [salon_id])
        tags = await self.tags.of_salon(salon_id)
        if salon.value:
            tags.append(self.tags.phone_number_id(pb.Salon.FromString(salon.value).phone_number_id))
        return tags


def new_code() -> str:
    """Return a random booking code."""
    return "".join(secrets.SystemRandom().choices(CODE_LETTERS, k=CODE_LENGTH))


def slot_unavailable(request: Any) -> errors.RpcError:
    """Return the error of a time that overlaps another booking of the resource."""
    subject = f"resource/{request.resource_id}" if request.resource_id else f"booking/{request.booking_code}"
    message = f"{request.resource_id or 'the resource'} is taken at that time"
    return errors.failed_precondition("SLOT_UNAVAILABLE", subject, message)


def _check_booking(request: Any, locked: LockedBooking | None) -> LockedBooking:
    """Return the booking that a request names. Raises: BOOKING_NOT_FOUND; ETAG_MISMATCH."""
    name = f"{request.salon_id}/{request.booking_code.upper()}"
    if locked is None:
        raise errors.not_found("booking", name)
    if request.etag and request.etag != locked.booking.etag:
        raise errors.etag_mismatch("booking", name)
    return locked


def _batch_reply(replies: Mapping[str, Reply], names: Sequence[str], kind: str, parent: str = "") -> Reply:
    """Return the reply to a batch, in the order of `names`; it counts as old as its oldest part.

    Raises: `<KIND>_NOT_FOUND` for the first that does not exist, named with its `parent`.
    """
    for name, reply in replies.items():
        if reply.body is None:
            raise errors.not_found(kind, parent + name)
    source = max((reply.source for reply in replies.values()), key=("hit", "miss", "bypass").index)
    return Reply(
        encode_repeated([replies[name].body or b"" for name in names]),
        source,
        max(reply.age_ms for reply in replies.values()),
    )


@once
def _time_zones() -> frozenset[str]:
    return frozenset(available_timezones())


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
            "bookings_salon_id_fkey": lambda request: errors.not_found("salon", request.salon_id),
            "resources_salon_id_fkey": lambda request: errors.not_found("salon", request.salon_id),
            "salons_phone_number_id_key": lambda request: errors.already_exists(
                "phone_number_id", "salon", request.salon.phone_number_id
            ),
        },
        background=[
            lambda: booking.write.purge(database.connection),
            lambda: warm(cache, database, booking.expected_reads),
        ],
    )
