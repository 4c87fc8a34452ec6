"""Hostile values in every field of every RPC get a clear error and change nothing."""

import os
from typing import Any
from uuid import UUID

import grpc
import psycopg
import pytest
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from parlor.messaging.v1.messaging_pb2 import GetConversationRequest, ListMessagesRequest
from tests.hostile import MOMENTS, OWN, Rpc, hostile, rpcs, valid_requests
from tests.load import until
from tests.stack import PHONE, SALON, Stack, failure, message_request, read_failure, salon
from tests.test_ownership import TABLES

RAW = [
    b"\xff",
    b"\x00",
    b"\x0a",
    b"\x0a\xff\xff\xff\xff\x0f",
    b"\x0b" * 200,
    b"\x80" * 200_000,
]


async def contents(conn: psycopg.Connection[Any]) -> Any:
    """Return a number that changes with any row of the database, once the outbox is empty."""
    await until(lambda: not conn.execute("SELECT FROM cache_outbox").rowcount)  # on a busy machine Redis may time out
    sums = (f"(SELECT coalesce(sum(hashtext(t::text)::bigint), 0) FROM {table} AS t)" for table in TABLES)
    return conn.execute(f"SELECT {', '.join(sums)}".encode()).fetchone()


async def outcome(rpc: Rpc, data: bytes, path: str = "") -> bool:
    """Call an RPC and return whether it succeeded; check its error otherwise."""
    try:
        await rpc.call(data)
    except grpc.aio.AioRpcError as error:
        assert error.code() not in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)
        if os.environ.get("SERVER_TRANSPORT") == "grpcio" and "larger than max" in (error.details() or ""):
            return False  # an error of grpcio itself, without ErrorInfo
        found = read_failure(error)
        assert found.domain == "parlor"
        assert len(found.message) < 2_000
        if found.reason == "INVALID_FIELD":
            assert path == "" or any(names(field, path) for field in found.fields), found.fields
        return False
    return True


def names(field: str, path: str) -> bool:
    """Return whether the field of a violation is the one at `path`, within it, or the other end of its period."""
    assert field
    field = field.replace("[0]", "").replace("[1]", "")
    pairs = ({"start_time", "end_time"}, {"open_time", "close_time"})
    ends = {field.split(".")[-1], path.split(".")[-1]}
    return field.startswith(path) or path.startswith(field) or any(ends <= pair for pair in pairs)


@pytest.mark.parametrize("name", OWN)
async def test_a_hostile_field_is_named_and_changes_nothing(stack: Stack, name: str) -> None:
    requests = await valid_requests(stack)
    async with stack.channel(name) as channel, stack.ops_channel(name) as ops:
        with psycopg.connect(stack.database_url) as lock, psycopg.connect(stack.database_url, autocommit=True) as conn:
            lock.execute("LOCK TABLE rollups IN SHARE UPDATE EXCLUSIVE MODE")  # the job of hourly sums writes nothing
            for rpc in rpcs(name, channel, ops):
                valid = rpc.kind(**requests[rpc.method.name])
                before = await contents(conn)
                for path, data in hostile(valid):
                    try:
                        succeeded = await outcome(rpc, data, path)
                        if rpc.reads:
                            continue
                        after = await contents(conn)
                        assert succeeded or before == after
                        before = after
                    except AssertionError as error:
                        raise AssertionError(f"{rpc.method.name} {path} {data[:200]!r}: {error}") from error
                assert await contents(conn) == before


@pytest.mark.parametrize("name", OWN)
async def test_requests_without_hostile_fields_succeed(stack: Stack, name: str) -> None:
    requests = await valid_requests(stack)
    async with stack.channel(name) as channel, stack.ops_channel(name) as ops:
        for rpc in rpcs(name, channel, ops):
            valid = rpc.kind(**requests[rpc.method.name])
            assert await outcome(rpc, valid.SerializeToString()) or rpc.method.name == "IngestWebhook"


