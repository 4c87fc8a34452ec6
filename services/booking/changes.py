"""The RPCs that change bookings."""

import secrets
from datetime import datetime
from typing import Any

from libs.server import Write, errors, moment, period, whole_seconds
from parlor.booking.v1 import booking_pb2 as pb
from services.booking import change_queries as queries
from services.booking import transitions
from services.booking.change_queries import Locked, Said, Taken
from services.booking.rpcs import Rpcs, resource_lock

# No 0, 1, I, L, O or U: a code is read out and typed.
CODE_LETTERS = "23456789ABCDEFGHJKMNPQRSTVWXYZ"
CODE_LENGTH = 6
LAST_MOMENT = datetime.fromisoformat("9999-01-01T00:00:00Z")
# How often a booking may change its resource under a writer that waits for the resource.
ATTEMPTS = 5


class ChangeRpcs(Rpcs):
    """What makes, moves and empties bookings.

    Whoever writes a booking that blocks a resource's time waits for the resource first: two who write to the exclusion
    constraint's index and then find each other would deadlock. Whoever frees a time waits for nobody.
    """

    async def CreateBooking(self, request: pb.CreateBookingRequest, context: Any) -> bytes:
        """Book a time."""
        start, end = moment(request, "start_time"), moment(request, "end_time")
        if start == end:
            raise _no_time()
        whole_seconds(request, "hold_duration")
        phone = await self.phone(request, "customer_phone")
        salon_id, resource_id = request.salon_id, request.resource_id
        code = new_code()
        locks = (resource_lock(salon_id, resource_id),) if resource_id else ()
        insert = queries.insert_booking(request, phone, code, start, end)
        async with self.write(request, salon_id, *self.touched(salon_id, code), locks=locks, first=[insert]) as write:
            inserted: Taken | None = write.first[0]
            if inserted is None:
                raise taken(request)
            if inserted.expired:
                write.invalidate(*self.touched(salon_id, *inserted.expired))
            write.reply = inserted.booking
        return inserted.booking

    async def UpdateBookingStatus(self, request: pb.UpdateBookingStatusRequest, context: Any) -> bytes:
        """Move a booking to another status."""
        salon_id, code = request.salon_id, request.booking_code.upper()
        status = pb.BookingStatus.Name(request.status).removeprefix("BOOKING_STATUS_")
        takes_time = request.status == pb.BOOKING_STATUS_CONFIRMED
        first = (queries.resource_of if takes_time else queries.lock_booking)(salon_id, code)
        async with self.write(request, salon_id, *self.touched(salon_id, code), first=[first]) as write:
            [found] = write.first
            before = await self._locked_with_time(write, request, found) if takes_time else _checked(request, found)
            transitions.check_status(before.booking, request.status, hold_expired=before.hold_expired)
            said = Said(request.actor, request.reason)
            after: bytes
            [after] = await write.conn.run(queries.update_booking_status(before.booking, status, said))
            write.reply = after
        return after

    async def RescheduleBooking(self, request: pb.RescheduleBookingRequest, context: Any) -> bytes:
        """Move a booking to another time or resource."""
        salon_id, code, said = request.salon_id, request.booking_code.upper(), Said(request.actor, request.reason)
        first = queries.resource_of(salon_id, code)
        async with self.write(request, salon_id, *self.touched(salon_id, code), first=[first]) as write:
            before = await self._locked_with_time(write, request, write.first[0], request.resource_id)
            transitions.check_time(before.booking, hold_expired=before.hold_expired)
            start, end = _times(request, before.booking)
            resource_id = request.resource_id or before.booking.resource_id
            move = queries.reschedule_booking(before.booking, resource_id, start, end, said)
            after: Taken
            [after] = await write.conn.run(move)
            write.invalidate(*self.touched(salon_id, *after.expired))
            write.reply = after.booking
        return after.booking

    async def EraseCustomer(self, request: pb.EraseCustomerRequest, context: Any) -> pb.EraseCustomerResponse:
        """Remove a customer from their bookings, and from what is kept of these anywhere else."""
        salon_id = request.salon_id
        phone = await self.phone(request, "phone_number")
        try:
            async with self.write(request, salon_id, *self.touched(salon_id)) as write:
                bookings = await self._all_locked_with_time(write, salon_id, phone)
                write.invalidate(*self.touched(salon_id, *bookings.values()))
                erased = write.reply = await queries.erase_customer(write.conn, salon_id, phone, list(bookings))
        finally:  # also after a repeat, whose first time may have ended right after its commit
            await self.cache.erase(*self.touched(salon_id))
        return erased

    async def _locked_with_time(
        self, write: Write, request: Any, resource_id: str | None, *resource_ids: str
    ) -> Locked:
        """Return the booking of a request, locked after the time of its resource and of others.

        `resource_id` is what `resource_of` found. Raises: what `_checked` raises; CONFLICT if its resource keeps
        changing.
        """
        salon_id, code = request.salon_id, request.booking_code.upper()
        for _ in range(ATTEMPTS):
            names = [resource_lock(salon_id, name) for name in {resource_id, *resource_ids} if name]
            [found] = await write.lock(names, queries.lock_booking(salon_id, code))
            locked = _checked(request, found)
            if locked.booking.resource_id == resource_id:
                return locked
            [resource_id] = await write.unlock(queries.resource_of(salon_id, code))
        raise errors.conflict()

    async def _all_locked_with_time(self, write: Write, salon_id: str, phone: str) -> dict[str, str]:
        """Return the codes of a customer's bookings by their ids, locked after the time of their resources.

        Raises: CONFLICT if their resources keep changing.
        """
        for _ in range(ATTEMPTS):
            resource_ids = await queries.resources_of_customer(write.conn, salon_id, phone)
            await write.lock([resource_lock(salon_id, resource_id) for resource_id in resource_ids])
            locked = await queries.lock_bookings_of_customer(write.conn, salon_id, phone)
            if {resource_id for _, _, resource_id in locked if resource_id} <= set(resource_ids):
                return {booking_id: code for booking_id, code, _ in locked}
            await write.unlock()
        raise errors.conflict()


