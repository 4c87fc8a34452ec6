"""ListBookingChanges: every change once, in an order that loses none."""

import asyncio
import contextlib
from typing import Any

import grpc
import psycopg
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from libs.server import changes
from parlor.booking.v1 import booking_pb2 as pb
from services.booking.changes import booking_changes
from tests.feed import listed
from tests.stack import SALON, Fields, Stack, booking_request, failure, read_failure, rows, salon

INSERT = "INSERT INTO booking_changes (salon_id, type, booking_code) VALUES (%s, 'CREATED', %s)"
Type = pb.BookingChangeType


def kinds(found: list[pb.BookingChange]) -> list[str]:
    """Return the types of changes, without their prefix."""
    return [Type.Name(change.type).removeprefix("BOOKING_CHANGE_TYPE_") for change in found]


async def now_on(stack: Stack, **fields: Any) -> str:
    """Return the token of all changes from now on."""
    return (await stack.booking.ListBookingChanges(pb.ListBookingChangesRequest(**fields))).next_page_token


async def test_each_write_leaves_its_changes_in_order(stack: Stack) -> None:
    await salon(stack, resources=())
    await stack.booking.UpsertResource(pb.UpsertResourceRequest(salon_id=SALON, resource_id="anna", name="Anna"))
    booking = await stack.booking.CreateBooking(booking_request(resource_id="anna"))
    names: Fields = {"salon_id": SALON, "booking_code": booking.booking_code}
    confirm = pb.UpdateBookingStatusRequest(**names, status=pb.BOOKING_STATUS_CONFIRMED)
    await stack.booking.UpdateBookingStatus(confirm)
    later = {"start_time": {"seconds": 1_800_100_000}, "end_time": {"seconds": 1_800_103_600}}
    await stack.booking.RescheduleBooking(pb.RescheduleBookingRequest(**names, **later, ignore_rules=True))  # type: ignore[arg-type]
    erase = pb.EraseCustomerRequest(salon_id=SALON, phone_number=booking.customer_phone)
    assert (await stack.booking.EraseCustomer(erase)).bookings == 1
    found = await listed(stack.booking)
    assert kinds(found) == ["SALON", "RESOURCE", "CREATED", "STATUS_CHANGED", "RESCHEDULED", "UPDATED"]
    assert {change.salon_id for change in found} == {SALON}
    assert [change.resource_id for change in found] == ["", "anna", "", "", "", ""]
    assert [change.revision for change in found] == [0, 0, 1, 2, 3, 4]
    assert [change.booking_code for change in found] == ["", "", *[booking.booking_code] * 4]
    assert all(change.create_time.seconds for change in found)
    read = await stack.booking.GetBookingByCode(pb.GetBookingByCodeRequest(**names))
    assert read.revision == found[-1].revision


async def test_a_refused_write_leaves_no_change(stack: Stack) -> None:
    await salon(stack)
    await stack.booking.CreateBooking(booking_request(resource_id="anna"))
    token = await now_on(stack)
    assert (await failure(stack.booking.CreateBooking(booking_request(resource_id="anna")))).reason
    assert await listed(stack.booking, page_token=token) == []


async def test_pages_of_any_size_have_each_change_once(stack: Stack) -> None:
    await salon(stack)
    for number in range(10):
        await stack.booking.CreateBooking(booking_request(1_800_000_000 + 3600 * number))
    whole = await listed(stack.booking)
    assert len(whole) == 11
    for size in (1, 7, 11, 200):
        assert await listed(stack.booking, page_size=size) == whole


async def test_without_a_token_the_feed_begins_now(stack: Stack) -> None:
    await salon(stack)
    token = await now_on(stack)
    assert await listed(stack.booking, page_token=token) == []
    booking = await stack.booking.CreateBooking(booking_request())
    assert [change.booking_code for change in await listed(stack.booking, page_token=token)] == [booking.booking_code]


async def test_a_salon_s_feed_has_only_its_changes(stack: Stack) -> None:
    tokens = {salon_id: await now_on(stack, salon_id=salon_id) for salon_id in (SALON, "salon-2")}
    for salon_id in tokens:
        await salon(stack, salon_id)
        await stack.booking.CreateBooking(booking_request(salon_id=salon_id))
    for salon_id, token in tokens.items():
        for found in (
            await listed(stack.booking, salon_id=salon_id, page_token=token),
            await listed(stack.booking, salon_id=salon_id),
        ):
            assert [change.salon_id for change in found] == [salon_id] * 2
    assert await listed(stack.booking, salon_id="unknown") == []


