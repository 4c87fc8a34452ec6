"""The RPCs of the booking service, in the proto's order: each validates, names its cache tags, queries and replies."""

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache as once
from functools import partial
from typing import Any, cast
from zoneinfo import available_timezones

import psycopg
from google.protobuf.empty_pb2 import Empty

from libs.cache import Cache, Reply, Tag, digest
from libs.db import Database, Statement, for_searches
from libs.messages import encode_repeated, text_array
from libs.server import (
    IdempotentWrites,
    Service,
    Slices,
    Write,
    errors,
    moment,
    names_given,
    page,
    period,
    whole_seconds,
)
from parlor.booking.v1 import booking_pb2 as pb
from parlor.booking.v1 import booking_pb2_grpc
from services.booking import (
    availability,
    booking_queries,
    booking_write_queries,
    locking,
    placement,
    resource_queries,
    salon_queries,
    service_queries,
    time_off_queries,
    transitions,
    updates,
)
from services.booking.availability_queries import read_availability
from services.booking.booking_queries import BookingFilters, EventFilters
from services.booking.booking_write_queries import (
    BookedSlot,
    Customer,
    customer_locks,
    read_conflict,
    resource_lock,
    salon_time_lock,
)
from services.booking.changes import booking_changes
from services.booking.expiry import HoldExpiry
from services.booking.opening_hours import check_special_hours
from services.booking.resource_queries import ResourceFilters
from services.booking.service_queries import ServiceFilters, service_lock
from services.booking.slot_queries import Slot, read_slot
from services.booking.time_off_queries import TimeOffFilters
from services.busy_salons import BusySalon, warm
from services.cache_tags import CacheTags
from services.phones import e164, is_national, spellings

