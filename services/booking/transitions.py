"""Which changes of a booking are allowed."""

from datetime import datetime

from libs.server import errors, moment, period
from parlor.booking.v1.booking_pb2 import Booking, BookingStatus, RescheduleBookingRequest

# A status that is missing here is final.
_ALLOWED: dict[BookingStatus.ValueType, tuple[BookingStatus.ValueType, ...]] = {
    BookingStatus.BOOKING_STATUS_PENDING: (
        BookingStatus.BOOKING_STATUS_CONFIRMED,
        BookingStatus.BOOKING_STATUS_CANCELLED,
    ),
    BookingStatus.BOOKING_STATUS_CONFIRMED: (
        BookingStatus.BOOKING_STATUS_COMPLETED,
        BookingStatus.BOOKING_STATUS_CANCELLED,
        BookingStatus.BOOKING_STATUS_NO_SHOW,
    ),
}
_YEAR_9999 = datetime.fromisoformat("9999-01-01T00:00:00Z")


def check_status(booking: Booking, after: BookingStatus.ValueType, *, hold_expired: bool) -> None:
    """Raise INVALID_TRANSITION unless a booking may move to a status; HOLD_EXPIRED for confirming an expired hold."""
    if after not in _ALLOWED.get(booking.status, ()):
        raise _invalid(booking, after)
    if hold_expired and after == BookingStatus.BOOKING_STATUS_CONFIRMED:
        raise _expired(booking)


def check_time(booking: Booking, *, hold_expired: bool) -> None:
    """Raise INVALID_TRANSITION for rescheduling a booking whose status is final; HOLD_EXPIRED for an expired hold."""
    if booking.status not in _ALLOWED:
        raise _invalid(booking, booking.status)
    if hold_expired:
        raise _expired(booking)


def new_times(request: RescheduleBookingRequest, booking: Booking) -> tuple[datetime, datetime]:
    """Return the start and end of a booking that is moved: without a start_time as before, without an end_time as long.

    Raises: INVALID_FIELD for an empty time, or one that ends after the year 9998.
    """
    old_start, old_end = period(booking)
    start, end = moment(request, "start_time") or old_start, moment(request, "end_time")
    length = end - start if end else old_end - old_start
    if not length:
        raise empty_time()
    if length > _YEAR_9999 - start:
        raise errors.invalid_fields([("start_time", "the booking would end after the year 9998")])
    return start, start + length


def empty_time() -> errors.RpcError:
    """Return the error of times that are apart by less than the database can tell."""
    return errors.invalid_fields([("end_time", "end_time must be at least a microsecond after start_time")])


def _invalid(booking: Booking, after: BookingStatus.ValueType) -> errors.RpcError:
    names = BookingStatus.Name(booking.status), BookingStatus.Name(after)
    message = f"a booking can't move from {names[0]} to {names[1]}"
    subject = f"booking/{booking.booking_code}"
    return errors.failed_precondition("INVALID_TRANSITION", subject, message, **{"from": names[0], "to": names[1]})


def _expired(booking: Booking) -> errors.RpcError:
    return errors.failed_precondition("HOLD_EXPIRED", f"booking/{booking.booking_code}", "the hold has expired")
