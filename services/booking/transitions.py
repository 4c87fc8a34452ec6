"""Where a booking may go from where it stands."""

from libs.server import errors
from parlor.booking.v1.booking_pb2 import Booking, BookingStatus

_NEXT: dict[BookingStatus.ValueType, tuple[BookingStatus.ValueType, ...]] = {
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


def check_status(booking: Booking, after: BookingStatus.ValueType, *, hold_expired: bool) -> None:
    """Raise INVALID_TRANSITION unless a booking may move to a status; HOLD_EXPIRED for confirming too late."""
    if after not in _NEXT.get(booking.status, ()):
        raise _invalid(booking, after)
    if hold_expired and after == BookingStatus.BOOKING_STATUS_CONFIRMED:
        raise _expired(booking)


def check_time(booking: Booking, *, hold_expired: bool) -> None:
    """Raise INVALID_TRANSITION if a booking is final, and so can't move to another time; HOLD_EXPIRED if too late."""
    if booking.status not in _NEXT:
        raise _invalid(booking, booking.status)
    if hold_expired:
        raise _expired(booking)


def _invalid(booking: Booking, after: BookingStatus.ValueType) -> errors.RpcError:
    names = BookingStatus.Name(booking.status), BookingStatus.Name(after)
    message = f"a booking can't move from {names[0]} to {names[1]}"
    subject = f"booking/{booking.booking_code}"
    return errors.failed_precondition("INVALID_TRANSITION", subject, message, **{"from": names[0], "to": names[1]})


def _expired(booking: Booking) -> errors.RpcError:
    return errors.failed_precondition("HOLD_EXPIRED", f"booking/{booking.booking_code}", "the hold has expired")
