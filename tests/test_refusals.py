"""The tables of errors in the comment of BookingService: a real error for each row, and no reason is missing."""

import ast
import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import grpc
from google.protobuf.duration_pb2 import Duration

from libs.cache import CommitUnknown
from libs.server import RpcError, errors
from libs.server.auth import refusals
from parlor.booking.v1 import booking_pb2 as pb
from services.booking.changes import booking_changes
from tests.calendars import DAY, HOUR
from tests.keeping import book, clock, cut, move, opened, stack, time_off, update
from tests.stack import PHONE, SALON, Failure, Fields, Stack, failure, rows, salon, unary
from tests.test_resources import resource
from tests.test_services import service

__all__ = ["clock", "stack"]

Calls: TypeAlias = Sequence[Callable[[], Awaitable[Any]]]

ROOT = Path(__file__).parents[1]
SOURCES = [*ROOT.glob("services/*.py"), *ROOT.glob("services/booking/*.py"), *ROOT.glob("libs/server/**/*.py")]
MAKERS = {"RpcError", "Refusal", "failed_precondition", "exhausted", "unavailable", "invalid_fields"}
# Errors of a broken or a busy service, or of its transport, which other tests provoke.
ELSEWHERE = {
    "CACHE_UNAVAILABLE",
    "COMMIT_UNKNOWN",
    "CONFLICT",
    "DATABASE_FULL",
    "DATABASE_UNAVAILABLE",
    "DRAINING",
    "INTERNAL",
    "METHOD_NOT_ALLOWED",
    "OVERLOADED",
    "POOL_EXHAUSTED",
    "QUERY_TIMEOUT",
    "QUOTA_EXCEEDED",
    "REQUEST_TOO_LARGE",
    "SALON_NOT_ALLOWED",
    "SLOW_READER",
    "UNAUTHENTICATED",
}
RULES: Fields = {
    "min_notice": HOUR,
    "max_advance": 10 * DAY,
    "min_cancel_notice": 2 * HOUR,
    "one_booking_at_a_time_per_customer": True,
}
WALK_IN: Fields = {"customer_phone": "", "customer_name": "Zoë"}


class Row(NamedTuple):
    """A row of the tables; `message` has its values in braces."""

    reason: str
    code: str
    metadata: frozenset[str]
    message: str

    def fits(self, error: Failure | RpcError) -> bool:
        """Return whether an error has the row's reason, code and message."""
        pattern = re.sub(r"\\{.*?\\}", ".+", re.escape(self.message))
        return (self.reason, self.code) == (error.reason, error.code.name) and bool(
            re.fullmatch(pattern, error.message)
        )


def tables() -> Iterator[Row]:
    """Yield the rows of both tables; the first one is about FAILED_PRECONDITION."""
    proto = (ROOT / "protos/parlor/booking/v1/booking.proto").read_text()
    [comment] = re.findall(r"((?:^//.*\n)+)service BookingService", proto, re.MULTILINE)
    columns: list[str] = []
    for line in re.findall(r"^// \|(.*)\|$", comment, re.MULTILINE):
        cells = [cell.strip() for cell in line.split("|")]
        if cells[0] == "reason":
            columns = cells
        elif cells[0] != "---":
            cell = {"code": "FAILED_PRECONDITION", "metadata": "", **dict(zip(columns, cells, strict=True))}
            names = frozenset(filter(None, cell["metadata"].split(", ")))
            yield Row(cell["reason"], cell["code"], names, cell["message"])


ROWS = set(tables())


def reasons(source: str) -> Iterator[str]:
    """Yield the reasons of the errors that a source makes."""
    for call in ast.walk(ast.parse(source)):
        if not isinstance(call, ast.Call):
            continue
        maker = ast.unparse(call.func).rpartition(".")[2]
        texts = [text.value for text in call.args if isinstance(text, ast.Constant) and isinstance(text.value, str)]
        if maker == "not_found" and texts:
            yield f"{texts[0].upper()}_NOT_FOUND"
        elif maker == "already_exists":
            yield f"{texts[0].upper()}_TAKEN"
        elif maker in MAKERS:
            yield from (text for text in texts if re.fullmatch("[A-Z_]+", text))


async def shown(calls: Calls) -> set[Row]:
    """Return the rows that the errors of calls fit; each fits exactly one."""
    found = set()
    for call in calls:
        error = await failure(call())
        fitting = [row for row in ROWS if row.fits(error) and row.metadata == error.metadata.keys()]
        assert len(fitting) == 1, error
        found.update(fitting)
    return found


def test_the_tables_have_the_reasons_of_the_code_and_no_others() -> None:
    made = {reason for path in SOURCES for reason in reasons(path.read_text())} | {errors.invalid_fields([]).reason}
    assert {row.reason for row in ROWS} == made


