"""A page_token is taken only by the method, the salon and the filters that it was made for."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from parlor.booking.v1 import booking_pb2 as pb
from tests.hostile import OWN, WORDS, Rpc, rpcs, valid_requests
from tests.stack import SALON, Fields, Stack, booking_request, message_request, read_failure, salon, webhook_body
from tests.test_webhook import ingest

# Fields that don't choose the rows of a list.
PAGE = ("page_size", "page_token", "from_start")
OTHER_SALON = "salon-3"


async def two_of_each(stack: Stack) -> dict[str, Fields]:
    """Return valid requests of each RPC; what they list has at least two rows."""
    valid = await valid_requests(stack)
    code = valid["GetBookingByCode"]["booking_code"]
    await salon(stack, "salon-2")
    await salon(stack, OTHER_SALON)
    confirmed: Fields = {"salon_id": SALON, "booking_code": code, "status": 2}
    await stack.booking.UpdateBookingStatus(pb.UpdateBookingStatusRequest(**confirmed))
    await stack.booking.CreateBooking(booking_request(1_900_000_000))
    for start in (1_700_000_000, 1_700_001_000):
        times: Fields = {"start_time": {"seconds": start}, "end_time": {"seconds": start + 600}}
        await stack.booking.CreateTimeOff(pb.CreateTimeOffRequest(salon_id=SALON, resource_id="anna", **times))
    always = [{"day_of_week": day, "open_time": {}, "close_time": {"hours": 24}} for day in range(1, 8)]
    await salon(stack, opening_hours=always)
    for number in (1, 2):
        phone = f"+491511234567{number}"
        await stack.messaging.RecordMessage(message_request(f"wamid.of-{number}", phone_number=phone))
        await stack.messaging.RecordMessage(message_request(f"wamid.also-{number}"))
        fields = valid["RecordAiMessage"]
        await stack.messaging.RecordAiMessage(_module("messaging").RecordAiMessageRequest(**fields))
        bad = webhook_body(f"10{SALON}", messages=[{"id": f"bad-{number}"}])
        await ingest(stack, bad)
    valid["SearchAvailability"] = {
        "salon_id": SALON,
        "start_time": {"seconds": 4_000_000_000},
        "end_time": {"seconds": 4_000_086_400},
        "duration": {"seconds": 3600},
        "resource_ids": ["ben"],
    }
    return valid


def _module(name: str) -> Any:
    return OWN[name]


async def reason(rpc: Rpc, request: Message) -> str:
    """Return "" if the call succeeds, else the reason of its error with the fields it names."""
    try:
        await rpc.call(request.SerializeToString())
    except grpc.aio.AioRpcError as error:
        found = read_failure(error)
        return " ".join([found.code.name, found.reason, *found.fields])
    return ""


REFUSED = "INVALID_ARGUMENT INVALID_FIELD page_token"


async def least(rpc: Rpc, fields: Fields) -> Message:
    """Return a valid request with no more fields than it needs, and a page of one row."""
    for name in list(fields):
        fewer = {other: value for other, value in fields.items() if other != name}
        if name != "salon_id" and not await reason(rpc, rpc.kind(**fewer)):
            fields = fewer
    request: Any = rpc.kind(**fields)
    if "page_size" in rpc.kind.DESCRIPTOR.fields_by_name:
        request.page_size = 1
    return request  # type: ignore[no-any-return]


def with_token(request: Message, token: str, **fields: Any) -> Message:
    """Return a copy of a request with a token and other fields."""
    copy: Any = type(request)()
    copy.CopyFrom(request)
    for name in fields:
        copy.ClearField(name)
    copy.MergeFrom(type(request)(page_token=token, **fields))
    return copy  # type: ignore[no-any-return]


def forged(token: str) -> Iterator[str]:
    """Yield texts that are not tokens of this service, some nearly so."""
    made_for, *rest = json.loads(base64.urlsafe_b64decode(token))
    wrong: list[Any] = [-1, 2**63, 2**64, 10**400, 1.5, 1e300, True, None, [1], {"a": 1}, float("nan")]
    wrong += ["", "\0", "'", "x" * 65, "\ud800"]
    for place, right in enumerate(rest):
        for value in [*wrong, "1" if isinstance(right, int) else 1]:
            yield _encoded([made_for, *rest[:place], value, *rest[place + 1 :]])
    for other in ("", "0" * 24, made_for.upper() + "0", made_for[:-1], None, 1, [made_for], {made_for: 1}):
        yield _encoded([other, *rest])
    shapes: list[Any] = [[], [made_for], [made_for, *rest, 1], {}, made_for, 1, [[]] * 3]
    yield from map(_encoded, shapes)
    yield from (token[:-1], token[4:], token + token, " " + token, token.swapcase())
    yield base64.urlsafe_b64encode(b"[" * 100_000).decode()
    yield base64.urlsafe_b64encode(b"1" * 5_000).decode()
    yield base64.urlsafe_b64encode(b"\xff" * 40).decode()
    yield from (word for word in WORDS if 0 < len(word) < 1000)


def _encoded(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode()


async def lists(name: str, valid: dict[str, Fields], channel: Any, ops: Any) -> dict[str, tuple[Rpc, Message, str]]:
    """Return each RPC of a service with a page_token: its least request, and a token for it."""
    found = {}
    for rpc in rpcs(name, channel, ops):
        if "page_token" not in rpc.kind.DESCRIPTOR.fields_by_name:
            continue
        request = await least(rpc, valid[rpc.method.name])
        reply: Any = GetMessageClass(rpc.method.output_type).FromString(await rpc.call(request.SerializeToString()))
        token = reply.page_token if rpc.method.server_streaming else reply.next_page_token
        assert token, f"{rpc.method.name} has too few rows for a second page: add some to two_of_each"
        assert await reason(rpc, with_token(request, token)) == "", rpc.method.name
        found[rpc.method.name] = rpc, request, token
    return found


@pytest.mark.parametrize("name", ["booking", "messaging"])
async def test_a_token_of_another_method_salon_or_filter_is_refused(stack: Stack, name: str) -> None:
    valid = await two_of_each(stack)
    async with stack.channel(name) as channel, stack.ops_channel(name) as ops:
        found = await lists(name, valid, channel, ops)
        assert len(found) >= 5
        for method, (rpc, request, token) in found.items():
            for other, (_, _, other_token) in found.items():
                if other != method and not shares_tokens(rpc, other):
                    assert await reason(rpc, with_token(request, other_token)) == REFUSED, (method, other)
            if "salon_id" in rpc.kind.DESCRIPTOR.fields_by_name:
                asked = with_token(request, token, salon_id=OTHER_SALON)
                assert await reason(rpc, asked) == REFUSED, method
            for field, value in valid[method].items():
                changed = with_token(request, token, **{field: value})
                if field not in PAGE and changed != with_token(request, token):
                    assert await reason(rpc, changed) == REFUSED, (method, field)


def shares_tokens(rpc: Rpc, other: str) -> bool:
    """Return whether two RPCs read one feed, a page at a time or as a stream."""
    feeds = {"ListBookingChanges", "WatchBookings"}, {"ListMessageChanges", "WatchMessages"}
    return {rpc.method.name, other} in feeds


@pytest.mark.parametrize("name", ["booking", "messaging"])
async def test_a_forged_token_is_refused(stack: Stack, name: str) -> None:
    valid = await two_of_each(stack)
    async with stack.channel(name) as channel, stack.ops_channel(name) as ops:
        for method, (rpc, request, token) in (await lists(name, valid, channel, ops)).items():
            for text in forged(token):
                assert await reason(rpc, with_token(request, text)) == REFUSED, (method, text[:200])
