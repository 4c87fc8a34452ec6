"""Requests up to the size limit of their method block the event loop briefly and take little memory."""

from __future__ import annotations  # the AsyncStubs exist in the .pyi only

import asyncio
import gc
import os
import threading
import time
import timeit
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
import uvloop
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from libs.server.validation import LARGEST_REQUEST_BYTES, MAX_FIELDS, UNCOUNTED_BYTES
from parlor.booking.v1 import booking_pb2 as pb
from services.messaging.service import LARGEST_REQUESTS
from tests.hostile import OWN, valid_requests
from tests.http2_abuse.server import Holds
from tests.stack import SALON, Fields, Stack, read_failure, running
from tests.test_rules import METHODS

MIB = 2**20
MOST_SECONDS = 0.02
# grpcio's server itself inflates 9 MB on the event loop in 19.5 ms (2 cores, nothing else running): with any other work
# it takes longer.
TRIES = 8 if os.environ.get("SERVER_TRANSPORT") == "grpcio" else 3
MOST_MEMORY = 64 * MIB
OPTIONS = [("grpc.max_send_message_length", 16 * MIB), ("grpc.max_receive_message_length", 16 * MIB)]
ITEMS = [b"", b"\0", b"A", b"\xff", b"ABC234", b"x" * 65, b"\x08\x01", b"\x12\x00" * 20, bytes(1000)]
OUTCOMES = {
    *(grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED),
    *(grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.FAILED_PRECONDITION),
    *(grpc.StatusCode.ABORTED, grpc.StatusCode.ALREADY_EXISTS),
}


class Served:
    """The three services on a separate event loop, whose blocking is measured."""

    def __init__(self, stack: Stack, holds: Holds, loop: asyncio.AbstractEventLoop, exits: ExitStack) -> None:
        """Connect to the services."""
        self.stack = stack
        self._holds = holds
        self._loop = loop
        self._channels = {
            name: exits.enter_context(grpc.insecure_channel(f"127.0.0.1:{port}", OPTIONS))
            for name, port in {
                **{name: server.port for name, server in stack.servers.items()},
                "ops": stack.servers["booking"].ops_port,
            }.items()
        }
        self.requests: dict[str, dict[str, Any]] = asyncio.run_coroutine_threadsafe(
            valid_requests(stack), loop
        ).result()

    def call(self, method: MethodDescriptor, data: bytes, compressed: bool) -> grpc.StatusCode:
        """Call a method with bytes; check what that cost, the least of a few calls: the machine may be busy."""
        error = self.error(method, data, compressed)
        return grpc.StatusCode.OK if error is None else error.code()

    def error(self, method: MethodDescriptor, data: bytes, compressed: bool) -> Any:
        """Do what `call` does; return the grpc.RpcError, None if the call succeeded."""
        for number in range(TRIES):
            if number:
                time.sleep(1)
            error, longest, memory = self.measure(method, data, compressed)
            if longest < MOST_SECONDS:
                break
        what = f"{method.name}, {len(data)} bytes, {data[:40]!r}, compressed {compressed}, {error!r}"
        assert memory < MOST_MEMORY, what
        assert longest < MOST_SECONDS, what
        return error

    def measure(self, method: MethodDescriptor, data: bytes, compressed: bool) -> tuple[Any, float, int]:
        """Call a method; return its error, how long it held the loop at most, in s, and the bytes that it took."""
        service = method.containing_service
        channel = self._channels[next((name for name in OWN if f".{name}." in service.full_name), "ops")]
        path = f"/{service.full_name}/{method.name}"
        call: Any = channel.unary_stream(path) if method.server_streaming else channel.unary_unary(path)
        self._loop.call_soon_threadsafe(self._holds.clear)
        before = peak(reset=True)
        failed = None
        try:
            reply = call(data, timeout=30, compression=grpc.Compression.Gzip if compressed else None)
            if method.server_streaming:
                next(reply)
                reply.cancel()
        except grpc.RpcError as error:
            failed = error
        return failed, self._holds.longest_cpu, peak() - before


