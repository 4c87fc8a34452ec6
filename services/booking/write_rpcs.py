"""The RPCs that write bookings. service.py continues this class."""

import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any, cast

import psycopg

from libs.db import Statement
from libs.server import (
    Write,
    errors,
    moment,
    period,
    whole_seconds,
)
from parlor.booking.v1 import booking_pb2 as pb
from services.booking import (
    booking_write_queries,
    erasure_queries,
    locking,
    placement,
    transitions,
    updates,
)
from services.booking.booking_write_queries import (
    BookedSlot,
    customer_locks,
    read_conflict,
    resource_lock,
    salon_time_lock,
)
from services.booking.erasure_queries import Customer
from services.booking.salon_rpcs import SalonRpcs
from services.booking.slot_queries import Slot, read_slot
from services.phones import e164, spellings

# Codes are read out and typed, so they have no 0, 1, I, L, O or U.
CODE_LETTERS = "23456789ABCDEFGHJKMNPQRSTVWXYZ"
CODE_LENGTH = 6


class BookingWriteRpcs(SalonRpcs):
    """Creates and changes bookings, by the rules of the salon."""

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
        what: dict[str, Any] = {
            "service_id": request.service_id,
            "customer": customer,
            "ignore_rules": request.ignore_rules,
        }
        read = partial(read_slot, salon_id, start, end, now=now, **what)
        insert = partial(booking_write_queries.insert_booking, request, phone, code, start=start, end=end)
        resource_id, several = request.resource_id, list(dict.fromkeys(request.any_of_resource_ids))
        named = several or [resource_id][: bool(resource_id)]
        any_of_service = bool(request.service_id) and not named
        first: list[Statement[Any]] = [read(None if any_of_service else named, compare=bool(several))]
        if not several and not any_of_service:
            first.append(insert(resource_id=resource_id))
        locks = customer_locks(salon_id, *customer) + [resource_lock(salon_id, each) for each in named]
        tags = self.tags.of_bookings(salon_id, (code, request.start_time.seconds))
        shared = [salon_time_lock(salon_id)]
        async with self.write(request, salon_id, invalidates=tags, locks=locks, shared=shared, first=first) as write:
            slot = placement.check_found(write.first[0], salon_id, request.service_id, named)
            end = end or start + timedelta(seconds=slot.service.duration if slot.service else 0)
            booked: BookedSlot | None
            if len(first) == 2:
                booked = write.first[1]
                if not request.ignore_rules:
                    placement.check_rules(slot, pb.Booking(resource_id=resource_id), now, (start, end))
            else:
                if any_of_service:
                    ids = [candidate.resource_id for candidate in slot.candidates]
                    [slot] = await write.lock([resource_lock(salon_id, each) for each in ids], read(ids, compare=True))
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

    async def UpdateBookingStatus(self, request: pb.UpdateBookingStatusRequest, context: Any) -> bytes:
        """Move a booking to another status. Confirming it blocks the time, and so locks the resource first."""
        salon_id, code = request.salon_id, request.booking_code.upper()
        confirms = request.status == pb.BOOKING_STATUS_CONFIRMED
        read = booking_write_queries.resource_of if confirms else booking_write_queries.lock_booking
        first: Statement[Any] = read(salon_id, code)
        async with self.write(request, salon_id, first=[first]) as write:
            if confirms:
                before = await locking.lock_with_resources(write, salon_id, code, request.etag, write.first[0])
            else:
                before = locking.check_booking(write.first[0], salon_id, code, request.etag)
            booking = before.booking
            transitions.check_status(booking, request.status, self.now(), hold_expired=before.hold_expired)
            if request.status == pb.BOOKING_STATUS_CANCELLED and not request.ignore_rules:
                placement.check_cancel(booking, self.now(), before.rules)
            write.invalidate(*self.tags.of_bookings(salon_id, (code, booking.start_time.seconds)))
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
        first, shared = booking_write_queries.resource_of(salon_id, code), [salon_time_lock(salon_id)]
        async with self.write(request, salon_id, shared=shared, first=[first]) as write:
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
            return await self._change(write, request, before.booking, after, "RESCHEDULED")

    async def UpdateBooking(self, request: pb.UpdateBookingRequest, context: Any) -> bytes:
        """Change fields of a booking, and extend its hold."""
        salon_id, code = request.booking.salon_id, request.booking.booking_code.upper()
        changed, hold = updates.paths(request), whole_seconds(request, "hold_duration")
        phone = request.booking.customer_phone if "customer_phone" in changed else ""
        phone = await self._phone("booking.customer_phone", phone, salon_id)
        first = booking_write_queries.resource_of(salon_id, code)
        locks = customer_locks(salon_id, phone, request.booking.customer_user_id)
        shared = [salon_time_lock(salon_id)]
        async with self.write(request, salon_id, locks=locks, shared=shared, first=[first]) as write:
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
            return await self._change(write, request, before.booking, after, "UPDATED", hold)

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
                starts = [(booking.booking_code, booking.start) for booking in bookings]
                write.invalidate(*self.tags.of_bookings(salon_id, *starts))
                erased = write.reply = await erasure_queries.erase_customer(write.conn, customer, bookings)
        finally:  # also for a repeated request: the first one may have failed right after its commit
            await self.cache.erase(*tags)
        return erased

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

    async def _change(
        self, write: Write, request: Any, before: pb.Booking, after: pb.Booking, type: str, hold: int | None = None
    ) -> bytes:
        """Write a changed booking; return it, encoded. Raises: SLOT_UNAVAILABLE."""
        starts = [(after.booking_code, each.start_time.seconds) for each in (before, after)]
        write.invalidate(*self.tags.of_bookings(after.salon_id, *starts))
        changed: BookedSlot
        try:
            [changed] = await write.conn.run(booking_write_queries.change_booking(after, type, request, hold))
        except psycopg.errors.ExclusionViolation:
            raise await self._taken(write, request, after) from None
        if changed.expired:
            write.invalidate(*self.tags.of_bookings(after.salon_id, *changed.expired))
        write.reply = changed.booking
        return changed.booking

    async def _taken(self, write: Write, request: Any, after: pb.Booking) -> errors.RpcError:
        """Return the error of a changed booking that overlaps another one."""
        buffers = after.buffer_before.seconds, after.buffer_after.seconds
        conflict = read_conflict(after.salon_id, after.resource_id, *period(after), buffers, after.booking_code)
        return slot_unavailable(request, *await write.unlock(conflict))


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
