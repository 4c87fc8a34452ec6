"""Sends random requests to every RPC of running services, and checks each answer."""

from __future__ import annotations

import asyncio
import base64
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any, NamedTuple

import grpc
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from parlor.booking.v1.booking_pb2 import CreateTimeOffRequest, UpsertResourceRequest, UpsertServiceRequest
from parlor.messaging.v1.messaging_pb2 import MESSAGE_DIRECTION_OUTBOUND, MESSAGE_TYPE_TEMPLATE
from parlor.ops.v1 import ops_pb2
from tests.callers import Issuer, bearer
from tests.fuzz import bodies
from tests.fuzz.callers import Callers, plant
from tests.fuzz.messages import HOUR, Messages
from tests.fuzz.words import Words
from tests.hostile import OWN, TIMES, mine, valid_requests
from tests.processes import Processes, stubs
from tests.stack import Fields, Stack, booking_request, message_request

REQUEST_TIMEOUT = 30.0  # of the services, in s
HANGS = REQUEST_TIMEOUT + 10
NEVER = {"INTERNAL", "UNKNOWN", "UNAVAILABLE", "UNIMPLEMENTED", "DATA_LOSS", "CANCELLED"}
BUSY = {"CACHE_UNAVAILABLE"}  # Redis took more than 90 ms, which happens on a busy machine; the caller may try again
LARGEST_ERROR = 8 * 1024  # what clients accept
LEARNED = 0.1  # of the replies
PLANTED = 50  # rows of each kind that requests delete, finish or erase
TEMPLATE = {"direction": MESSAGE_DIRECTION_OUTBOUND, "type": MESSAGE_TYPE_TEMPLATE}  # may be sent at any time
MAX_AGES = ("no-cache", "max-age=0", "max-age=60", "max-age=" + "9" * 5000, "max-age=-1", "x" * 3000)
TRACES = ("00-" + "a" * 32 + "-" + "b" * 16 + "-01", "x", "\x7e" * 2000)
OPTIONS = [("grpc.max_send_message_length", 2**24), ("grpc.max_receive_message_length", 2**24)]  # of channels
GZIP = grpc.Compression.Gzip
BOMB = b"\x0a\x80\x80\x80\x04" + bytes(2**23)  # a field of 8 MB, which gzip makes small


class Channels(NamedTuple):
    """The channels to a service's own port, and to that of its OpsService."""

    own: grpc.aio.Channel
    ops: grpc.aio.Channel


class Request(NamedTuple):
    """The bytes of a request, and how it is sent. `timeout` in s is the caller's; None waits for the service."""

    data: bytes
    metadata: tuple[tuple[str, Any], ...] = ()
    compression: grpc.Compression | None = None
    timeout: float | None = None


class Finding(NamedTuple):
    """A request with a wrong answer."""

    rpc: str
    wrong: str
    request: Request

    def __str__(self) -> str:
        """Return what is wrong, and the request."""
        data = base64.b64encode(self.request.data).decode()
        sent = f"{len(self.request.data)} bytes: {data[:2000]}"
        return f"{self.rpc}: {self.wrong}\n  {self.request[1:]}\n  base64 of {sent}"


@dataclass
class Target:
    """One RPC: how to call it, a valid request if there is one, and what has come of its calls."""

    name: str
    method: Any
    call: Callable[[Request], Any]
    valid: Message | None
    codes: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0


async def _connect(running: Processes, exits: AsyncExitStack) -> dict[str, Channels]:
    """Return new channels to the services, by name."""
    found = {}
    for name, service in running.services.items():
        ports = service.port, running.ops_ports[name]
        own, ops = [grpc.aio.insecure_channel(f"127.0.0.1:{port}", OPTIONS) for port in ports]
        found[name] = Channels(await exits.enter_async_context(own), await exits.enter_async_context(ops))
    return found