async def test_each_refusal_is_as_its_row_says(stack: Stack) -> None:
    await opened(stack, RULES)
    await resource(stack, "retired", active=False)
    await resource(stack, "gone")
    await cut(stack, resource_ids=["ben"])
    await service(stack, "old", active=False)
    await service(stack, "nobody", resource_ids=["gone"])
    await stack.booking.DeleteResource(pb.DeleteResourceRequest(salon_id=SALON, resource_id="gone"))
    await time_off(stack, 14, 15, "anna")
    await book(stack, 16, customer_phone=PHONE)
    soon = await book(stack, 11.5, resource_id="anna", **WALK_IN)
    held = await book(stack, 16, resource_id="ben", **WALK_IN, hold_duration=Duration(seconds=60))
    rows(stack.database_url, "UPDATE bookings SET hold_expires_at = now() WHERE hold_expires_at > now() RETURNING 1")
    table = booking_changes(stack.servers["booking"].database).table
    now_on = (await stack.booking.ListBookingChanges(pb.ListBookingChangesRequest())).next_page_token
    cursor = table.cursor("", now_on)._replace(time=0)

    def new(hour: float, hours: float = 1, resource_id: str = "anna", **fields: Any) -> Callable[[], Awaitable[Any]]:
        return lambda: book(stack, hour, hours, **{"resource_id": resource_id, **WALK_IN, **fields})

    of_service: Fields = {"end_time": None}
    calls: Calls = [
        new(12),
        new(12, resource_id="", any_of_resource_ids=["anna"]),
        new(9),
        new(10.5),
        new(11 * 24 + 12),
        new(20),
        new(12, 25),
        new(14),
        new(12, resource_id="retired"),
        new(12, resource_id="", service_id="nobody", **of_service),
        new(13, service_id="cut", **of_service),
        new(13, service_id="old", **of_service),
        new(13, customer_phone=PHONE),
        lambda: move(stack, soon, "CANCELLED"),
        lambda: move(stack, held, "CONFIRMED"),
        lambda: update(stack, soon, more={"hold_duration": Duration(seconds=60)}),
        lambda: move(stack, soon, "COMPLETED"),
        lambda: move(stack, soon, "NO_SHOW"),
        lambda: stack.booking.DeleteResource(pb.DeleteResourceRequest(salon_id=SALON, resource_id="anna")),
        lambda: stack.booking.ListBookingChanges(pb.ListBookingChangesRequest(page_token=table.token("", cursor))),
    ]
    assert await shown(calls) == {row for row in ROWS if row.code == "FAILED_PRECONDITION"}


async def test_each_wrong_request_is_answered_as_its_row_says(stack: Stack) -> None:
    await salon(stack)
    booking = await book(stack, 12, ignore_rules=True)
    await resource(stack, request_id="1")
    names: Fields = {"salon_id": SALON}
    async with stack.channel("booking") as channel:
        send = unary(channel, "/parlor.booking.v1.BookingService/GetSalon")
        calls: Calls = [
            lambda: stack.booking.GetSalon(pb.GetSalonRequest(salon_id="nobody")),
            lambda: book(stack, 12, resource_id="chiar-1"),
            lambda: stack.booking.GetService(pb.GetServiceRequest(service_id="cut", **names)),
            lambda: stack.booking.GetBookingByCode(pb.GetBookingByCodeRequest(booking_code="NOBODY", **names)),
            lambda: stack.booking.DeleteTimeOff(
                pb.DeleteTimeOffRequest(time_off_id="00000000-0000-0000-0000-000000000000", **names)
            ),
            lambda: salon(stack, "salon-2", phone_number_id=f"10{SALON}"),
            lambda: update(stack, booking, notes="x", more={"etag": "9"}),
            lambda: stack.booking.GetSalon(pb.GetSalonRequest(salon_id="a b")),
            lambda: resource(stack, "ben", request_id="1"),
            lambda: send(b"\xff"),
        ]
        found = await shown(calls)
    assert found == {row for row in ROWS if row.code != "FAILED_PRECONDITION" and row.reason not in ELSEWHERE}


def test_the_errors_of_a_broken_service_have_the_messages_of_their_rows() -> None:
    made = [errors.draining(), errors.internal(), *(make() for _, make in errors.TABLE)]
    requests = [pb.GetSalonRequest(), pb.UpsertResourceRequest(request_id="1")]
    made += [errors.of_exception(CommitUnknown(), {}, request) for request in requests]
    made += [refusals.unauthenticated("send a bearer token"), refusals.method_not_allowed()]
    made += [refusals.salon_not_allowed(names_salons=names) for names in (True, False)]
    made += [refusals.quota_exceeded("the salon", "under way")]
    elsewhere = {row for row in ROWS if row.reason in ELSEWHERE}
    fitting = [[row for row in elsewhere if row.fits(error)] for error in made]
    assert all(len(found) == 1 for found in fitting)
    rest = elsewhere - {row for found in fitting for row in found}
    assert {(row.reason, row.code) for row in rest} == {
        (reason, grpc.StatusCode.RESOURCE_EXHAUSTED.name)
        for reason in ("OVERLOADED", "REQUEST_TOO_LARGE", "SLOW_READER")
    }


def test_other_tests_provoke_the_errors_of_a_broken_service() -> None:
    tests = [path.read_text() for path in (ROOT / "tests").glob("test_*.py") if path != Path(__file__)]
    assert [reason for reason in ELSEWHERE if not any(f'"{reason}"' in test for test in tests)] == []