# Codes are read out and typed, so they have no 0, 1, I, L, O or U.
CODE_LETTERS = "23456789ABCDEFGHJKMNPQRSTVWXYZ"
CODE_LENGTH = 6
MOST_SLOTS = 10_000


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
        self.changes = booking_changes(database)

    async def UpsertSalon(self, request: pb.UpsertSalonRequest, context: Any) -> pb.Salon:
        """Create or replace a salon; invalidate its cache entries under the old and the new phone_number_id."""
        salon, salon_id, tags = request.salon, request.salon.salon_id, self.tags
        if salon.time_zone not in _time_zones():
            raise errors.invalid_fields([("salon.time_zone", "must be an IANA time zone, such as Europe/Berlin")])
        check_special_hours("salon.special_hours", salon.special_hours)
        for field in ("min_notice", "max_advance", "min_cancel_notice", "buffer_before", "buffer_after"):
            whole_seconds(salon.booking_rules, field, "salon.booking_rules.")
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

    async def DeleteResource(self, request: pb.DeleteResourceRequest, context: Any) -> Empty:
        """Delete a resource that has no bookings to come."""
        salon_id, resource_id = request.salon_id, request.resource_id
        name = f"{salon_id}/{resource_id}"
        lock = resource_lock(salon_id, resource_id)
        async with self.write(request, salon_id, invalidates=[self.tags.bookings(salon_id)], locks=(lock,)) as write:
            before = await resource_queries.lock_resource(write.conn, salon_id, resource_id)
            if before is None:
                raise errors.not_found("resource", name)
            if request.etag and request.etag != before.etag:
                raise errors.etag_mismatch("resource", name)
            code = await resource_queries.next_booking(write.conn, salon_id, resource_id)
            if code is not None:
                message = f"{resource_id} has bookings to come, the first one is {code}: move or cancel them before"
                raise errors.failed_precondition("RESOURCE_IN_USE", f"resource/{name}", message, booking_code=code)
            await resource_queries.delete_resource(write.conn, salon_id, resource_id)
            reply = write.reply = Empty()
        return reply

    async def UpsertService(self, request: pb.UpsertServiceRequest, context: Any) -> pb.Service:
        """Create or replace a service."""
        salon_id, service_id = request.salon_id, request.service_id
        for field in ("duration", "buffer_before", "buffer_after"):
            whole_seconds(request, field)
        first: list[Statement[Any]] = [
            service_queries.read_service(salon_id, service_id),
            resource_queries.missing_resources(salon_id, request.resource_ids),
        ]
        tag, lock = self.tags.services(salon_id), service_lock(salon_id, service_id)
        async with self.write(request, salon_id, invalidates=[tag], locks=[lock], first=first) as write:
            before, missing = write.first
            if missing:
                raise await _resource_not_found(write, salon_id, missing[0])
            if request.etag and (before is None or request.etag != before.etag):
                raise errors.etag_mismatch("service", f"{salon_id}/{service_id}")
            after = write.reply = await service_queries.upsert_service(write.conn, request)
        return after

    async def GetService(self, request: pb.GetServiceRequest, context: Any) -> Reply:
        """Return a service by its id."""
        salon_id, service_id = request.salon_id, request.service_id
        key = self.tags.services(salon_id).key("id", service_id)
        reply = await self.cache.get_batched(
            key, (salon_id, service_id), service_queries.services_by_id, repeatable=True
        )
        if reply.body is None:
            raise errors.not_found("service", f"{salon_id}/{service_id}")
        return reply

    async def ListServices(self, request: pb.ListServicesRequest, context: Any) -> Reply:
        """List a salon's services."""
        salon_id, active_only = request.salon_id, request.active_only
        list_page = page(request.page_size, request.page_token, "ListServices", salon_id, active_only, uuid=False)
        return await self.cache.get_batched(
            self.tags.services(salon_id).key("list", digest(list_page)),
            (ServiceFilters(salon_id, active_only), list_page),
            service_queries.list_services,
            batch=names_given,
            rows=list_page.rows,
            repeatable=True,
        )

    async def DeleteService(self, request: pb.DeleteServiceRequest, context: Any) -> Empty:
        """Delete a service."""
        salon_id, service_id = request.salon_id, request.service_id
        tag, lock = self.tags.services(salon_id), service_lock(salon_id, service_id)
        first = [service_queries.read_service(salon_id, service_id)]
        async with self.write(request, salon_id, invalidates=[tag], locks=[lock], first=first) as write:
            [before] = write.first
            name = f"{salon_id}/{service_id}"
            if before is None:
                raise errors.not_found("service", name)
            if request.etag and request.etag != before.etag:
                raise errors.etag_mismatch("service", name)
            await service_queries.delete_service(write.conn, salon_id, service_id)
            reply = write.reply = Empty()
        return reply

    async def CreateTimeOff(self, request: pb.CreateTimeOffRequest, context: Any) -> bytes:
        """Block a time of a resource or of the salon. Nobody books meanwhile: the reply misses no booking."""
        salon_id, resource_id = request.salon_id, request.resource_id
        start, end = period(request)
        first: list[Statement[Any]] = [
            time_off_queries.insert_time_off(request, start, end),
            time_off_queries.bookings_in(salon_id, resource_id, start, end),
        ]
        tag, lock = self.tags.bookings(salon_id), salon_time_lock(salon_id)
        async with self.write(request, salon_id, invalidates=[tag], locks=[lock], first=first) as write:
            time_off, bookings = write.first
            if time_off is None:
                raise await _resource_not_found(write, salon_id, resource_id)
            reply: bytes = encode_repeated([time_off], 1) + encode_repeated(bookings, 2)
            write.reply = reply
        return reply

    async def ListTimeOff(self, request: pb.ListTimeOffRequest, context: Any) -> Reply:
        """List a salon's time off."""
        salon_id = request.salon_id
        filters = TimeOffFilters(
            salon_id, request.resource_id, moment(request, "start_time"), moment(request, "end_time")
        )
        list_page = page(request.page_size, request.page_token, "ListTimeOff", *filters)
        return await self.cache.get_batched(
            self.tags.bookings(salon_id).key("time_off", digest(list_page)),
            (filters, list_page),
            time_off_queries.list_time_off,
            batch=names_given,
            rows=list_page.rows,
            repeatable=True,
        )

    async def DeleteTimeOff(self, request: pb.DeleteTimeOffRequest, context: Any) -> Empty:
        """Delete a time off."""
        salon_id, time_off_id = request.salon_id, request.time_off_id
        first = [time_off_queries.delete_time_off(salon_id, time_off_id)]
        tag, lock = self.tags.bookings(salon_id), salon_time_lock(salon_id)
        async with self.write(request, salon_id, invalidates=[tag], locks=[lock], first=first) as write:
            if write.first == [False]:
                raise errors.not_found("time_off", f"{salon_id}/{time_off_id}")
            reply = write.reply = Empty()
        return reply

    async def CreateBooking(self, request: pb.CreateBookingRequest, context: Any) -> bytes:
        """Book a time of a resource, of none, or of one of several.

        The constraint bookings_no_overlap refuses a time that overlaps another booking's. The rules are read and the
        booking is inserted in one round trip; a refusal rolls it back.
        """
        salon_id, code, now = request.salon_id, new_code(), self.now()
        start, end = cast(datetime, moment(request, "start_time")), moment(request, "end_time")
        if start == end:
            raise transitions.empty_time()
        whole_seconds(request, "hold_duration")
        phone = await self._phone("customer_phone", request.customer_phone, salon_id)
        customer = (phone, request.customer_user_id)
        read = partial(
            read_slot,
            *(salon_id, start, end),
            now=now,
            service_id=request.service_id,
            customer=customer,
            ignore_rules=request.ignore_rules,
        )
        insert = partial(booking_write_queries.insert_booking, request, phone, code, start=start, end=end)
        resource_id, several = request.resource_id, list(dict.fromkeys(request.any_of_resource_ids))
        locks = customer_locks(salon_id, *customer)
        locks += [resource_lock(salon_id, each) for each in several or [resource_id] if each]
        first: list[Statement[Any]] = [read(several, compare=True)]
        if not several and request.service_id and not resource_id:
            first = [read(None)]
        elif not several:
            first = [read([resource_id] if resource_id else []), insert(resource_id=resource_id)]
        tags, shared = self.tags.of_bookings(salon_id, code), [salon_time_lock(salon_id)]
        async with self.write(request, salon_id, invalidates=tags, locks=locks, shared=shared, first=first) as write:
            slot = placement.check_found(
                write.first[0], salon_id, request.service_id, several or [resource_id][: bool(resource_id)]
            )
            end = end or start + timedelta(seconds=slot.service.duration if slot.service else 0)
            booked: BookedSlot | None
            if len(first) == 2:
                booked = write.first[1]
                if not request.ignore_rules:
                    placement.check_rules(slot, pb.Booking(resource_id=resource_id), now, (start, end))
            else:
                if not several:
                    ids = [candidate.resource_id for candidate in slot.candidates]
                    locks = [resource_lock(salon_id, each) for each in ids]
                    [slot] = await write.lock(locks, read(ids, compare=True))
                chosen = placement.choose(slot, start, end, now, ignore_rules=request.ignore_rules)
                resource_id = await anext(self.slices.each(chosen))
                [booked] = await write.conn.run(insert(resource_id=resource_id))
            if booked is None:
                buffers = (0, 0) if request.ignore_rules else slot.buffers
                conflict = read_conflict(salon_id, resource_id, start, end, buffers)
                raise slot_unavailable(request, *await write.conn.run(conflict))
            if booked.expired:
                write.invalidate(*self.tags.of_bookings(salon_id, *booked.expired))
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
        status = _status_name(request.status) if request.status else ""
        filters = BookingFilters(salon_id, status, phone, start, end)._replace(**_further_filters(request))
        further = filters[5:] if any(filters[5:]) else ()
        list_page = page(
            request.page_size, request.page_token, "ListBookings", salon_id, request.status, phone, start, end, *further
        )
        return await self.cache.get_batched(
            self.tags.bookings(salon_id).key("list", digest(list_page)),
            (filters, list_page),
            booking_queries.list_bookings,
            batch=names_given,
            rows=list_page.rows,
            repeatable=not is_national(request.customer_phone),
        )

    async def UpdateBookingStatus(self, request: pb.UpdateBookingStatusRequest, context: Any) -> bytes:
        """Move a booking to another status. Confirming it blocks the time, and so locks the resource first."""
        salon_id, code = request.salon_id, request.booking_code.upper()
        confirms = request.status == pb.BOOKING_STATUS_CONFIRMED
        read = booking_write_queries.resource_of if confirms else booking_write_queries.lock_booking
        first: Statement[Any] = read(salon_id, code)
        tags = self.tags.of_bookings(salon_id, code)
        async with self.write(request, salon_id, invalidates=tags, first=[first]) as write:
            if confirms:
                before = await locking.lock_with_resources(write, salon_id, code, request.etag, write.first[0])
            else:
                before = locking.check_booking(write.first[0], salon_id, code, request.etag)
            booking = before.booking
            transitions.check_status(booking, request.status, self.now(), hold_expired=before.hold_expired)
            if request.status == pb.BOOKING_STATUS_CANCELLED and not request.ignore_rules:
                placement.check_cancel(booking, self.now(), before.rules)
            after: bytes
            try:
                [after] = await write.conn.run(booking_write_queries.update_booking_status(booking, request))
            except psycopg.errors.ExclusionViolation:
                raise await self._taken(write, request, booking) from None
            write.reply = after
        return after

    async def RescheduleBooking(self, request: pb.RescheduleBookingRequest, context: Any) -> bytes:
        """Move a booking to another time or resource, or both."""
        salon_id, code = request.salon_id, request.booking_code.upper()
        first, tags = booking_write_queries.resource_of(salon_id, code), self.tags.of_bookings(salon_id, code)
        async with self.write(
            request, salon_id, invalidates=tags, shared=[salon_time_lock(salon_id)], first=[first]
        ) as write:
            before = await locking.lock_with_resources(
                write, salon_id, code, request.etag, write.first[0], request.resource_id
            )
            transitions.check_blocking(before.booking, hold_expired=before.hold_expired)
            start, end = transitions.new_times(request, before.booking)
            after = pb.Booking()
            after.CopyFrom(before.booking)
            after.start_time.FromDatetime(start)
            after.end_time.FromDatetime(end)
            after.resource_id = request.resource_id or after.resource_id
            slot = await self._read_slot(write, after, [after.resource_id][: bool(after.resource_id)], of_customer=True)
            if not request.ignore_rules:
                is_moved = after.start_time != before.booking.start_time
                placement.check_rules(slot, after, self.now() if is_moved else None)
            return await self._change(write, request, after, "RESCHEDULED")

    async def UpdateBooking(self, request: pb.UpdateBookingRequest, context: Any) -> bytes:
        """Change fields of a booking, and extend its hold."""
        salon_id, code = request.booking.salon_id, request.booking.booking_code.upper()
        changed, hold = updates.paths(request), whole_seconds(request, "hold_duration")
        phone = request.booking.customer_phone if "customer_phone" in changed else ""
        phone = await self._phone("booking.customer_phone", phone, salon_id)
        first = booking_write_queries.resource_of(salon_id, code)
        locks = customer_locks(salon_id, phone, request.booking.customer_user_id)
        tags, shared = self.tags.of_bookings(salon_id, code), [salon_time_lock(salon_id)]
        async with self.write(request, salon_id, invalidates=tags, locks=locks, shared=shared, first=[first]) as write:
            before = await locking.lock_with_resources(write, salon_id, code, request.etag, write.first[0])
            after = updates.merge(before.booking, request, changed, phone)
            differing = updates.differing(before.booking, after, changed)
            if hold is not None:
                transitions.check_extends(before.booking, hold_expired=before.hold_expired)
            if differing & updates.OF_TIME:
                transitions.check_blocking(before.booking, hold_expired=before.hold_expired)
            if transitions.length(after) <= timedelta():
                raise transitions.empty_time("booking.end_time")
            if "service_id" in differing:
                slot = await self._read_slot(write, after, service_id=after.service_id)
                updates.set_service(after, slot, changed, ignore_rules=request.ignore_rules)
            if differing & updates.RULED and not request.ignore_rules:
                new_times, new_customer = differing & updates.OF_TIME, bool(differing & updates.OF_CUSTOMER)
                resource_ids = [after.resource_id] if new_times and after.resource_id else []
                slot = await self._read_slot(write, after, resource_ids, of_customer=new_customer)
                if new_times:
                    placement.check_rules(slot, after, None)
                placement.check_customer(slot)
            return await self._change(write, request, after, "UPDATED", hold)

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

    async def EraseCustomer(self, request: pb.EraseCustomerRequest, context: Any) -> pb.EraseCustomerResponse:
        """Remove a customer from their bookings, the history of these, kept replies and the cache."""
        salon_id, phone = request.salon_id, request.phone_number
        if phone:
            phone = await e164("phone_number", phone, lambda: self._region_code(salon_id))
        customer = Customer(salon_id, spellings(phone) if phone else [], request.user_id)
        tags = self.tags.of_bookings(salon_id)
        try:
            async with self.write(request, salon_id, invalidates=tags) as write:
                bookings = await locking.lock_bookings_of_customer(write, customer)
                codes = [booking.booking_code for booking in bookings]
                write.invalidate(*self.tags.of_bookings(salon_id, *codes))
                erased = write.reply = await booking_write_queries.erase_customer(write.conn, customer, bookings)
        finally:  # also for a repeated request: the first one may have failed right after its commit
            await self.cache.erase(*tags)
        return erased

    async def ListBookingChanges(self, request: pb.ListBookingChangesRequest, context: Any) -> bytes:
        """List the changes of one salon or all, in an order that loses none."""
        return await self.changes.list(request)

    def WatchBookings(self, request: pb.WatchBookingsRequest, context: Any) -> AsyncIterator[bytes]:
        """Stream the changes of one salon or all."""
        return self.changes.watch(request)

    async def _region_code(self, salon_id: str) -> str:
        """Return a salon's region_code. Raises: SALON_NOT_FOUND."""
        reply = await self.GetSalon(pb.GetSalonRequest(salon_id=salon_id), None)
        return pb.Salon.FromString(reply.body or b"").region_code

    async def _phone(self, field: str, number: str, salon_id: str) -> str:
        """Return a phone number as E.164, "" for none. Raises: INVALID_FIELD; SALON_NOT_FOUND."""
        return await e164(field, number, lambda: self._region_code(salon_id)) if number else ""

    async def _read_slot(
        self,
        write: Write,
        booking: pb.Booking,
        resource_ids: Sequence[str] = (),
        *,
        service_id: str = "",
        of_customer: bool = False,
    ) -> Slot:
        """Return what decides about the time of a changed booking; about its customer only with `of_customer`.

        Raises: RESOURCE_NOT_FOUND; SERVICE_NOT_FOUND for a `service_id`, which the booking is to get.
        """
        [slot] = await write.conn.run(
            read_slot(
                booking.salon_id,
                *period(booking),
                resource_ids,
                self.now(),
                service_id=booking.service_id,
                customer=(booking.customer_phone, booking.customer_user_id) if of_customer else ("", ""),
                booking_id=booking.booking_id,
            )
        )
        return placement.check_found(slot, booking.salon_id, service_id, resource_ids)

    async def _change(self, write: Write, request: Any, after: pb.Booking, type: str, hold: int | None = None) -> bytes:
        """Write a changed booking; return it, encoded. Raises: SLOT_UNAVAILABLE."""
        changed: BookedSlot
        try:
            [changed] = await write.conn.run(booking_write_queries.change_booking(after, type, request, hold))
        except psycopg.errors.ExclusionViolation:
            raise await self._taken(write, request, after) from None
        write.invalidate(*self.tags.of_bookings(after.salon_id, *changed.expired))
        write.reply = changed.booking
        return changed.booking

    async def _taken(self, write: Write, request: Any, after: pb.Booking) -> errors.RpcError:
        """Return the error of a changed booking that overlaps another one."""
        buffers = after.buffer_before.seconds, after.buffer_after.seconds
        conflict = read_conflict(after.salon_id, after.resource_id, *period(after), buffers, after.booking_code)
        return slot_unavailable(request, *await write.unlock(conflict))

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


def slot_unavailable(request: Any, conflict: tuple[datetime, datetime] | None = None) -> errors.RpcError:
    """Return the error of a time that overlaps another booking of the resource, `conflict`."""
    resource_id = getattr(request, "resource_id", "")
    subject = f"resource/{resource_id}" if resource_id else "resource"
    message = f"{resource_id or 'the resource'} is taken at that time"
    names = ("conflict_start_time", "conflict_end_time")
    metadata = {name: f"{time:%Y-%m-%dT%H:%M:%SZ}" for name, time in zip(names, conflict or (), strict=False)}
    return errors.failed_precondition("SLOT_UNAVAILABLE", subject, message, **metadata)


async def _resource_not_found(write: Write, salon_id: str, resource_id: str) -> errors.RpcError:
    """Return the error of an unknown resource; SALON_NOT_FOUND if the salon is unknown, too."""
    [salon] = await salon_queries.salons_by_id(write.conn, [salon_id])
    if salon.value is None:
        return errors.not_found("salon", salon_id)
    return errors.not_found("resource", f"{salon_id}/{resource_id}")


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
            lambda: warm(cache, database, booking.expected_reads),
        ],
        metrics=[booking.changes],
    )