def targets(channels: Mapping[str, Channels], valid: Mapping[str, Fields]) -> list[Target]:
    """Return every RPC of the services, found in their descriptors: `channels` are by the service's name.

    `valid` has the fields of a valid request by the RPC's name; an RPC without one is called all the same.
    """
    found = []
    for name, (own, ops) in channels.items():
        modules = [(OWN[name], own), (health_pb2, own), (reflection_pb2, own), (ops_pb2, ops)]
        services = [(each, port) for file, port in modules for each in file.DESCRIPTOR.services_by_name.values()]
        for service, channel in services:
            for method in service.methods:
                kind = GetMessageClass(method.input_type)
                fields = valid.get(method.name)
                message = kind(**fields) if fields is not None else None
                shown = f"{name} {service.name}.{method.name}"
                found.append(Target(shown, method, _caller(channel, service, method), message))
    return found


def _caller(channel: grpc.aio.Channel, service: Any, method: Any) -> Callable[[Request], Any]:
    """Return a function that sends a request and returns the first reply."""
    path = f"/{service.full_name}/{method.name}"
    streams = method.client_streaming, method.server_streaming
    kinds: dict[tuple[bool, bool], Any] = {
        (False, False): channel.unary_unary,
        (False, True): channel.unary_stream,
        (True, True): channel.stream_stream,
    }
    start: Any = kinds[streams](path)

    async def call(request: Request) -> Any:
        options = {
            "metadata": request.metadata,
            "timeout": HANGS if request.timeout is None else request.timeout,
            "compression": request.compression,
        }
        if not method.server_streaming:
            return await start(request.data, **options)
        replies = start(iter([request.data]) if method.client_streaming else request.data, **options)
        try:
            reply = await replies.read()
        finally:
            replies.cancel()
        return b"" if reply is grpc.aio.EOF else reply

    return call


class Fuzzer:
    """Makes requests and records what comes of them."""

    def __init__(self, targets: list[Target], seed: int, callers: Callers | None = None) -> None:
        """All randomness comes from the seed; answers still depend on the order of concurrent calls.

        Without `callers` the calls have no identity.
        """
        self.targets, self.seed = targets, seed
        self.findings: list[Finding] = []
        self.is_stopped = False
        self.callers = callers
        self._turns = itertools.cycle(targets)
        self._random = Random(seed)
        self._words = Words(self._random)
        self._messages = Messages(self._random, self._words)

    async def plant(self, stack: Stack) -> None:
        """Write rows that requests delete, finish or erase: many, so that those which succeed leave some to others."""
        for number in range(PLANTED):
            name, phone = f"planted-{number}", f"+49151200{number:05}"
            resource = UpsertResourceRequest(**mine(resource_id=name, name=name))
            service = UpsertServiceRequest(**mine(service_id=name, name=name, duration={"seconds": HOUR}))
            booking = booking_request(1_900_000_000 + number * 2 * HOUR, customer_phone=phone)
            unsent = message_request("", phone_number=phone, **TEMPLATE)
            self._words.plant(await stack.booking.UpsertResource(resource))
            self._words.plant(await stack.booking.UpsertService(service))
            self._words.plant(await stack.booking.CreateTimeOff(CreateTimeOffRequest(**mine(**TIMES))))
            self._words.plant(await stack.booking.CreateBooking(booking))
            self._words.plant(await stack.messaging.RecordMessage(unsent))

    async def run(self, count: int, in_flight: int, sent: Callable[[], object] = lambda: None) -> None:
        """Send `count` requests, to each RPC in turn; call `sent` after each. `is_stopped` ends it early."""
        numbers = iter(range(count))

        async def work() -> None:
            for _ in numbers:
                if self.is_stopped:
                    return
                await self._send(next(self._turns))
                sent()

        async with asyncio.TaskGroup() as group:
            for _ in range(in_flight):
                group.create_task(work())

    async def _send(self, target: Target) -> None:
        request, code, wrong, reply = self._request(target), "OK", "", b""
        caller = self.callers.any() if self.callers else None
        if caller is not None:
            request = request._replace(metadata=request.metadata + caller.metadata)
        began = time.perf_counter()
        try:
            reply = await target.call(request)
        except grpc.aio.AioRpcError as error:
            code, wrong, reply = error.code().name, _wrong(error, request), _said(error)
        else:
            wrong = self._learn(target, reply)
        seconds = time.perf_counter() - began
        if caller is not None and self.callers is not None:
            wrong = wrong or self.callers.wrong(caller, target.method, request.data, code, reply)
        target.codes[code] += 1
        target.slowest = max(target.slowest, seconds)
        if seconds > REQUEST_TIMEOUT:
            wrong = wrong or f"took {seconds:.1f} s"
        if wrong:
            self.findings.append(Finding(target.name, wrong, request))

    def _learn(self, target: Target, reply: bytes) -> str:
        """Parse some replies and keep their texts; return what is wrong."""
        if self._random.random() > LEARNED:
            return ""
        try:
            self._words.learn(GetMessageClass(target.method.output_type).FromString(reply))
        except Exception as error:
            return f"the reply is unreadable: {error}"
        return ""

    def _request(self, target: Target) -> Request:
        random, data = self._random, self._data(target)
        if random.random() < 0.9:
            return Request(data)
        metadata: list[tuple[str, str | bytes]] = []
        if random.random() < 0.5:
            odd = ("cache-control", random.choice(MAX_AGES)), ("traceparent", random.choice(TRACES))
            metadata.append(random.choice(odd))
        if random.random() < 0.2:
            metadata.append(("x-number-bin", random.randbytes(random.choice((0, 1, 2000)))))
        if is_bomb := random.random() < 0.005:
            data += BOMB
        hurries = random.random() < 0.2 and not target.method.client_streaming  # else grpc.aio itself fails: INTERNAL
        timeout = random.choice((0.0005, 0.002, 0.01, 0.1)) if hurries else None
        return Request(data, tuple(metadata), GZIP if is_bomb or random.random() < 0.5 else None, timeout)

    def _data(self, target: Target) -> bytes:
        random, messages, valid, how = self._random, self._messages, target.valid, self._random.random()
        if target.method.name == "IngestWebhook" and random.random() < 0.8:
            return bytes(bodies.request(random).SerializeToString())
        if how < 0.05:
            return messages.raw()
        if valid is None or how < 0.15:
            message = messages.arbitrary(GetMessageClass(target.method.input_type))
        else:
            message = messages.valid(valid) if how < 0.4 else messages.nearly_valid(valid)
        data: bytes = message.SerializeToString()
        return messages.spoilt(data) if how > 0.9 else data


