"""The rules in the protos can be evaluated for every value; repeated fields are counted before they are validated."""

import itertools
from collections.abc import Iterator
from typing import Any

import grpc
import protovalidate
import pytest
from buf.validate import validate_pb2
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from libs.server import RpcError, errors
from libs.server.validation import LARGEST_REQUEST_BYTES, MAX_PATHS, Requests, check
from parlor.booking.v1 import booking_pb2 as pb
from parlor.messaging.v1 import messaging_pb2
from parlor.ops.v1 import ops_pb2
from parlor.stats.v1 import stats_pb2
from services.messaging.service import LARGEST_REQUESTS
from tests.stack import Fields

METHODS = [
    method
    for file in (pb, messaging_pb2, stats_pb2, ops_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]
MOST_PAIRS, MOST_NESTED = 20_000, 100
INT32, INT64 = 2**31, 2**63
SECONDS = [-INT64, -315_576_000_001, -62_135_596_801, -1, 0, 1, 253_370_764_799, 253_402_300_800, INT64 - 1]
NANOS = [-INT32, -1, 0, 999_999_999, INT32 - 1]
EXTREMES: dict[int, list[int]] = {
    FieldDescriptor.TYPE_INT32: [-INT32, -1, 0, 24, INT32 - 1],
    FieldDescriptor.TYPE_INT64: [-INT64, -1, 0, INT64 - 1],
    FieldDescriptor.TYPE_ENUM: [-INT32, 0, 1, INT32 - 1],
}


def ids(method: MethodDescriptor) -> str:
    return method.name


def extremes(kind: Descriptor) -> Iterator[tuple[str, Any]]:
    """Yield each field that contains a number, with extreme values, as arguments for the message's constructor."""
    for field in kind.fields:
        values: list[Any] = list(EXTREMES.get(field.type, []))
        if field.message_type is not None:
            if field.message_type.name in ("Timestamp", "Duration"):
                values = [{"seconds": seconds, "nanos": nanos} for seconds in SECONDS for nanos in (0, 999_999_999)]
                values += [{"seconds": 0, "nanos": nanos} for nanos in NANOS]
            else:
                values = [dict(pair) for pair in pairs(list(extremes(field.message_type)), MOST_NESTED)]
        for value in values:
            yield field.name, [value] if field.is_repeated else value


def pairs(values: list[tuple[str, Any]], most: int) -> Iterator[tuple[tuple[str, Any], tuple[str, Any]]]:
    """Yield pairs of values of different fields: all pairs, or about `most` evenly spread ones."""
    count = len(values) * (len(values) - 1) // 2
    chosen = itertools.islice(itertools.combinations(values, 2), 0, None, max(1, count // most))
    return (pair for pair in chosen if pair[0][0] != pair[1][0])


def evaluate(request: Message) -> None:
    """Fail if a rule can't be evaluated."""
    try:
        protovalidate.collect_violations(request)
    except protovalidate.EvaluationError as error:
        raise AssertionError(f"{type(request).__name__} {request}: {error}") from error


@pytest.mark.parametrize("method", METHODS, ids=ids)
def test_no_pair_of_extreme_values_breaks_a_rule(method: MethodDescriptor) -> None:
    kind = GetMessageClass(method.input_type)
    values = list(extremes(method.input_type))
    for one, other in itertools.chain(zip(values, values, strict=True), pairs(values, MOST_PAIRS)):
        evaluate(kind(**dict([one, other])))


@pytest.mark.parametrize(
    ("start", "end", "valid"),
    [
        (0, 253_370_764_799, False),
        (0, 5_356_800, True),
        (0, 5_356_801, False),
        (253_365_407_999, 253_370_764_799, True),
        (253_370_764_798, 253_370_764_799, True),
        (0, INT64 - 1, False),
        (-INT64, INT64 - 1, False),
    ],
)
def test_a_search_covers_at_most_62_days(start: int, end: int, valid: bool) -> None:
    times = {"start_time": {"seconds": start}, "end_time": {"seconds": end}}
    request = pb.SearchAvailabilityRequest(salon_id="salon-1", duration={"seconds": 60}, **times)  # type: ignore[arg-type]
    if valid:
        check(request)
    else:
        with pytest.raises(RpcError) as error:
            check(request)
        assert error.value.reason == "INVALID_FIELD"


def test_half_a_second_more_than_62_days_is_too_long() -> None:
    end = {"seconds": 5_356_800, "nanos": 500_000_000}
    times: Fields = {"duration": {"seconds": 60}, "start_time": {"seconds": 0}, "end_time": end}
    request = pb.SearchAvailabilityRequest(salon_id="salon-1", **times)
    with pytest.raises(RpcError, match="at most 62 days"):
        check(request)


@pytest.mark.parametrize("expression", ["this.number + 1 > 0", "this.number * 2 > 0", "10 / this.number > 0"])
def test_a_rule_that_cannot_be_evaluated_is_an_invalid_argument(expression: str) -> None:
    file = descriptor_pb2.FileDescriptorProto(
        name=f"{abs(hash(expression))}.proto", package=f"p{abs(hash(expression))}"
    )
    file.dependency.append("buf/validate/validate.proto")
    message = file.message_type.add(name="Numbered")
    message.field.add(name="number", number=1, type="TYPE_INT64", label="LABEL_OPTIONAL")
    rule = message.options.Extensions[validate_pb2.message].cel.add(id="number.rule", expression=expression)
    rule.message = "must follow a rule"
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())
    kind: Any = GetMessageClass(pool.FindMessageTypeByName(f"{file.package}.Numbered"))
    check(kind(number=1))
    with pytest.raises(RpcError) as error:
        check(kind(number=0 if "/" in expression else INT64 - 1))
    assert (error.value.code, error.value.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")


def fields(kind: Descriptor) -> Iterator[FieldDescriptor]:
    for field in kind.fields:
        yield field
        if field.message_type is not None:
            yield from fields(field.message_type)


@pytest.mark.parametrize("method", METHODS, ids=ids)
def test_every_repeated_field_is_bounded(method: MethodDescriptor) -> None:
    for field in fields(method.input_type):
        if field.full_name == "google.protobuf.FieldMask.paths":
            request = GetMessageClass(method.input_type)(update_mask={"paths": ["notes"] * (MAX_PATHS + 1)})
            with pytest.raises(RpcError, match=r"update_mask\.paths: must contain no more than"):
                Requests(method, type(request).FromString).check(request)
        elif field.is_repeated:
            assert field.GetOptions().Extensions[validate_pb2.field].repeated.max_items, field.full_name


@pytest.mark.parametrize("method", METHODS, ids=ids)
def test_no_rule_has_a_regular_expression_in_its_message(method: MethodDescriptor) -> None:
    for field in fields(method.input_type):
        rules = field.GetOptions().Extensions[validate_pb2.field]
        assert not rules.string.pattern and not rules.repeated.items.string.pattern, field.full_name


def test_a_shared_rule_has_a_message_in_words() -> None:
    with pytest.raises(RpcError) as error:
        check(pb.BatchGetBookingsRequest(salon_id="salon 1", booking_codes=["ABC234", "?"]))
    assert error.value.message == (
        "salon_id: must be 1 to 64 letters, digits, '-' or '_'; booking_codes[1]: must be 1 to 16 letters or digits"
    )


@pytest.mark.parametrize("method", METHODS, ids=ids)
def test_the_largest_text_of_a_field_fits_its_request(method: MethodDescriptor) -> None:
    largest = LARGEST_REQUESTS.get(method.name, LARGEST_REQUEST_BYTES)
    total = 0
    for field in fields(method.input_type):
        rules = field.GetOptions().Extensions[validate_pb2.field]
        total += 4 * rules.string.max_len + rules.bytes.max_len
    assert total < largest


@pytest.mark.parametrize("items", [101, 10_000, 131_000])
def test_items_are_counted_before_they_are_validated(items: int) -> None:
    method = pb.DESCRIPTOR.services_by_name["BookingService"].methods_by_name["BatchGetBookings"]
    requests = Requests(method, pb.BatchGetBookingsRequest.FromString)
    with pytest.raises(RpcError) as error:
        requests.check(requests.parse(b"\x12\0" * items))
    assert error.value.message == "booking_codes: must contain no more than 100 item(s)"


def test_items_of_messages_within_messages_are_counted_by_their_path() -> None:
    method = pb.DESCRIPTOR.services_by_name["BookingService"].methods_by_name["UpsertSalon"]
    salon = pb.Salon(opening_hours=[{}] * 71, special_hours=[{}] * 401)  # type: ignore[list-item]
    with pytest.raises(RpcError) as error:
        Requests(method, pb.UpsertSalonRequest.FromString).check(pb.UpsertSalonRequest(salon=salon))
    [_, details] = error.value.details
    assert [each.field for each in details.field_violations] == ["salon.opening_hours", "salon.special_hours"]  # type: ignore[attr-defined]


def test_an_error_has_at_most_16_violations() -> None:
    wrong = pb.UpsertSalonRequest(salon={"opening_hours": [{}] * 70, "special_hours": [{}] * 400})  # type: ignore[arg-type]
    with pytest.raises(RpcError) as error:
        check(wrong)
    [_, details] = error.value.details
    assert len(details.field_violations) == errors.MOST_VIOLATIONS  # type: ignore[attr-defined]


def test_a_violation_after_many_valid_items_is_found() -> None:
    good = {"day_of_week": 1, "open_time": {"hours": 9}, "close_time": {"hours": 18}}
    salon = {"salon_id": "s", "phone_number_id": "1", "name": "n", "time_zone": "Europe/Berlin"}
    request = pb.UpsertSalonRequest(salon={**salon, "opening_hours": [good] * 60 + [{}]})  # type: ignore[arg-type]
    with pytest.raises(RpcError) as error:
        check(request)
    assert error.value.message.startswith("salon.opening_hours[60]")
