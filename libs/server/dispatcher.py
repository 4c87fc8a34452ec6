"""Everything that happens to an RPC besides its work.

It has the request read and validated (requests.py), limits how many are under way and how long one takes, reads
`cache-control`, calls the handler, answers its reply or the error that it raised, and counts.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import grpc
import psycopg
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions
from google.protobuf.message import Message
from prometheus_client import CollectorRegistry

from libs.cache import MAX_AGE, Cache, Read, Reply
from libs.db import STATEMENT_LOST
from libs.server import errors
from libs.server.deadlines import Deadlines
from libs.server.failure_log import FailureLog
from libs.server.idempotency import Replayed
from libs.server.metrics import RpcMetrics
from libs.server.settings import ServerSettings
from libs.server.validation import LARGEST_REQUEST_BYTES, Requests

Handler: TypeAlias = Callable[[Any, Any], Awaitable[Any]]
Constraints: TypeAlias = Mapping[str, Callable[[Any], errors.RpcError]]

# A client that is told to come back in errors.RETRY_MS is silent for longer than these together. Several short looks:
# after a single long one, in which a busy machine gave the process no time, calls may wait that nobody has seen yet.
QUIET_SECONDS = 0.02
QUIET_LOOKS = 5
MOST_LOOKS = 50

# Requests that a method has found valid, so many of at most so many bytes each.
MOST_SEEN = 2000
LARGEST_SEEN = 512
LARGE_REQUEST_BYTES = 2**20

# Worth one more try: the transactions were in each other's way, a code made at random was taken, or a pooler has lost a
# prepared statement, after which none is prepared.
RETRIED = (
    psycopg.errors.DeadlockDetected,
    psycopg.errors.SerializationFailure,
    psycopg.errors.UniqueViolation,
    *STATEMENT_LOST,
)


class Dispatcher(grpc.GenericRpcHandler):
    """Every method of our own services, wrapped.

    Stands where a server takes handlers, and is told them by the generated `add_…Servicer_to_server`. A handler that is
    registered with grpc as well, or wrapped by an interceptor of grpc's, costs up to a third more an RPC (measured).
    """

    def __init__(
        self,
        settings: ServerSettings,
        constraints: Constraints,
        registry: CollectorRegistry,
        cache: Cache,
        largest_requests: Mapping[str, int],
    ) -> None:
        """Prepare; `constraints` says what the violation of a named constraint means to a request.

        `largest_requests` are sizes in bytes, by the name of the method, where they aren't LARGEST_REQUEST_BYTES.
        """
        self.cache = cache
        self.loop = asyncio.get_running_loop()  # kept: on Python 3.11 each question for it is a system call
        self.limit = settings.max_concurrent_rpcs
        self.deadlines = Deadlines(settings.request_timeout / 1000)
        self.constraints = constraints
        self.draining = False
        self.refused = 0
        self.largest_requests: dict[str, int] = {}
        self._largest_by_name = largest_requests
        self.metrics = RpcMetrics()
        registry.register(self.metrics)
        self._calls: dict[str, tuple[_Call, Any]] = {}

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """Take no handler twice."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Wrap the methods of a service."""
        for name, handler in handlers.items():
            method = f"/{service}/{name}"
            described = descriptor_pool.Default().FindServiceByName(service).methods_by_name[name]
            largest = self._largest_by_name.get(name, LARGEST_REQUEST_BYTES)
            self.largest_requests[method] = largest
            requests = Requests(described, handler.request_deserializer, largest)
            call = _Call(self, method, handler.unary_unary, requests, is_read=_is_read(described))
            self._calls[method] = call, grpc.unary_unary_rpc_method_handler(call.answer)  # bytes in, bytes out

    def service(self, handler_call_details: Any) -> Any:
        """Return the wrapped handler of a method, None if it is none of ours."""
        if (found := self._calls.get(handler_call_details.method)) is None:
            return None
        call, wrapped = found
        for name, value in handler_call_details.invocation_metadata or ():
            if name == "cache-control":
                return grpc.unary_unary_rpc_method_handler(partial(call.answer_no_older, _max_age(value)))
        return wrapped

    async def drain(self) -> None:
        """Refuse RPCs from now on; return once none comes any more, or after a second.

        A server that stops at once tells the RPCs that it has received and not yet begun CANCELLED, which no client
        retries: under load most of those that were on their way.
        """
        self.draining = True
        quiet = 0
        for _ in range(MOST_LOOKS):
            before = self.refused
            await asyncio.sleep(QUIET_SECONDS)
            quiet = quiet + 1 if self.refused == before else 0
            if quiet == QUIET_LOOKS:
                return


class _Seen(NamedTuple):
    """A request that was read and found valid; the read that answers it, if that depends on its bytes alone."""

    request: Message
    again: Read | None