@pytest.mark.parametrize("name", OWN)
async def test_bytes_that_are_not_a_message_are_refused(stack: Stack, name: str) -> None:
    async with stack.channel(name) as channel, stack.ops_channel(name) as ops:
        for rpc in rpcs(name, channel, ops):
            for data in RAW:
                error = await failure(rpc.call(data))
                assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST")


def messages(kind: Any) -> st.SearchStrategy[Message]:
    """Return a strategy of messages with arbitrary or nearly valid fields."""
    right = [SALON, PHONE, str(UUID(int=1)), "Europe/Berlin", "EUR", "wamid.1", "ABC234", "query:*", "stats"]
    words = st.one_of(st.sampled_from(right), st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
    numbers = st.one_of(st.integers(0, 5), st.integers(-(2**31), 2**31 - 1))
    times = st.one_of(st.sampled_from(MOMENTS), st.tuples(st.integers(0, 4 * 10**9), st.integers(0, 10**9 - 1)))
    plain: st.SearchStrategy[Any]
    fields: dict[str, st.SearchStrategy[Any]] = {}
    for field in kind.DESCRIPTOR.fields:
        if field.message_type is None:
            scalars = {field.TYPE_STRING: words, field.TYPE_BYTES: st.binary(max_size=50)}
            plain = scalars.get(field.type, numbers)
        elif field.message_type.name == "Timestamp":
            plain = times.map(lambda pair: {"seconds": pair[0], "nanos": pair[1]})
        else:
            plain = messages(GetMessageClass(field.message_type))
        fields[field.name] = st.lists(plain, max_size=3) if field.is_repeated else plain
    return st.fixed_dictionaries({}, optional=fields).map(lambda values: kind(**values))


@pytest.mark.parametrize("name", OWN)
@settings(
    max_examples=50,
    deadline=None,
    phases=[Phase.generate],
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
async def test_no_message_breaks_a_server(stack: Stack, name: str, data: st.DataObject) -> None:
    async with stack.channel(name) as channel, stack.ops_channel(name) as ops:
        for rpc in rpcs(name, channel, ops):
            request = data.draw(messages(rpc.kind), rpc.method.name)
            await outcome(rpc, request.SerializeToString())


async def test_an_error_with_many_violations_reaches_its_caller(stack: Stack) -> None:
    wrong = [{"day_of_week": 9, "open_time": {"hours": 99}, "close_time": {"minutes": 99}}] * 70
    error = await failure(salon(stack, opening_hours=wrong))
    assert error.reason == "INVALID_FIELD"
    assert "salon.opening_hours[0].day_of_week" in error.fields


async def test_a_request_that_is_too_large_is_refused(stack: Stack) -> None:
    async with stack.channel("messaging") as channel, stack.ops_channel("messaging") as ops:
        rpc = rpcs("messaging", channel, ops)[0]
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await rpc.call(b"\x0a" * (16 * 1024 * 1024 + 1))
        assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        if os.environ.get("SERVER_TRANSPORT") != "grpcio":
            assert read_failure(error.value).reason == "REQUEST_TOO_LARGE"


async def test_a_page_of_large_rows_fits_the_message_limit_of_clients(stack: Stack) -> None:
    await salon(stack)
    recorded = [
        await stack.messaging.RecordMessage(message_request(f"wamid.{number}", content="💇" * 65_536))
        for number in range(17)
    ]
    listed: list[Any] = []
    token = ""
    while len(listed) < len(recorded):
        reply = await stack.messaging.ListMessages(ListMessagesRequest(salon_id=SALON, page_token=token))
        listed += reply.messages
        token = reply.next_page_token
    assert (listed, token) == (recorded[::-1], "")
    request = GetConversationRequest(salon_id=SALON, phone_number=PHONE, message_limit=17)
    conversation = await stack.messaging.GetConversation(request)
    assert list(conversation.messages) == listed[: len(conversation.messages)]
    assert len(conversation.messages) >= 10
