"""Services: what a salon does for customers."""

from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from parlor.booking.v1 import booking_pb2 as pb
from tests.stack import SALON, Fields, Stack, cached, failure, fresh, rows, salon, walk, warm
from tests.test_resources import resource

GET = pb.GetServiceRequest(salon_id=SALON, service_id="cut")
LIST = pb.ListServicesRequest(salon_id=SALON)


async def service(stack: Stack, service_id: str = "cut", **fields: Any) -> pb.Service:
    values: Fields = {"salon_id": SALON, "name": "Haircut", "duration": Duration(seconds=1800), **fields}
    return await stack.booking.UpsertService(pb.UpsertServiceRequest(service_id=service_id, **values))


async def delete(stack: Stack, service_id: str = "cut", **fields: Any) -> None:
    request = pb.DeleteServiceRequest(**{"salon_id": SALON, "service_id": service_id, **fields})
    assert (await stack.booking.DeleteService(request)).ByteSize() == 0


async def test_a_service_is_read_back_as_it_was_written(stack: Stack) -> None:
    await salon(stack)
    await resource(stack, "anna")
    await resource(stack, "ben")
    price: Fields = {"price_micros": 29_900_000, "currency_code": "EUR"}
    buffers: Fields = {"buffer_before": Duration(), "buffer_after": Duration(seconds=300)}
    written = await service(
        stack, name="Schnitt ✂", active=False, resource_ids=["ben", "anna", "ben"], **price, **buffers
    )
    assert (written.salon_id, written.service_id, written.name, written.active) == (SALON, "cut", "Schnitt ✂", False)
    assert (written.price_micros, written.currency_code) == (29_900_000, "EUR")
    assert list(written.resource_ids) == ["ben", "anna"]
    assert (written.duration.seconds, written.buffer_after.seconds) == (1800, 300)
    assert (written.HasField("buffer_before"), written.buffer_before.seconds) == (True, 0)
    assert (written.etag, written.create_time) == ("1", written.update_time)
    assert await stack.booking.GetService(GET) == written
    assert list((await stack.booking.ListServices(LIST)).services) == [written]
    plain = await service(stack, "plain")
    assert (plain.active, plain.HasField("buffer_before"), plain.HasField("buffer_after")) == (True, False, False)


async def test_an_upsert_replaces_all_fields_of_a_service(stack: Stack) -> None:
    await salon(stack)
    first = await service(stack, active=False, buffer_after=Duration(seconds=60), currency_code="EUR")
    second = await service(stack, name="Cut", etag=first.etag)
    assert (second.name, second.active, second.currency_code, second.etag) == ("Cut", True, "", "2")
    assert (second.HasField("buffer_after"), second.create_time) == (False, first.create_time)
    error = await failure(service(stack, etag=first.etag))
    assert (error.code, error.reason) == (grpc.StatusCode.ABORTED, "ETAG_MISMATCH")
    assert (await failure(service(stack, "colour", etag="1"))).reason == "ETAG_MISMATCH"


async def test_a_service_needs_its_salon(stack: Stack) -> None:
    calls: list[Any] = [service(stack), service(stack, resource_ids=["anna"]), stack.booking.ListServices(LIST)]
    for call in calls:
        error = await failure(call)
        assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "SALON_NOT_FOUND")
    calls = [stack.booking.GetService(GET), delete(stack)]
    for call in calls:
        error = await failure(call)
        assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "SERVICE_NOT_FOUND")


async def test_unknown_resources_of_a_service_are_refused(stack: Stack) -> None:
    await salon(stack)
    await salon(stack, "salon-2")
    await resource(stack, "chair-1")
    await resource(stack, "other", salon_id="salon-2")
    for resource_ids in (["chiar-1"], ["chair-1", "chiar-1"], ["CHAIR-1"], ["other"]):
        error = await failure(service(stack, resource_ids=resource_ids))
        assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "RESOURCE_NOT_FOUND")
        assert resource_ids[-1] in error.message
    assert rows(stack.database_url, "SELECT FROM services") == []
    assert list((await service(stack, resource_ids=["chair-1"])).resource_ids) == ["chair-1"]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"duration": Duration(seconds=60, nanos=1)}, "duration"),
        ({"duration": Duration(seconds=59)}, "duration"),
        ({"duration": Duration(seconds=86_401)}, "duration"),
        ({"duration": None}, "duration"),
        ({"buffer_before": Duration(nanos=500_000_000)}, "buffer_before"),
        ({"buffer_before": Duration(seconds=-60)}, "buffer_before"),
        ({"buffer_after": Duration(seconds=1, nanos=1)}, "buffer_after"),
        ({"buffer_after": Duration(seconds=86_401)}, "buffer_after"),
        ({"price_micros": 1}, "currency_code"),
        ({"price_micros": -1, "currency_code": "EUR"}, "price_micros"),
        ({"currency_code": "euro"}, "currency_code"),
        ({"resource_ids": ["anna", "a b"]}, "resource_ids[1]"),
        ({"name": ""}, "name"),
    ],
)
async def test_invalid_services_are_refused(stack: Stack, fields: Fields, named: str) -> None:
    await salon(stack)
    error = await failure(service(stack, **fields))
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert error.fields == [named]


