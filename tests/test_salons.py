"""Salons: upserts, unique phone_number_ids, and cache entries under two keys."""

from typing import Any

import grpc
from google.type.dayofweek_pb2 import DayOfWeek
from google.type.timeofday_pb2 import TimeOfDay

from parlor.booking.v1 import booking_pb2 as pb
from tests.stack import SALON, Stack, executed, failure, fresh, quiet, salon, walk, warm

BY_ID = pb.GetSalonRequest(salon_id=SALON)
BY_PHONE = pb.GetSalonByPhoneNumberIdRequest(phone_number_id=f"10{SALON}")


def hours(opened: str, closed: str, day: DayOfWeek = DayOfWeek.MONDAY) -> pb.OpeningHours:
    """Return opening hours of a day; the times are HH:MM."""
    times = [TimeOfDay(hours=int(time[:2]), minutes=int(time[3:])) for time in (opened, closed)]
    return pb.OpeningHours(day_of_week=day, open_time=times[0], close_time=times[1])


async def test_a_salon_is_read_back_as_it_was_written(stack: Stack) -> None:
    week = [hours("00:00", "24:00", DayOfWeek.SUNDAY), hours("09:00", "12:30"), hours("13:00", "18:59")]
    written = await salon(stack, name="Bé 💇", region_code="DE", opening_hours=week)
    assert list(written.opening_hours) == week
    assert (written.etag, written.region_code, written.time_zone) == ("1", "DE", "Europe/Berlin")
    assert written.create_time == written.update_time
    assert await stack.booking.GetSalon(BY_ID) == written
    assert await stack.booking.GetSalonByPhoneNumberId(BY_PHONE) == written


async def test_an_upsert_replaces_all_fields_of_a_salon(stack: Stack) -> None:
    before = await salon(stack, name="Old", region_code="DE", opening_hours=[hours("09:00", "18:00")])
    after = await salon(stack, name="New", time_zone="America/New_York")
    assert (after.name, after.region_code, list(after.opening_hours)) == ("New", "", [])
    assert (after.time_zone, after.etag, after.create_time) == ("America/New_York", "2", before.create_time)
    assert after.update_time.ToNanoseconds() > before.update_time.ToNanoseconds()
    assert await stack.booking.GetSalon(BY_ID) == after


async def test_an_upsert_with_an_old_etag_is_refused(stack: Stack) -> None:
    error = await failure(salon(stack, etag="1"))
    assert (error.code, error.reason) == (grpc.StatusCode.ABORTED, "ETAG_MISMATCH")
    first = await salon(stack)
    second = await salon(stack, etag=first.etag, name="Second")
    assert (await failure(salon(stack, etag=first.etag, name="Third"))).reason == "ETAG_MISMATCH"
    assert (await stack.booking.GetSalon(BY_ID)).name == second.name


async def test_an_unknown_time_zone_is_refused(stack: Stack) -> None:
    for zone in ("Europe/Atlantis", "europe/berlin", "+01:00", "CEST-2", "UTC; DROP TABLE salons"):
        error = await failure(salon(stack, time_zone=zone))
        assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
        assert error.fields == ["salon.time_zone"]


async def test_invalid_opening_hours_are_refused(stack: Stack) -> None:
    wrong = [
        (hours("09:00", "09:00"), "close_time"),
        (hours("18:00", "09:00"), "close_time"),
        (hours("24:00", "24:00"), "open_time"),
        (hours("09:60", "18:00"), "open_time"),
        (hours("09:00", "24:01"), "close_time"),
        (pb.OpeningHours(day_of_week=DayOfWeek.MONDAY), "open_time"),
        (hours("09:00", "18:00", DayOfWeek.DAY_OF_WEEK_UNSPECIFIED), "day_of_week"),
    ]
    for one, field in wrong:
        error = await failure(salon(stack, opening_hours=[hours("09:00", "18:00"), one]))
        assert error.reason == "INVALID_FIELD"
        assert f"salon.opening_hours[1].{field}" in error.fields
    assert (await failure(salon(stack, opening_hours=[hours("09:00", "18:00")] * 71))).fields == ["salon.opening_hours"]


async def test_a_phone_number_id_belongs_to_one_salon(stack: Stack) -> None:
    await salon(stack)
    error = await failure(salon(stack, "salon-2", phone_number_id=f"10{SALON}"))
    assert (error.code, error.reason) == (grpc.StatusCode.ALREADY_EXISTS, "PHONE_NUMBER_ID_TAKEN")
    assert (await failure(stack.booking.GetSalon(pb.GetSalonRequest(salon_id="salon-2")))).reason == "SALON_NOT_FOUND"


async def test_a_new_phone_number_id_replaces_the_old_one_at_once(stack: Stack) -> None:
    await salon(stack)
    await warm(stack.booking.GetSalon, BY_ID)
    await warm(stack.booking.GetSalonByPhoneNumberId, BY_PHONE)
    after = await salon(stack, phone_number_id="11")
    assert await fresh(stack.booking.GetSalon, BY_ID) == after
    assert (await failure(stack.booking.GetSalonByPhoneNumberId(BY_PHONE))).reason == "SALON_NOT_FOUND"
    found = await fresh(stack.booking.GetSalonByPhoneNumberId, pb.GetSalonByPhoneNumberIdRequest(phone_number_id="11"))
    assert found == after


async def test_a_phone_number_id_can_move_to_another_salon(stack: Stack) -> None:
    await salon(stack)
    await warm(stack.booking.GetSalonByPhoneNumberId, BY_PHONE)
    await salon(stack, phone_number_id="11")
    reassigned = await salon(stack, "salon-2", phone_number_id=f"10{SALON}")
    assert await fresh(stack.booking.GetSalonByPhoneNumberId, BY_PHONE) == reassigned


async def test_a_salon_id_and_an_equal_phone_number_id_have_different_entries(stack: Stack) -> None:
    one = await salon(stack, "same", phone_number_id="other")
    two = await salon(stack, "other", phone_number_id="same")
    by_phone = pb.GetSalonByPhoneNumberIdRequest(phone_number_id="same")
    for _ in range(2):
        assert await stack.booking.GetSalon(pb.GetSalonRequest(salon_id="same")) == one
        assert await stack.booking.GetSalonByPhoneNumberId(by_phone) == two


async def test_the_absence_of_a_salon_is_cached_until_it_is_created(database_url: str, redis_url: str) -> None:
    async with quiet(database_url, redis_url) as stack:
        calls: list[tuple[Any, Any]] = [
            (stack.booking.GetSalon, BY_ID),
            (stack.booking.GetSalonByPhoneNumberId, BY_PHONE),
        ]
        for rpc, request in calls:
            assert (await failure(rpc(request))).reason == "SALON_NOT_FOUND"
            before = await executed(stack, "booking")
            assert (await failure(rpc(request))).reason == "SALON_NOT_FOUND"
            assert await executed(stack, "booking") == before
        created = await salon(stack)
        for rpc, request in calls:
            assert await fresh(rpc, request) == created


async def test_pages_hold_each_salon_once(stack: Stack) -> None:
    names = [f"salon-{number}" for number in range(5)]
    for name in reversed(names):
        await salon(stack, name)
    for page_size in (1, 2, 3, 5, 6, 0):
        listed = await walk(stack.booking.ListSalons, pb.ListSalonsRequest(), page_size)
        assert [found.salon_id for found in listed] == names