def peak(*, reset: bool = False) -> int:
    """Return the peak of resident memory of this process since the last reset, in bytes."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


@contextmanager
def on_own_loop(serve: Callable[[Future[Stack], asyncio.Event], Coroutine[Any, Any, None]]) -> Iterator[Any]:
    """Run `serve` on an event loop in a thread; yield what it sets, and the loop; then set its event and wait."""
    loop, over, ready = uvloop.new_event_loop(), asyncio.Event(), Future[Stack]()
    thread = threading.Thread(target=lambda: loop.run_until_complete(serve(ready, over)))
    thread.start()
    try:
        yield ready.result(60), loop
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(60)
        loop.close()


@pytest.fixture
def served(database_url: str, redis_url: str) -> Iterator[Served]:
    holds: list[Holds] = []

    async def serve(ready: Future[Stack], over: asyncio.Event) -> None:
        try:
            async with running(database_url, redis_url) as stack:
                holds.append(Holds())
                holds[0].sample()
                gc.collect()
                gc.freeze()  # a full garbage collection of a test run takes longer than the limit for requests
                ready.set_result(stack)
                await over.wait()
                holds[0].end()
        except BaseException as error:
            if not ready.done():
                ready.set_exception(error)
            raise

    with ExitStack() as exits, on_own_loop(serve) as (stack, loop):
        yield Served(stack, holds[0], loop, exits)
    gc.unfreeze()


def largest(method: MethodDescriptor) -> int:
    """Return the size of the largest request of a method, in bytes."""
    return LARGEST_REQUESTS.get(method.name, LARGEST_REQUEST_BYTES)


def varint(number: int) -> bytes:
    """Return a number as a Protobuf varint."""
    parts = []
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


def field(number: int, value: bytes) -> bytes:
    """Return a length-delimited field."""
    return varint(number << 3 | 2) + varint(len(value)) + value


def filled(path: tuple[int, ...], repeated: int, item: bytes, size: int) -> bytes:
    """Return `size` bytes of the field with this path of numbers, repeated at one of its levels."""
    for number in reversed(path[repeated:]):
        item = field(number, item)
    item *= max(1, (size - 6 * repeated) // len(item))
    for number in reversed(path[:repeated]):
        item = field(number, item)
    return item


@lru_cache
def paths(kind: Descriptor) -> list[tuple[int, ...]]:
    """Return the paths of all length-delimited fields, and of one unknown field."""
    found: list[tuple[int, ...]] = [(1999,)]
    for each in kind.fields:
        if each.message_type is not None:
            found += [(each.number, *path) for path in paths(each.message_type)]
        if each.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES, FieldDescriptor.TYPE_MESSAGE):
            found.append((each.number,))
    return found


class Large(NamedTuple):
    """A request: valid fields or none, then `size` bytes of a field, repeated at a level of its path."""

    name: str
    valid: bool
    path: tuple[int, ...]
    level: int
    item: bytes
    size: int
    compressed: bool


@st.composite
def large_requests(draw: st.DrawFn) -> Large:
    method = draw(st.sampled_from(METHODS))
    path = draw(st.sampled_from(paths(method.input_type)))
    level, item = draw(st.integers(0, len(path) - 1)), draw(st.sampled_from(ITEMS))
    size = largest(method) // draw(st.sampled_from([1, 2, 3, 8]))
    return Large(method.name, draw(st.booleans()), path, level, item, size, draw(st.booleans()))


def method_of(name: str) -> MethodDescriptor:
    return next(method for method in METHODS if method.name == name)  # type: ignore[no-any-return]


@settings(
    max_examples=300,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(large=large_requests())
@example(large=Large("BatchGetBookings", True, (2,), 0, b"", 20_000, False))
@example(large=Large("BatchGetBookings", True, (2,), 0, b"", 260_000, True))
@example(large=Large("UpsertSalon", True, (1, 6), 1, b"", 40_000, False))
@example(large=Large("UpsertSalon", True, (1, 10), 1, b"", 790, False))
@example(large=Large("TagConversation", True, (5,), 0, b"", 260_000, True))
@example(large=Large("SearchAvailability", True, (2,), 0, b"", 260_000, True))
@example(large=Large("RecordMessage", True, (6,), 0, "💇".encode() * 65_536, 300_000, False))
def test_no_request_holds_the_event_loop_or_takes_much_memory(served: Served, large: Large) -> None:
    method = method_of(large.name)
    before = GetMessageClass(method.input_type)(**served.requests[large.name]) if large.valid else None
    data = b"" if before is None else before.SerializeToString()
    data += filled(large.path, large.level, large.item, large.size - len(data))
    assert len(data) <= largest(method)
    assert served.call(method, data, large.compressed) in OUTCOMES


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("BatchGetBookings", b"\x12\0" * 500_000),
        ("BatchGetBookings", b"\x12\0" * 7_000_000),
        ("UpsertSalon", field(1, b"\x32\0" * 1_000_000)),
        ("GetSalon", b"\x0a\0" * 1_000_000),
        ("GetCacheStatistics", b"\x0a\0" * 1_000_000),
        ("RecordMessage", field(6, b"x" * 600_000)),
    ],
)
@pytest.mark.parametrize("compressed", [False, True])
def test_a_request_beyond_its_methods_limit_is_refused(
    served: Served, name: str, more: bytes, compressed: bool
) -> None:
    assert served.call(method_of(name), more, compressed) is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("name", ["GetSalon", "RecordMessage", "IngestWebhook"])
@pytest.mark.parametrize("compressed", [False, True])
def test_the_size_limit_applies_to_the_uncompressed_message(served: Served, name: str, compressed: bool) -> None:
    method = method_of(name)
    exact = field(1999, bytes(largest(method) - len(varint(1999 << 3)) - len(varint(largest(method)))))
    assert len(exact) == largest(method)
    assert served.call(method, exact, compressed) is grpc.StatusCode.INVALID_ARGUMENT
    assert served.call(method, exact + b"\0", compressed) is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(
    "item",
    [
        b"\x0a\0",  # payload, empty
        b"\x12\x01a",  # signature
        b"\x0a\0\x12\0",
        b"\x08\x01",  # payload's number with the type of an int
        b"\x78\x01",  # an unknown int
        b"\x7a\0",  # an unknown text
        b"\x7d\0\0\0\0",  # an unknown fixed32
        b"\x79" + bytes(8),  # an unknown fixed64
        b"\x7b\x7c",  # a group
        b"\x80",  # a tag without an end
    ],
)
@pytest.mark.parametrize("compressed", [False, True])
def test_a_large_request_of_many_fields_is_refused_before_it_is_parsed(
    served: Served, item: bytes, compressed: bool
) -> None:
    method = method_of("IngestWebhook")
    data = item * (largest(method) // len(item))
    failed = read_failure(served.error(method, data, compressed))
    assert (failed.code, failed.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST")
    assert str(MAX_FIELDS) in failed.message


def test_a_large_request_of_one_group_is_refused(served: Served) -> None:
    data = b"\x7b" + b"\x78\x01" * UNCOUNTED_BYTES + b"\x7c"
    assert read_failure(served.error(method_of("IngestWebhook"), data, False)).reason == "MALFORMED_REQUEST"


@pytest.mark.parametrize(
    ("count", "reason"), [(MAX_FIELDS, "INVALID_SIGNATURE"), (MAX_FIELDS + 1, "MALFORMED_REQUEST")]
)
def test_a_large_request_has_up_to_1000_fields(served: Served, count: int, reason: str) -> None:
    # field 15 is not known: its values are a text, an int, a fixed64, and a fixed32
    unknown = [field(15, b"x"), b"\x78\x96\x01", b"\x79" + bytes(8), b"\x7d" + bytes(4)]
    data = b"".join(unknown[n % 4] for n in range(count - 1)) + field(1, bytes(UNCOUNTED_BYTES))
    assert read_failure(served.error(method_of("IngestWebhook"), data, False)).reason == reason


def test_a_request_whose_fields_are_not_counted_is_parsed_within_5_ms() -> None:
    for method in METHODS:
        parse = GetMessageClass(method.input_type).FromString
        data = b"\x08\x01\x12\0" * (min(largest(method), UNCOUNTED_BYTES) // 4)
        assert min(timeit.repeat(lambda: parse(data), timer=time.thread_time, number=1, repeat=5)) < 0.005  # noqa: B023


def test_a_request_whose_fields_are_counted_has_no_nested_messages() -> None:
    for method in METHODS:
        if largest(method) > UNCOUNTED_BYTES:
            assert all(each.message_type is None for each in method.input_type.fields), method.name


def test_the_longest_lists_that_are_allowed_hold_nobody_up(served: Served) -> None:
    times = {"open_time": {"hours": 9}, "close_time": {"hours": 18}}
    dates = [
        {"date": {"year": 2026 + n // 300, "month": 1 + n // 28 % 12, "day": 1 + n % 28}, **times} for n in range(400)
    ]
    days: list[Any] = [{"day_of_week": 1 + n % 7, **times} for n in range(70)]
    salon: Fields = {"salon_id": SALON, "phone_number_id": "1", "name": "n" * 200, "time_zone": "Europe/Berlin"}
    upsert = pb.UpsertSalonRequest(salon={**salon, "opening_hours": days, "special_hours": dates})  # type: ignore[arg-type]
    served.call(method_of("UpsertSalon"), upsert.SerializeToString(), False)
    last_is_wrong = field(1, pb.Salon(opening_hours=days[:69]).SerializeToString() + b"\x32\0")
    served.call(method_of("UpsertSalon"), upsert.SerializeToString() + last_is_wrong, False)