async def test_pages_hold_each_service_of_the_salon_once_active_or_all(stack: Stack) -> None:
    await salon(stack)
    await salon(stack, "salon-2")
    await service(stack, salon_id="salon-2")
    for number in reversed(range(5)):
        await service(stack, f"cut-{number}", active=number != 2)
    for active_only, numbers in ((False, [0, 1, 2, 3, 4]), (True, [0, 1, 3, 4])):
        request = pb.ListServicesRequest(salon_id=SALON, active_only=active_only)
        for page_size in (1, 2, 5, 0):
            listed = await walk(stack.booking.ListServices, request, page_size)
            assert [one.service_id for one in listed] == [f"cut-{number}" for number in numbers]
    token = (await stack.booking.ListServices(pb.ListServicesRequest(salon_id=SALON, page_size=1))).next_page_token
    other = pb.ListServicesRequest(salon_id=SALON, active_only=True, page_token=token)
    assert (await failure(stack.booking.ListServices(other))).fields == ["page_token"]


async def test_a_write_to_a_service_is_in_the_next_read(stack: Stack) -> None:
    await salon(stack)
    assert (await failure(stack.booking.GetService(GET))).reason == "SERVICE_NOT_FOUND"
    await warm(stack.booking.ListServices, LIST)
    made = await service(stack)
    assert await fresh(stack.booking.GetService, GET) == made
    assert list((await fresh(stack.booking.ListServices, LIST)).services) == [made]
    await warm(stack.booking.GetService, GET)
    await warm(stack.booking.ListServices, LIST)
    await delete(stack)
    assert (await failure(stack.booking.GetService(GET))).reason == "SERVICE_NOT_FOUND"
    assert list((await fresh(stack.booking.ListServices, LIST)).services) == []


async def test_writes_to_a_salon_and_to_its_services_leave_each_others_entries_alone(stack: Stack) -> None:
    await salon(stack)
    await service(stack)
    get_salon = pb.GetSalonRequest(salon_id=SALON)
    await warm(stack.booking.GetSalon, get_salon)
    await warm(stack.booking.GetService, GET)
    await service(stack, "colour")
    await warm(stack.booking.GetService, GET)
    _, source = await cached(stack.booking.GetSalon(get_salon))
    assert source in ("hit", "near")
    await salon(stack, name="Other")
    _, source = await cached(stack.booking.GetService(GET))
    assert source in ("hit", "near")


async def test_a_service_is_deleted_once_and_by_its_etag(stack: Stack) -> None:
    await salon(stack)
    await service(stack)
    await service(stack, name="Cut")
    error = await failure(delete(stack, etag="1"))
    assert (error.code, error.reason) == (grpc.StatusCode.ABORTED, "ETAG_MISMATCH")
    await delete(stack, etag="2", request_id="delete cut")
    await delete(stack, etag="2", request_id="delete cut")
    assert (await failure(delete(stack))).reason == "SERVICE_NOT_FOUND"
    await service(stack)
    await delete(stack, etag="2", request_id="delete cut")
    assert await stack.booking.GetService(GET)


async def test_each_write_to_a_service_is_a_change(stack: Stack) -> None:
    await salon(stack)
    await service(stack)
    await service(stack, name="Cut")
    await failure(service(stack, etag="1"))
    await delete(stack)
    query = "SELECT salon_id, service_id, booking_code, resource_id FROM booking_changes WHERE type = 'SERVICE'"
    assert rows(stack.database_url, query) == [(SALON, "cut", None, None)] * 3
