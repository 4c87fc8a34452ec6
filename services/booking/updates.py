"""The fields of a booking that UpdateBooking changes."""

from collections.abc import Iterable, Set

from libs.server import errors
from parlor.booking.v1.booking_pb2 import Booking, UpdateBookingRequest
from services.booking.slot_queries import Slot

OF_CUSTOMER = {"customer_phone", "customer_user_id"}
OF_TIME = {"service_id", "end_time"}  # only of a booking that blocks its time
RULED = OF_CUSTOMER | OF_TIME
_CUSTOMER = OF_CUSTOMER | {"customer_name"}
_FIELDS = ("customer_phone", "customer_user_id", "customer_name", "service_id", "service_name", "end_time", "notes")


def paths(request: UpdateBookingRequest) -> set[str]:
    """Return the fields to change: those of the mask, all for `*`, those that are set without a mask.

    An end_time can't be removed: it is changed if it is given.

    Raises: INVALID_FIELD for a field that there is not, or that UpdateBooking does not change.
    """
    given = {field.name for field, _ in request.booking.ListFields()}
    wanted: Iterable[str] = request.update_mask.paths or given & set(_FIELDS)
    if "*" in wanted:
        wanted = _FIELDS
    if not set(wanted) <= set(_FIELDS):  # the error does not repeat them: a caller may have sent a value for a name
        raise errors.invalid_fields([("update_mask", f"may only contain {', '.join(_FIELDS)}, or * for all")])
    return set(wanted) - ({"end_time"} - given)


def merge(before: Booking, request: UpdateBookingRequest, changed: Set[str], customer_phone: str) -> Booking:
    """Return a booking with the changed fields, except those that follow from a service."""
    after = Booking()
    after.CopyFrom(before)
    for name in changed - {"end_time"}:
        setattr(after, name, getattr(request.booking, name))
    if "customer_phone" in changed:
        after.customer_phone = customer_phone
    if "end_time" in changed:
        after.end_time.CopyFrom(request.booking.end_time)
    if changed & _CUSTOMER and not (after.customer_phone or after.customer_user_id or after.customer_name):
        raise errors.invalid_fields([("booking", "needs a customer_phone, a customer_user_id or a customer_name")])
    return after


def differing(before: Booking, after: Booking, changed: Set[str]) -> Set[str]:
    """Return those of the changed fields whose values differ: the same service is not a new one."""
    return {name for name in changed if getattr(before, name) != getattr(after, name)}


def set_service(after: Booking, slot: Slot, changed: Set[str], *, ignore_rules: bool) -> None:
    """Set what follows from a booking's new service: name, price, buffers, and its end unless that is changed, too."""
    service = slot.service
    if service is None:
        after.ClearField("price_micros")
        after.ClearField("currency_code")
    else:
        if "service_name" not in changed or not after.service_name:
            after.service_name = service.name
        if "end_time" not in changed:
            micros = after.start_time.nanos
            after.end_time.seconds, after.end_time.nanos = after.start_time.seconds + service.duration, micros
        after.price_micros, after.currency_code = service.price_micros, service.currency_code
    before, behind = (0, 0) if ignore_rules else slot.buffers
    after.buffer_before.seconds, after.buffer_after.seconds = before, behind
