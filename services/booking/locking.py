"""Locks the bookings that a request changes, after the resources whose time they block."""

from libs.server import Write, errors
from services.booking import booking_write_queries, erasure_queries
from services.booking.booking_write_queries import LockedBooking, resource_lock
from services.booking.erasure_queries import BookingOfCustomer, Customer

# A booking may change its resource while a writer waits for the resource's lock; the writer then tries again.
ATTEMPTS = 5


async def lock_with_resources(
    write: Write, salon_id: str, booking_code: str, etag: str, resource_id: str | None, *other_ids: str
) -> LockedBooking:
    """Lock a booking, after its resource and others; return it.

    `resource_id` is the booking's resource as last read, None without a booking. Raises: as `check_booking`; CONFLICT
    if the booking keeps changing its resource.
    """
    for _ in range(ATTEMPTS):
        locks = [resource_lock(salon_id, name) for name in {resource_id, *other_ids} if name]
        [found] = await write.lock(locks, booking_write_queries.lock_booking(salon_id, booking_code))
        locked = check_booking(found, salon_id, booking_code, etag)
        if locked.booking.resource_id == resource_id:
            return locked
        [resource_id] = await write.unlock(booking_write_queries.resource_of(salon_id, booking_code))
    raise errors.conflict()


async def lock_bookings_of_customer(write: Write, customer: Customer) -> list[BookingOfCustomer]:
    """Lock a customer's bookings, after their resources; return them.

    Raises: CONFLICT if the bookings keep changing their resources.
    """
    for _ in range(ATTEMPTS):
        resource_ids = await erasure_queries.resources_of_customer(write.conn, customer)
        await write.lock([resource_lock(customer.salon_id, resource_id) for resource_id in resource_ids])
        locked = await erasure_queries.lock_bookings_of_customer(write.conn, customer)
        if {booking.resource_id for booking in locked if booking.resource_id} <= set(resource_ids):
            return locked
        await write.unlock()
    raise errors.conflict()


def check_booking(locked: LockedBooking | None, salon_id: str, booking_code: str, etag: str) -> LockedBooking:
    """Return a locked booking. Raises: BOOKING_NOT_FOUND; ETAG_MISMATCH."""
    name = f"{salon_id}/{booking_code}"
    if locked is None:
        raise errors.not_found("booking", name)
    if etag and etag != locked.booking.etag:
        raise errors.etag_mismatch("booking", name)
    return locked