def new_code() -> str:
    """Return a booking code made at random."""
    number = secrets.randbelow(len(CODE_LETTERS) ** CODE_LENGTH)
    letters = (CODE_LETTERS[number // len(CODE_LETTERS) ** place % len(CODE_LETTERS)] for place in range(CODE_LENGTH))
    return "".join(letters)


def _checked(request: Any, locked: Locked | None) -> Locked:
    """Return the booking of a request. Raises: BOOKING_NOT_FOUND; ETAG_MISMATCH."""
    name = f"{request.salon_id}/{request.booking_code.upper()}"
    if locked is None:
        raise errors.not_found("booking", name)
    if request.etag and request.etag != locked.booking.etag:
        raise errors.etag_mismatch("booking", name)
    return locked


def taken(request: Any) -> errors.RpcError:
    """Return the error of a time that another booking of the resource has."""
    subject = f"resource/{request.resource_id}" if request.resource_id else f"booking/{request.booking_code}"
    message = f"{request.resource_id or 'the resource'} is taken at that time"
    return errors.failed_precondition("SLOT_UNAVAILABLE", subject, message)


def _times(request: pb.RescheduleBookingRequest, booking: pb.Booking) -> tuple[datetime, datetime]:
    """Return from when to when a booking shall be: as long as it was unless the request says otherwise."""
    was_start, was_end = period(booking)
    start, end = moment(request, "start_time") or was_start, moment(request, "end_time")
    length = end - start if end else was_end - was_start
    if not length:
        raise _no_time()
    if length > LAST_MOMENT - start:
        raise errors.invalid_fields([("start_time", "the booking would end after the year 9998")])
    return start, start + length


def _no_time() -> errors.RpcError:
    return errors.invalid_fields([("end_time", "end_time must be at least a microsecond after start_time")])
