"""Which changes of a booking are allowed."""

from datetime import datetime, timedelta

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
    BookingStatus.BOOKING_STATUS_COMPLETED: (
        BookingStatus.BOOKING_STATUS_NO_SHOW,
        BookingStatus.BOOKING_STATUS_CONFIRMED,
    ),
    BookingStatus.BOOKING_STATUS_NO_SHOW: (
        BookingStatus.BOOKING_STATUS_COMPLETED,
        BookingStatus.BOOKING_STATUS_CONFIRMED,
    ),
}
_BLOCKING = (BookingStatus.BOOKING_STATUS_PENDING, BookingStatus.BOOKING_STATUS_CONFIRMED)
_AFTER_START = (BookingStatus.BOOKING_STATUS_COMPLETED, BookingStatus.BOOKING_STATUS_NO_SHOW)
_YEAR_9999 = datetime.fromisoformat("9999-01-01T00:00:00Z")


def check_status(booking: Booking, after: BookingStatus.ValueType, now: datetime, *, hold_expired: bool) -> None:
    """Return if a booking may move to a status.

    Raises: INVALID_TRANSITION; HOLD_EXPIRED for confirming an expired hold.
    """
    if after == BookingStatus.BOOKING_STATUS_CONFIRMED:
        check_hold(booking, hold_expired=hold_expired)
    allowed = _ALLOWED.get(booking.status, ())
    if after not in allowed:
        possible = " or ".join(map(_word, allowed))
        raise _invalid(booking, after, f"it can become {possible}" if allowed else "that is final")
    if after in _AFTER_START and period(booking)[0] > now:
        raise _invalid(booking, after, f"it can't become {_word(after)} before its start_time")


def check_extends(booking: Booking, *, hold_expired: bool) -> None:
    """Return if a booking is a hold that can be extended. Raises: HOLD_EXPIRED; NOT_A_HOLD."""
    check_hold(booking, hold_expired=hold_expired)
    if booking.status != BookingStatus.BOOKING_STATUS_PENDING or not booking.HasField("hold_expire_time"):
        message = "the booking is not a hold: only a hold is extended"
        raise errors.failed_precondition("NOT_A_HOLD", f"booking/{booking.booking_code}", message)


def check_blocking(booking: Booking, *, hold_expired: bool) -> None:
    """Return if a booking blocks its time, and so may change it. Raises: HOLD_EXPIRED; INVALID_TRANSITION."""
    check_hold(booking, hold_expired=hold_expired)
    if booking.status not in _BLOCKING:
        raise _invalid(booking, booking.status, "its time can't change any more")


def check_hold(booking: Booking, *, hold_expired: bool) -> None:
    """Raise HOLD_EXPIRED if a booking is, or was, an expired hold."""
    if hold_expired or booking.status == BookingStatus.BOOKING_STATUS_EXPIRED:
        message = "the hold has expired: make a new booking"
        raise errors.failed_precondition("HOLD_EXPIRED", f"booking/{booking.booking_code}", message)


def new_times(request: RescheduleBookingRequest, booking: Booking) -> tuple[datetime, datetime]:
    """Return the start and end of a booking that is moved: without a start_time as before, without an end_time as long.

    Raises: INVALID_FIELD for an empty time, or one that ends after the year 9998.
    """
    old_start, old_end = period(booking)
    start, end = moment(request, "start_time") or old_start, moment(request, "end_time")
    length = end - start if end else old_end - old_start
    if length <= timedelta():
        raise empty_time()
    if length > _YEAR_9999 - start:
        raise errors.invalid_fields([("start_time", "the booking would end after the year 9998")])
    return start, start + length


def length(booking: Booking) -> timedelta:
    """Return how long a booking takes, negative if it ends before its start."""
    start, end = moment(booking, "start_time"), moment(booking, "end_time")
    return end - start if start and end else timedelta()


def empty_time(field: str = "end_time") -> errors.RpcError:
    """Return the error of an end that is not after the start, to the microsecond."""
    return errors.invalid_fields([(field, "end_time must be at least a microsecond after start_time")])


def _invalid(booking: Booking, after: BookingStatus.ValueType, why: str) -> errors.RpcError:
    names = {"from": BookingStatus.Name(booking.status), "to": BookingStatus.Name(after)}
    message = f"the booking is {_word(booking.status)}: {why}"
    return errors.failed_precondition("INVALID_TRANSITION", f"booking/{booking.booking_code}", message, **names)


def _word(status: BookingStatus.ValueType) -> str:
    return BookingStatus.Name(status).removeprefix("BOOKING_STATUS_")