@asynccontextmanager
async def fuzzing(running: Processes, seed: int, issuer: Issuer | None = None) -> AsyncIterator[Fuzzer]:
    """Fill the database of new services, and yield their fuzzer; with an issuer its calls are those of `Callers`."""
    connect = bearer(issuer.token()) if issuer else grpc.aio.insecure_channel
    async with AsyncExitStack() as exits:
        stack = await exits.enter_async_context(stubs(running, connect))
        valid = await valid_requests(stack)
        await plant(stack)
        found = targets(await _connect(running, exits), valid)
        fuzzer = Fuzzer(found, seed, Callers(issuer, Random(seed)) if issuer else None)
        await fuzzer.plant(stack)
        yield fuzzer


def _details(error: grpc.aio.AioRpcError) -> bytes:
    return bytes(dict(error.trailing_metadata() or ()).get("grpc-status-details-bin", b""))


def _said(error: grpc.aio.AioRpcError) -> bytes:
    """Return all texts of an error."""
    return (error.details() or "").encode() + _details(error)


def _wrong(error: grpc.aio.AioRpcError, request: Request) -> str:
    """Return what is wrong with an error, "" if nothing is."""
    code, details = error.code().name, error.details() or ""
    if code == "DEADLINE_EXCEEDED":
        return "" if request.timeout is not None else f"DEADLINE_EXCEEDED: {details}"
    status = Status.FromString(_details(error))
    info = ErrorInfo()
    if status.details and not status.details[0].Unpack(info):
        return f"{code}: an error without ErrorInfo"
    if code in NEVER and info.reason not in BUSY:
        return f"{code}: {details[:500]}"
    if len(details) + status.ByteSize() > LARGEST_ERROR:
        return f"{code}: an error of {len(details)} and {status.ByteSize()} bytes"
    return ""


def summary(targets: list[Target]) -> Iterator[tuple[str, int, str, float]]:
    """Yield each RPC's name, number of calls, codes, and slowest call in ms."""
    for target in targets:
        codes = ", ".join(f"{code} {count}" for code, count in target.codes.most_common())
        yield target.name, target.codes.total(), codes, target.slowest * 1000