async def test_a_change_that_commits_after_a_later_one_is_not_lost(stack: Stack) -> None:
    """By seq alone it is: the same interleaving, read by a statement that lacks the rule."""
    wrong = "SELECT seq, booking_code FROM booking_changes WHERE seq > %s ORDER BY seq"
    with psycopg.connect(stack.database_url) as slow, psycopg.connect(stack.database_url, autocommit=True) as fast:
        token = await now_on(stack)
        slow.execute(INSERT, [SALON, "SLOW"])
        fast.execute(INSERT, [SALON, "FAST"])
        by_seq = fast.execute(wrong, [0]).fetchall()
        assert [code for _, code in by_seq] == ["FAST"]
        assert await listed(stack.booking, page_token=token) == []  # FAST waits
        assert await listed(stack.booking) == []
        later = await now_on(stack)
        slow.commit()
        lost = fast.execute(wrong, [by_seq[-1][0]]).fetchall()
    assert lost == []  # SLOW is behind the cursor
    for found in (
        await listed(stack.booking, page_token=token),
        await listed(stack.booking, page_token=later),  # given while both were under way
        await listed(stack.booking),
    ):
        assert [change.booking_code for change in found] == ["SLOW", "FAST"]


async def test_changes_of_a_booking_come_in_the_order_of_its_revisions(stack: Stack) -> None:
    """Also if the transaction that got its ID first changes the booking last: here the other way round."""
    insert = "INSERT INTO booking_changes (salon_id, type, booking_code, revision) VALUES (%s, 'UPDATED', 'X', %s)"
    with contextlib.ExitStack() as exits:
        conns = [exits.enter_context(psycopg.connect(stack.database_url)) for _ in range(3)]
        for conn in conns:
            conn.execute("SELECT pg_current_xact_id()")
        for revision, conn in enumerate(reversed(conns), 2):
            conn.execute(insert, [SALON, revision])
            conn.commit()
    assert [change.revision for change in await listed(stack.booking)] == [2, 3, 4]


async def test_concurrent_writes_to_a_booking_come_in_order(stack: Stack) -> None:
    await salon(stack)
    names: Fields = {"salon_id": SALON}
    names["booking_code"] = (await stack.booking.CreateBooking(booking_request(resource_id="anna"))).booking_code
    requests = [
        pb.RescheduleBookingRequest(
            **names, start_time=Timestamp(seconds=1_800_000_000 + 3600 * number), ignore_rules=True
        )
        for number in range(40)
    ]

    async def reschedule(request: pb.RescheduleBookingRequest) -> None:
        while True:
            try:
                await stack.booking.RescheduleBooking(request)
                return
            except grpc.aio.AioRpcError as error:  # it waited for the others for too long: nothing is written
                assert read_failure(error).reason == "CONFLICT"

    await asyncio.gather(*map(reschedule, requests))
    found = [change.revision for change in await listed(stack.booking) if change.booking_code]
    assert found == list(range(1, 42))


async def test_the_delay_is_that_of_what_waits(stack: Stack) -> None:
    feed = booking_changes(stack.servers["booking"].database)

    async def delay() -> float:
        await feed.list(pb.ListBookingChangesRequest(from_start=True))
        return next(metric for metric in feed.collect() if metric.name == "parlor_changes_delay_seconds").samples[0][2]

    with psycopg.connect(stack.database_url) as slow:
        slow.execute("SELECT pg_current_xact_id()")
        assert await delay() == 0
        rows(stack.database_url, "INSERT INTO booking_changes (salon_id, type) VALUES ('s', 'SALON') RETURNING 1")
        rows(stack.database_url, "SELECT pg_sleep(0.2)")
        assert 0.2 <= await delay() < 20
        slow.rollback()
    assert await delay() == 0


@pytest.mark.parametrize("token", ["nonsense", "W10=", "WyJ4IiwxLDIsM10=", "WyJ4IiwxLDJd", "W1tbW1s=", "e30=", "MQ=="])
async def test_a_token_of_somebody_else_is_refused(stack: Stack, token: str) -> None:
    failed = await failure(stack.booking.ListBookingChanges(pb.ListBookingChangesRequest(page_token=token)))
    assert (failed.reason, failed.fields) == ("INVALID_FIELD", ["page_token"])