class _Call:
    """One method, wrapped.

    A request to read whose bytes were seen before is not parsed and validated again, nor is its key made anew where it
    follows from the bytes: each takes an eighth of an echo or more (measured). Handlers don't change requests.
    """

    def __init__(self, owner: Dispatcher, method: str, handler: Handler, requests: Requests, *, is_read: bool) -> None:
        self._owner = owner
        self._method = method.removeprefix("/")
        self._requests = requests
        self._failures = FailureLog(self._method)
        self._handler = handler
        self._largest_seen = LARGEST_SEEN if is_read else -1
        self._seen: dict[bytes, _Seen] = {}

    async def answer(self, data: bytes, context: Any) -> bytes:
        """Answer one RPC; at once if this process knows the reply."""
        owner = self._owner
        seen = self._seen.get(data) if len(data) <= self._largest_seen else None  # a hash of 8 MB takes 2 ms
        key = seen.again.key if seen is not None and seen.again is not None else None
        if key is not None and key.tag.namespace.near and not owner.draining:
            started = time.perf_counter()
            if (reply := owner.cache.near(key)) is not None and reply.body is not None:
                owner.metrics.add(self._method, "OK", time.perf_counter() - started)
                return _reply(reply, context)
        return await self._answer(data, context, seen)

    async def _answer(self, data: bytes, context: Any, seen: _Seen | None) -> bytes:
        owner, started, code = self._owner, time.perf_counter(), "OK"
        task: Any = asyncio.current_task(owner.loop)
        request: Message | None = None
        raised: BaseException | None = None
        reason = ""
        owner.deadlines.begin(task)
        try:
            if owner.draining:
                owner.refused += 1
                raise errors.unavailable("DRAINING", "the service is about to end")
            if len(owner.deadlines) > owner.limit:
                raise errors.exhausted("OVERLOADED", "the service has too many requests under way")
            if seen is None:
                if len(data) > LARGE_REQUEST_BYTES:
                    await asyncio.sleep(0)  # joining its parts took 10 ms of this tick for 8 MB
                request = self._requests.parse(data)
                self._requests.check(request)
            else:
                request = seen.request
                if seen.again is not None and (reply := await owner.cache.resolve(seen.again)).body is not None:
                    return _reply(reply, context)
            reply = await self._handle(request, context)
            if len(data) <= self._largest_seen and (seen is None or seen.again is None):
                self._see(data, request, reply)
            return _reply(reply, context)
        except asyncio.CancelledError:
            code = reason = "CANCELLED"
            if not owner.deadlines.expired(task):
                raise
            error = errors.query_timeout()
            code, reason = error.code.name, error.reason
        except Exception as exception:
            error = errors.of_exception(exception, owner.constraints, request)
            code, reason, raised = error.code.name, error.reason, exception
        finally:
            owner.deadlines.end(task)
            seconds = time.perf_counter() - started
            owner.metrics.add(self._method, code, seconds)
            if reason:
                self._failures.add(code, reason, seconds, context.invocation_metadata(), request, raised)
                raised = None  # its traceback refers to this frame: a cycle, for the garbage collector to find
        await context.abort(error.code, error.message, error.trailing_metadata())
        raise AssertionError  # abort raises

    def _see(self, data: bytes, request: Message, reply: Any) -> None:
        """Remember a request, instead of the oldest."""
        if len(self._seen) >= MOST_SEEN:
            del self._seen[next(iter(self._seen))]
        self._seen[data] = _Seen(request, getattr(reply, "again", None))

    async def answer_no_older(self, max_age: int | None, data: bytes, context: Any) -> bytes:
        """Answer one RPC whose caller says how old a reply may be, in s."""
        MAX_AGE.set(max_age)
        return await self._answer(data, context, self._seen.get(data))

    async def _handle(self, request: Message, context: Any) -> Any:
        try:
            try:
                return await self._handler(request, context)
            except RETRIED as error:
                if error.diag.constraint_name in self._owner.constraints:
                    raise
                await asyncio.sleep(random.uniform(0.001, 0.01))  # noqa: S311
                return await self._handler(request, context)
        except Replayed as replayed:
            return replayed.body


def _is_read(method: MethodDescriptor) -> bool:
    """Say whether a method has no side effects."""
    return bool(method.GetOptions().idempotency_level == MethodOptions.NO_SIDE_EFFECTS)


def _max_age(cache_control: str) -> int | None:
    if cache_control == "no-cache":
        return 0
    name, _, seconds = cache_control.partition("=")
    return int(seconds) if name == "max-age" and seconds.isdecimal() else None


_FRESHNESS = {source: ("x-cache", source) for source in ("hit", "miss", "bypass", "near")}


def _reply(reply: Any, context: Any) -> bytes:
    if isinstance(reply, Reply):
        context.set_trailing_metadata((_FRESHNESS[reply.source], ("x-cache-age-ms", str(reply.age_ms))))
        return reply.body or b""
    return reply if isinstance(reply, bytes) else reply.SerializeToString()
