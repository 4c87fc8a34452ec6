"""The table of errors: code, reason and details of each, as a caller gets them."""

import asyncio
from typing import Any

import grpc
import psycopg
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, PreconditionFailure, ResourceInfo, RetryInfo

from parlor.booking.v1 import booking_pb2 as pb
from parlor.messaging.v1 import messaging_pb2
from tests.locks import SALONS, holding, waiting
from tests.stack import SALON, Failure, Fields, Stack, booking_request, failure, message_request, running, salon, unary

GET_SALON = pb.GetSalonRequest(salon_id=SALON)


def assert_error(error: Failure, code: grpc.StatusCode, reason: str, *kinds: type[Message]) -> None:
    """Check an error; `kinds` are its details besides ErrorInfo."""
    assert (error.code, error.reason, error.domain) == (code, reason, "parlor")
    assert [type(detail) for detail in error.details] == list(kinds)
    assert error.message
    assert ("grpc-retry-pushback-ms" in error.trailing) == (RetryInfo in kinds)
    for detail in error.details:
        if isinstance(detail, RetryInfo):
            assert str(detail.retry_delay.ToMilliseconds()) == error.trailing["grpc-retry-pushback-ms"]


def break_bookings(database_url: str, body: str) -> None:
    """Run SQL for each new booking; `attempt` counts up, even if the transaction is rolled back."""
    with psycopg.connect(database_url) as conn:
        conn.execute("CREATE SEQUENCE attempts")
        conn.execute(
            f"""
            CREATE FUNCTION break_booking() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
            DECLARE attempt bigint = nextval('attempts');
            BEGIN {body}; RETURN NEW; END $$""".encode()
        )
        conn.execute("CREATE TRIGGER broken BEFORE INSERT ON bookings FOR EACH ROW EXECUTE FUNCTION break_booking()")


