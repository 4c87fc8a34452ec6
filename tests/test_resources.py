"""Resources and their working hours, and the special hours of salons and resources."""

from typing import Any

import grpc
import pytest

from parlor.booking.v1 import booking_pb2 as pb
from tests.stack import SALON, Fields, Stack, booking_request, failure, fresh, salon, walk, warm

LIST = pb.ListResourcesRequest(salon_id=SALON)
NINE_TO_SIX: Fields = {"open_time": {"hours": 9}, "close_time": {"hours": 18}}


def christmas(year: int = 2026, month: int = 12, day: int = 25, **times: Any) -> pb.SpecialHours:
    fields: dict[str, Any] = {"date": {"year": year, "month": month, "day": day}, **times}
    return pb.SpecialHours(**fields)


async def resource(stack: Stack, resource_id: str = "anna", **fields: Any) -> pb.Resource:
    values = {"salon_id": SALON, "name": "Anna", **fields}
    return await stack.booking.UpsertResource(pb.UpsertResourceRequest(resource_id=resource_id, **values))


async def test_a_resource_is_read_back_as_it_was_written(stack: Stack) -> None:
    await salon(stack)
    week = [pb.OpeningHours(**{"day_of_week": 7, **NINE_TO_SIX})]
    dates = [
        christmas(),
        christmas(day=24, **NINE_TO_SIX),
        christmas(day=24, open_time={"hours": 20}, close_time={"hours": 24}),
    ]
    written = await resource(stack, name="Änne 💇", active=False, working_hours=week, special_hours=dates)
    assert (written.salon_id, written.resource_id, written.name, written.active) == (SALON, "anna", "Änne 💇", False)
    assert (list(written.working_hours), list(written.special_hours)) == (week, dates)
    assert (written.etag, written.create_time) == ("1", written.update_time)
    assert list((await stack.booking.ListResources(LIST)).resources) == [written]


async def test_an_upsert_replaces_all_fields_of_a_resource(stack: Stack) -> None:
    await salon(stack)
    first = await resource(stack, active=False, special_hours=[christmas()])
    second = await resource(stack, name="Anne", etag=first.etag)
    assert (second.name, second.active, list(second.special_hours), second.etag) == ("Anne", True, [], "2")
    assert second.create_time == first.create_time
    error = await failure(resource(stack, etag=first.etag))
    assert (error.code, error.reason) == (grpc.StatusCode.ABORTED, "ETAG_MISMATCH")
    assert (await failure(resource(stack, "ben", etag="1"))).reason == "ETAG_MISMATCH"


async def test_a_resource_needs_its_salon(stack: Stack) -> None:
    for call in (resource(stack), stack.booking.ListResources(LIST)):
        error = await failure(call)
        assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "SALON_NOT_FOUND")
    error = await failure(stack.booking.CreateBooking(booking_request(resource_id="anna")))
    assert error.reason == "SALON_NOT_FOUND"


async def test_pages_have_each_active_resource_or_each_resource_once(stack: Stack) -> None:
    await salon(stack)
    await salon(stack, "salon-2")
    await resource(stack, salon_id="salon-2")
    for number in reversed(range(5)):
        await resource(stack, f"chair-{number}", active=number != 2)
    for active_only, numbers in ((False, [0, 1, 2, 3, 4]), (True, [0, 1, 3, 4])):
        request = pb.ListResourcesRequest(salon_id=SALON, active_only=active_only)
        for page_size in (1, 2, 5, 0):
            listed = await walk(stack.booking.ListResources, request, page_size)
            assert [one.resource_id for one in listed] == [f"chair-{number}" for number in numbers]
    token = (await stack.booking.ListResources(pb.ListResourcesRequest(salon_id=SALON, page_size=1))).next_page_token
    other = pb.ListResourcesRequest(salon_id=SALON, active_only=True, page_token=token)
    assert (await failure(stack.booking.ListResources(other))).fields == ["page_token"]


async def test_a_write_to_a_resource_is_in_the_next_list(stack: Stack) -> None:
    await salon(stack)
    await warm(stack.booking.ListResources, LIST)
    made = await resource(stack)
    assert list((await fresh(stack.booking.ListResources, LIST)).resources) == [made]
    await warm(stack.booking.ListResources, LIST)
    await stack.booking.CreateBooking(booking_request(resource_id="ben"))
    listed = await fresh(stack.booking.ListResources, LIST)
    assert [one.resource_id for one in listed.resources] == ["anna", "ben"]


async def test_a_booking_does_not_change_its_resource(stack: Stack) -> None:
    await salon(stack)
    written = await resource(stack, active=False)
    await stack.booking.CreateBooking(booking_request(resource_id="anna"))
    assert list((await stack.booking.ListResources(LIST)).resources) == [written]


async def test_a_salon_has_special_hours_and_a_language(stack: Stack) -> None:
    dates = [christmas(), christmas(day=24, **NINE_TO_SIX)]
    written = await salon(stack, special_hours=dates, language_code="de")
    assert (list(written.special_hours), written.language_code) == (dates, "de")
    assert await stack.booking.GetSalon(pb.GetSalonRequest(salon_id=SALON)) == written
    assert (await failure(salon(stack, language_code="german"))).fields == ["salon.language_code"]


@pytest.mark.parametrize("of", ["salon", "resource"])
async def test_invalid_special_hours_are_refused(stack: Stack, of: str) -> None:
    await salon(stack)
    wrong: list[tuple[list[pb.SpecialHours], str]] = [
        ([christmas(), christmas(month=2, day=31)], "special_hours[1].date"),
        ([christmas(year=2025, month=2, day=29)], "special_hours[0].date"),
        ([christmas(year=0)], "special_hours[0].date"),
        ([christmas(), christmas(**NINE_TO_SIX)], "special_hours[1].open_time"),
        ([christmas(**NINE_TO_SIX), christmas()], "special_hours[0].open_time"),
        ([christmas(open_time={"hours": 9})], "special_hours[0].close_time"),
        ([christmas(open_time={"hours": 9}, close_time={"hours": 9})], "special_hours[0].close_time"),
    ]
    for dates, field in wrong:
        write = salon(stack, special_hours=dates) if of == "salon" else resource(stack, special_hours=dates)
        error = await failure(write)
        assert error.reason == "INVALID_FIELD"
        assert error.fields == [f"salon.{field}" if of == "salon" else field]
