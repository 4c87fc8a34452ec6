"""Decides whether a booking may have a time, and which of several resources it is given."""

from collections.abc import Iterator, Sequence
from datetime import datetime

from libs.server import errors, period
from parlor.booking.v1.booking_pb2 import Booking
from services.booking.rules import Refusal, Rules, cancel_refusal, refusal
from services.booking.slot_queries import Slot


def check_found(slot: Slot | None, salon_id: str, service_id: str, resource_ids: Sequence[str]) -> Slot:
    """Return a slot. Raises: SALON_NOT_FOUND; SERVICE_NOT_FOUND; RESOURCE_NOT_FOUND."""
    if slot is None:
        raise errors.not_found("salon", salon_id)
    if service_id and slot.service is None:
        raise errors.not_found("service", f"{salon_id}/{service_id}")
    found = {candidate.resource_id for candidate in slot.candidates}
    for resource_id in resource_ids:
        if resource_id not in found:
            raise errors.not_found("resource", f"{salon_id}/{resource_id}")
    return slot


def check_rules(
    slot: Slot, booking: Booking, now: datetime | None, times: tuple[datetime, datetime] | None = None
) -> None:
    """Return if a booking keeps the rules: at its own times, or at `times`. `now` as for `rules.refusal`.

    Raises: FAILED_PRECONDITION with the reason.
    """
    candidate = next((each for each in slot.candidates if each.resource_id == booking.resource_id), None)
    refused = refusal(*(times or period(booking)), now, slot.rules, slot.place(candidate))
    if refused := refused or _service_refusal(slot, booking.resource_id):
        raise refused_error(refused, booking.resource_id)
    check_customer(slot)


def check_cancel(booking: Booking, now: datetime, rules: Rules) -> None:
    """Return if a booking may be cancelled by the rules; a hold always may. Raises: TOO_LATE_TO_CANCEL."""
    refused = cancel_refusal(period(booking)[0], now, rules)
    if refused is not None and not booking.HasField("hold_expire_time"):
        raise refused_error(refused, booking.resource_id)


def choose(slot: Slot, start: datetime, end: datetime, now: datetime, *, ignore_rules: bool) -> Iterator[str | None]:
    """Yield None where other work may run, and finally the resource to book.

    It is the free one with the least booked time on that day, the first by id among several.
    Raises: as `check_rules`, if no resource keeps the rules; SLOT_UNAVAILABLE if none that keeps them is free.
    """
    refusals = []
    for candidate in sorted(
        slot.candidates, key=lambda each: (not each.is_free, each.booked_seconds, each.resource_id)
    ):
        refused = None
        if not ignore_rules:
            refused = refusal(start, end, now, slot.rules, slot.place(candidate))
            refused = refused or _service_refusal(slot, candidate.resource_id)
        if refused is None:
            if not ignore_rules:
                check_customer(slot)
            if not candidate.is_free:
                message = "no resource is free at that time: choose another time"
                raise errors.failed_precondition("SLOT_UNAVAILABLE", "resource", message)
            yield candidate.resource_id
            return
        refusals.append(refused)
        yield None
    # An inactive resource is no news if another one is active.
    refusals.sort(key=lambda refused: refused.reason == "RESOURCE_NOT_ACTIVE")
    raise refused_error(
        refusals[0] if refusals else Refusal("RESOURCE_NOT_ACTIVE", "there is no resource to book: ask the salon")
    )


def refused_error(refused: Refusal, resource_id: str = "") -> errors.RpcError:
    """Return the error of a refusal."""
    subject = f"resource/{resource_id}" if resource_id else "booking"
    return errors.failed_precondition(refused.reason, subject, refused.message, **refused.metadata)


def _service_refusal(slot: Slot, resource_id: str) -> Refusal | None:
    service = slot.service
    if service is None:
        return None
    if not service.is_active:
        return Refusal("SERVICE_NOT_ACTIVE", "the service is not active: choose another one")
    if resource_id and service.resource_ids and resource_id not in service.resource_ids:
        return Refusal("RESOURCE_NOT_OF_SERVICE", f"{resource_id} does not do this service: choose another resource")
    return None


def check_customer(slot: Slot) -> None:
    """Raise CUSTOMER_ALREADY_BOOKED if the customer has a booking, and the salon allows one at a time."""
    if code := slot.already_booked:
        message = f"a customer may have one booking at a time: move or cancel {code}"
        raise errors.failed_precondition("CUSTOMER_ALREADY_BOOKED", f"booking/{code}", message, booking_code=code)