async def test_bad_fields_are_named(stack: Stack) -> None:
    error = await failure(stack.booking.CreateBooking(pb.CreateBookingRequest(salon_id="a b", customer_phone="")))
    assert_error(error, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", BadRequest)
    assert sorted(error.fields) == ["customer_phone", "end_time", "salon_id", "start_time"]


async def test_bytes_that_are_not_a_message_are_refused(stack: Stack) -> None:
    async with stack.channel("booking") as channel:
        for data in (b"\xff", b"\x0a\xff", b"\x0a\x02\xc3\x28", b"\x0a\x0a" * 3):
            error = await failure(unary(channel, "/parlor.booking.v1.BookingService/GetSalon")(data))
            assert_error(error, grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST")


async def test_unknown_resources_are_named(stack: Stack) -> None:
    named: Fields = {"salon_id": SALON, "phone_number": "+4915100000000"}
    calls: list[tuple[Any, str, str]] = [
        (stack.booking.GetSalon(GET_SALON), "salon", SALON),
        (stack.booking.GetSalonByPhoneNumberId(pb.GetSalonByPhoneNumberIdRequest(phone_number_id="1")), "salon", "1"),
        (stack.booking.CreateBooking(booking_request()), "salon", SALON),
        (
            stack.booking.GetBookingByCode(pb.GetBookingByCodeRequest(salon_id=SALON, booking_code="abc")),
            "booking",
            f"{SALON}/ABC",
        ),
        (
            stack.messaging.GetConversation(messaging_pb2.GetConversationRequest(**named)),
            "conversation",
            f"{SALON}/phone_number",  # without the value
        ),
    ]
    for call, kind, name in calls:
        error = await failure(call)
        assert_error(error, grpc.StatusCode.NOT_FOUND, f"{kind.upper()}_NOT_FOUND", ResourceInfo)
        assert error.details == [ResourceInfo(resource_type=f"parlor/{kind}", resource_name=name)]


async def test_a_taken_slot_a_wrong_transition_and_a_duplicate_value_have_different_reasons(stack: Stack) -> None:
    await salon(stack)
    code = (await stack.booking.CreateBooking(booking_request(resource_id="anna"))).booking_code
    taken = await failure(stack.booking.CreateBooking(booking_request(resource_id="anna")))
    assert_error(taken, grpc.StatusCode.FAILED_PRECONDITION, "SLOT_UNAVAILABLE", PreconditionFailure)
    complete = pb.UpdateBookingStatusRequest(salon_id=SALON, booking_code=code, status=pb.BOOKING_STATUS_COMPLETED)
    wrong = await failure(stack.booking.UpdateBookingStatus(complete))
    assert_error(wrong, grpc.StatusCode.FAILED_PRECONDITION, "INVALID_TRANSITION", PreconditionFailure)
    second = await failure(salon(stack, "salon-2", phone_number_id=f"10{SALON}"))
    assert_error(second, grpc.StatusCode.ALREADY_EXISTS, "PHONE_NUMBER_ID_TAKEN", ResourceInfo)
    older = await failure(salon(stack, etag="0"))
    assert_error(older, grpc.StatusCode.ABORTED, "ETAG_MISMATCH", ResourceInfo)
    unsigned = messaging_pb2.IngestWebhookRequest(payload=b"{}", signature="sha256=0")
    forged = await failure(stack.messaging.IngestWebhook(unsigned))
    assert_error(forged, grpc.StatusCode.UNAUTHENTICATED, "INVALID_SIGNATURE")


async def test_a_conflict_is_retried_once_and_then_returned(stack: Stack) -> None:
    await salon(stack)
    break_bookings(stack.database_url, "IF attempt <> 2 THEN RAISE 'row of +49151' USING ERRCODE = '40001'; END IF")
    await stack.booking.CreateBooking(booking_request())
    error = await failure(stack.booking.CreateBooking(booking_request()))
    assert_error(error, grpc.StatusCode.ABORTED, "CONFLICT", RetryInfo)
    assert "+49151" not in error.message


async def test_a_deadlock_is_retried_once(database_url: str, redis_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as owner:
        owner.execute(f"ALTER DATABASE {owner.info.dbname} SET deadlock_timeout = '1s'".encode())
    async with running(database_url, redis_url) as stack:
        await salon(stack)
        async with holding(database_url, SALONS) as other:
            await other.execute("SET LOCAL deadlock_timeout = '1min'")  # the service's session detects it
            call = asyncio.ensure_future(salon(stack, name="After"))  # holds its advisory lock, and waits for the row
            await waiting(other)
            await other.execute(
                "SELECT pg_advisory_xact_lock(classid::bigint << 32 | objid::bigint)"
                " FROM pg_locks WHERE locktype = 'advisory' AND granted"
            )
            await other.rollback()
            assert (await call).name == "After"


async def test_an_internal_error_does_not_reveal_its_text(stack: Stack) -> None:
    await salon(stack)
    break_bookings(stack.database_url, "RAISE 'row of %', NEW.customer_phone")
    error = await failure(stack.booking.CreateBooking(booking_request()))
    assert_error(error, grpc.StatusCode.INTERNAL, "INTERNAL")
    sent = error.message + "".join(map(str, error.trailing.values()))
    assert not any(word in sent for word in ("row of", "+49", "psycopg", "RaiseException"))


async def test_a_statement_over_its_timeout_is_query_timeout(database_url: str, redis_url: str) -> None:
    async with running(database_url, redis_url, database={"query_timeout": 1000}) as stack:
        await salon(stack)
        async with holding(database_url, SALONS):
            error = await failure(stack.booking.CreateBooking(booking_request()))
        assert_error(error, grpc.StatusCode.DEADLINE_EXCEEDED, "QUERY_TIMEOUT")
        await stack.booking.CreateBooking(booking_request())


async def test_a_request_over_its_timeout_is_query_timeout_and_leaves_nothing_behind(
    database_url: str, redis_url: str
) -> None:
    limits: dict[str, Any] = {"database": {"connection_limit": 1}, "server": {"request_timeout": 1000}}
    async with running(database_url, redis_url, **limits) as stack:
        await salon(stack)
        async with holding(database_url, SALONS) as other:
            error = await failure(stack.booking.CreateBooking(booking_request()))
            await waiting(other, sessions=0)
        assert_error(error, grpc.StatusCode.DEADLINE_EXCEEDED, "QUERY_TIMEOUT")
        await stack.booking.CreateBooking(booking_request())


async def test_a_canceled_call_leaves_nothing_behind(database_url: str, redis_url: str) -> None:
    async with running(database_url, redis_url, database={"connection_limit": 1}) as stack:
        await salon(stack)
        async with holding(database_url, SALONS) as other:
            call = stack.booking.CreateBooking(booking_request())
            await waiting(other)
            call.cancel()
            await waiting(other, sessions=0)
        await stack.booking.CreateBooking(booking_request())
        assert len((await stack.booking.ListBookings(pb.ListBookingsRequest(salon_id=SALON))).bookings) == 1


async def test_too_many_rpcs_are_overloaded(database_url: str, redis_url: str) -> None:
    async with running(database_url, redis_url, server={"max_concurrent_rpcs": 1}) as stack:
        await salon(stack)
        async with holding(database_url, SALONS) as other:
            call = stack.booking.CreateBooking(booking_request())
            await waiting(other)
            error = await failure(stack.booking.GetSalon(GET_SALON))
        assert_error(error, grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED", RetryInfo)
        await call
        await stack.booking.GetSalon(GET_SALON)


async def test_an_exhausted_pool_is_pool_exhausted(database_url: str, redis_url: str) -> None:
    async with running(
        database_url, redis_url, database={"connection_limit": 1, "pool_timeout": 1, "lock_timeout": 10_000}
    ) as stack:
        await salon(stack)
        async with holding(database_url, SALONS) as other:
            call = stack.booking.CreateBooking(booking_request())
            await waiting(other)
            error = await failure(stack.booking.ListSalons(pb.ListSalonsRequest()))
        assert_error(error, grpc.StatusCode.RESOURCE_EXHAUSTED, "POOL_EXHAUSTED", RetryInfo)
        await call
        await stack.booking.ListSalons(pb.ListSalonsRequest())


async def test_a_booking_service_that_is_down_is_booking_unavailable(stack: Stack) -> None:
    await stack.servers["booking"].drain()
    error = await failure(stack.messaging.RecordMessage(message_request()))
    assert_error(error, grpc.StatusCode.UNAVAILABLE, "BOOKING_UNAVAILABLE", RetryInfo)


async def test_in_refuse_mode_a_write_that_cannot_invalidate_is_refused(database_url: str) -> None:
    nowhere = "redis://127.0.0.1:1"
    async with running(database_url, nowhere, cache={"without": "refuse"}) as stack:
        error = await failure(salon(stack))
        assert_error(error, grpc.StatusCode.UNAVAILABLE, "CACHE_UNAVAILABLE", RetryInfo)
        assert (await failure(stack.booking.GetSalon(GET_SALON))).reason == "SALON_NOT_FOUND"
    async with running(database_url, nowhere) as stack:
        await salon(stack)
        await stack.booking.GetSalon(GET_SALON)
