"""Bookings of services, and of one of several resources."""

import grpc

from parlor.booking.v1 import booking_pb2 as pb
from tests.keeping import ALWAYS, at, book, clock, cut, move, opened, read, refused, reschedule, stack, time_off, update
from tests.stack import SALON, Fields, Stack, failure
from tests.test_resources import resource
from tests.test_services import service

__all__ = ["clock", "stack"]


async def test_what_a_booking_is_follows_from_its_service_as_it_was(stack: Stack) -> None:
    await opened(stack, {"buffer_before": 600, "buffer_after": 900})
    await cut(stack)
    booking = await book(stack, 12, resource_id="anna", service_id="cut", end_time=None)
    assert (booking.end_time, booking.service_id, booking.service_name) == (at(12.75), "cut", "Haircut")
    assert (booking.price_micros, booking.currency_code) == (30_000_000, "EUR")
    assert (booking.buffer_before.seconds, booking.buffer_after.seconds) == (300, 600)
    await cut(stack, name="Cut & go", price_micros=40_000_000, buffer_after=None)
    assert await read(stack, booking) == booking
    assert (await update(stack, booking, service_id="cut", notes="x")).price_micros == 30_000_000
    new = await book(stack, 14, 1, resource_id="anna", service_id="cut", service_name="Bob")
    assert (new.end_time, new.service_name, new.price_micros) == (at(15), "Bob", 40_000_000)
    assert (new.buffer_before.seconds, new.buffer_after.seconds) == (300, 900)
    await stack.booking.DeleteService(pb.DeleteServiceRequest(salon_id=SALON, service_id="cut"))
    assert (await read(stack, new)) == new
    assert (await reschedule(stack, new, start_time=at(16))).service_id == "cut"


async def test_a_service_is_done_by_its_resources_while_it_is_active(stack: Stack) -> None:
    await opened(stack)
    await cut(stack, resource_ids=["ben"])
    await service(stack, "wash")
    named: Fields = {"service_id": "cut", "end_time": None}
    refused(await failure(book(stack, 12, resource_id="anna", **named)), "RESOURCE_NOT_OF_SERVICE")
    refused(await failure(book(stack, 12, any_of_resource_ids=["anna"], **named)), "RESOURCE_NOT_OF_SERVICE")
    booking = await book(stack, 12, resource_id="ben", **named)
    refused(await failure(reschedule(stack, booking, resource_id="anna")), "RESOURCE_NOT_OF_SERVICE")
    washed = await book(stack, 14, resource_id="anna", service_id="wash", end_time=None)
    refused(await failure(update(stack, washed, service_id="cut")), "RESOURCE_NOT_OF_SERVICE")
    await reschedule(stack, booking, resource_id="anna", ignore_rules=True)
    await cut(stack, active=False)
    for fields in ({"resource_id": "ben"}, {"any_of_resource_ids": ["ben"]}, {}):
        refused(await failure(book(stack, 16, **named, **fields)), "SERVICE_NOT_ACTIVE")
    refused(await failure(update(stack, washed, service_id="cut")), "SERVICE_NOT_ACTIVE")
    assert (await book(stack, 16, resource_id="ben", ignore_rules=True, **named)).end_time == at(16.75)
    error = await failure(book(stack, 16, resource_id="ben", service_id="cat"))
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "SERVICE_NOT_FOUND")


async def test_a_service_books_one_of_its_resources_that_is_free(stack: Stack) -> None:
    await opened(stack, resources=["anna", "ben", "cleo"])
    await cut(stack, resource_ids=["ben", "cleo"])
    await service(stack, "wash")
    named: Fields = {"service_id": "cut", "end_time": None}
    booked = [(await book(stack, hour, **named)).resource_id for hour in (12, 12, 14, 14)]
    assert booked == ["ben", "cleo", "ben", "cleo"]
    refused(await failure(book(stack, 12, **named)), "SLOT_UNAVAILABLE")
    assert (await book(stack, 12, service_id="wash", end_time=None)).resource_id == "anna"
    await resource(stack, "cleo", active=False)
    await time_off(stack, 16, 17, "ben")
    refused(await failure(book(stack, 16, **named)), "RESOURCE_OFF")
    assert (await book(stack, 16, service_id="wash", end_time=None)).resource_id == "anna"


async def test_the_resource_with_the_least_booked_time_of_the_local_day_is_booked_then_the_first(stack: Stack) -> None:
    await opened(stack, time_zone="Pacific/Auckland", opening_hours=ALWAYS, resources=["anna", "ben", "cleo"])
    every: Fields = {"any_of_resource_ids": ["cleo", "anna", "ben", "anna"]}
    # Midnight in Auckland is 11 h UTC.
    await book(stack, 10.5, 0.5, resource_id="anna", ignore_rules=True)
    await book(stack, 35, 3, resource_id="anna")
    assert (await book(stack, 20, **every)).resource_id == "anna"
    assert (await book(stack, 22, **every)).resource_id == "ben"
    assert (await book(stack, 24, 0.5, **every)).resource_id == "cleo"
    assert (await book(stack, 26, 0.25, **every)).resource_id == "cleo"
    assert (await book(stack, 28, **every)).resource_id == "cleo"
    assert (await book(stack, 30, **every)).resource_id == "anna"
    assert (await book(stack, 40, **every)).resource_id == "ben"
    await move(stack, await book(stack, 32, 5, resource_id="ben", ignore_rules=True), "CANCELLED")


async def test_a_resource_that_keeps_the_rules_is_booked_before_the_reason_of_another_is_named(stack: Stack) -> None:
    await opened(stack, resources=["anna", "ben", "cleo"])
    await resource(stack, "anna", active=False)
    every: Fields = {"any_of_resource_ids": ["anna", "ben"]}
    assert (await book(stack, 12, **every)).resource_id == "ben"
    refused(await failure(book(stack, 12, **every)), "SLOT_UNAVAILABLE")
    refused(await failure(book(stack, 20, **every)), "OUTSIDE_HOURS")
    refused(await failure(book(stack, 12, any_of_resource_ids=["anna"])), "RESOURCE_NOT_ACTIVE")
    error = await failure(book(stack, 12, any_of_resource_ids=["ben", "chiar-1"]))
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "RESOURCE_NOT_FOUND")
    error = await failure(book(stack, 12, any_of_resource_ids=["ben"], resource_id="ben"))
    assert (error.reason, error.code) == ("INVALID_FIELD", grpc.StatusCode.INVALID_ARGUMENT)