async def test_a_token_of_another_salon_is_refused(stack: Stack) -> None:
    of_all, of_one = await now_on(stack), await now_on(stack, salon_id=SALON)
    for salon_id, token in ((SALON, of_all), ("", of_one), ("salon-2", of_one)):
        request = pb.ListBookingChangesRequest(salon_id=salon_id, page_token=token)
        failed = await failure(stack.booking.ListBookingChanges(request))
        assert (failed.reason, failed.fields) == ("INVALID_FIELD", ["page_token"])


async def test_from_start_with_a_token_is_refused(stack: Stack) -> None:
    request = pb.ListBookingChangesRequest(page_token=await now_on(stack), from_start=True)
    failed = await failure(stack.booking.ListBookingChanges(request))
    assert (failed.reason, failed.fields) == ("INVALID_FIELD", ["from_start"])


async def test_a_token_expires_after_seven_days(stack: Stack) -> None:
    table = booking_changes(stack.servers["booking"].database).table
    await salon(stack)
    cursor = table.cursor("", await now_on(stack))
    for age, reason in ((changes.TOKEN_AGE - changes.HOUR, ""), (changes.TOKEN_AGE + changes.HOUR, "CURSOR_EXPIRED")):
        request = pb.ListBookingChangesRequest(page_token=table.token("", cursor._replace(time=cursor.time - age)))
        if not reason:
            await stack.booking.ListBookingChanges(request)
            continue
        failed = await failure(stack.booking.ListBookingChanges(request))
        assert (failed.code.name, failed.reason) == ("FAILED_PRECONDITION", reason)


async def test_a_token_of_a_lost_history_has_expired(stack: Stack) -> None:
    table = booking_changes(stack.servers["booking"].database).table
    cursor = table.cursor("", await now_on(stack))
    beyond = cursor._replace(position=cursor.position._replace(xact_id=2**62))
    request = pb.ListBookingChangesRequest(page_token=table.token("", beyond))
    assert (await failure(stack.booking.ListBookingChanges(request))).reason == "CURSOR_EXPIRED"


async def test_old_changes_are_purged_and_no_token_misses_one(stack: Stack) -> None:
    """A token of an old change expires before the changes after it are deleted."""
    feed = booking_changes(stack.servers["booking"].database)
    age = "INSERT INTO booking_changes (salon_id, type, booking_code, created_at) VALUES"
    for days in (9, 8.1, 7.9, 7.1, 6.9, 6.8, 1):
        row = f"('s', 'CREATED', '{days}', now() - interval '{days} days')"
        rows(stack.database_url, f"{age} {row} RETURNING 1")
    async with stack.servers["booking"].database.connection() as conn:
        assert await feed.table.purge(conn) == 2
        assert await feed.table.purge(conn) == 0
    left = [code for (code,) in rows(stack.database_url, "SELECT booking_code FROM booking_changes ORDER BY seq")]
    assert left == ["7.9", "7.1", "6.9", "6.8", "1"]
    assert [change.booking_code for change in await listed(stack.booking, page_size=1)] == ["6.9", "6.8", "1"]
    first = await stack.booking.ListBookingChanges(pb.ListBookingChangesRequest(from_start=True, page_size=1))
    cursor = feed.table.cursor("", first.next_page_token)
    # It counts as issued 12 h after the change, 6.4 days ago: valid for 0.6 days, when the next change is 7.4 days old.
    rows(stack.database_url, "UPDATE booking_changes SET created_at = created_at - interval '0.5 days' RETURNING 1")
    shifted = feed.table.token("", cursor._replace(time=cursor.time - 12 * changes.HOUR))
    found = await listed(stack.booking, page_token=shifted)
    assert [change.booking_code for change in found] == ["6.8", "1"]


async def test_a_token_outlives_the_change_it_was_made_of(stack: Stack) -> None:
    await salon(stack)
    token = await now_on(stack)
    rows(stack.database_url, "DELETE FROM booking_changes RETURNING 1")
    again = await now_on(stack)
    booking = await stack.booking.CreateBooking(booking_request())
    for each in (token, again):
        found = await listed(stack.booking, page_token=each)
        assert [change.booking_code for change in found] == [booking.booking_code]
