"""Where a booking may go from where it stands."""

from libs.rpc import errors
from parlor.booking.v1.booking_pb2 import BookingStatus

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


def check(booking_code: str, before: BookingStatus.ValueType, after: BookingStatus.ValueType) -> None:
    """Raise INVALID_TRANSITION unless a booking may move from `before` to `after`."""
    if after not in _NEXT.get(before, ()):
        names = BookingStatus.Name(before), BookingStatus.Name(after)
        message = f"a booking can't move from {names[0]} to {names[1]}"
        raise errors.failed_precondition(
            "INVALID_TRANSITION", f"booking/{booking_code}", message, **{"from": names[0], "to": names[1]}
        )
