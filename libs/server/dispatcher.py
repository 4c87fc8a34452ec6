"""What happens to every RPC besides its handler: limits, validation, deadline, errors, metrics.

The way of an RPC: the transport calls `Dispatcher.service` for its handler, which is `Method.answer`.
"""

import asyncio
import random
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from math import inf
from typing import Any, NamedTuple, TypeAlias

import grpc
import psycopg
from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import MethodOptions
from google.protobuf.message import Message
from prometheus_client import CollectorRegistry

from libs.cache import MAX_AGE, Cache, Read, Reply
from libs.db import STATEMENT_LOST
from libs.server import errors
from libs.server.auth import Access, Guard, Salons, Visit
from libs.server.failure_log import FailureLog
from libs.server.idempotency import Replayed
from libs.server.metrics import RpcMetrics
from libs.server.settings import ServerSettings
from libs.server.streams import StreamMethod, Streams
from libs.server.validation import LARGEST_REQUEST_BYTES, Requests

Handler: TypeAlias = Callable[[Any, Any], Awaitable[Any]]
Constraints: TypeAlias = Mapping[str, Callable[[Any], errors.RpcError]]

# A drain ends after QUIET_CHECKS intervals without a new RPC; a refused client retries after longer than these together
# (errors.RETRY_MS). One long interval is not enough: on a busy machine the process may not have run in it.
QUIET_SECONDS = 0.02
QUIET_CHECKS = 5
MAX_CHECKS = 50

# Valid requests that a method remembers: their number, and the size of each in bytes.
MAX_REMEMBERED = 2000
MAX_REMEMBERED_BYTES = 512
LARGE_REQUEST_BYTES = 2**20
EXPIRED = -inf

# Retried once: two transactions conflicted, a random code was taken, or a pooler lost a prepared statement (after that
# none is prepared).
RETRIED = (
    psycopg.errors.DeadlockDetected,
    psycopg.errors.SerializationFailure,
    psycopg.errors.UniqueViolation,
    *STATEMENT_LOST,
)


class Dispatcher(grpc.GenericRpcHandler):
    """Wraps every method of our services.

    It takes the place of a server when the generated `add_…Servicer_to_server` adds handlers. Handlers that are
    registered with grpcio's server as well, or wrapped by an interceptor, cost up to a third more per RPC (measured).
    """

    def __init__(
        self,
        settings: ServerSettings,
        constraints: Constraints,
        registry: CollectorRegistry,
        cache: Cache,
        largest_requests: Mapping[str, int],
        access: Access | None = None,
    ) -> None:
        """`constraints` returns the error for a violated constraint, by the constraint's name.

        `largest_requests` are sizes in bytes by the method's name; other methods have LARGEST_REQUEST_BYTES. Without
        `access` everybody may call everything.
        """
        self.cache = cache
        self._access = access
        self.loop = asyncio.get_running_loop()  # kept: on Python 3.11 each get_running_loop is a system call
        self.limit = settings.max_concurrent_rpcs
        self.constraints = constraints
        self.draining = False
        self.refused = 0
        self.largest_requests: dict[str, int] = {}
        self.metrics = RpcMetrics()
        registry.register(self.metrics)
        self.running: dict[asyncio.Task[Any], float] = {}  # start of each RPC under way, oldest first; or EXPIRED
        self.timer: asyncio.TimerHandle | None = None
        self._timeout = settings.request_timeout / 1000
        self._largest_by_name = largest_requests
        self.streams = Streams(settings.max_watchers, constraints, self.metrics)
        self._methods: dict[str, tuple[Method | None, Any]] = {}

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """Ignore the handlers: `add_registered_method_handlers` gets them, too."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Wrap the methods of a service."""
        for name, handler in handlers.items():
            path = f"/{service}/{name}"
            descriptor = descriptor_pool.Default().FindServiceByName(service).methods_by_name[name]
            largest = self.largest_requests[path] = self._largest_by_name.get(name, LARGEST_REQUEST_BYTES)
            requests = Requests(descriptor, handler.request_deserializer, largest)
            guard = None if self._access is None else self._access.guard(descriptor)
            if handler.response_streaming:
                stream = StreamMethod(self.streams, path.removeprefix("/"), handler.unary_stream, requests, guard)
                self._methods[path] = None, grpc.unary_stream_rpc_method_handler(stream.answer)
                continue
            is_read = descriptor.GetOptions().idempotency_level == MethodOptions.NO_SIDE_EFFECTS
            method = Method(self, path.removeprefix("/"), handler.unary_unary, requests, guard, is_read=is_read)
            self._methods[path] = method, grpc.unary_unary_rpc_method_handler(method.answer)  # bytes in, bytes out

    def service(self, handler_call_details: Any) -> Any:
        """Return the wrapped handler of a method, None if the method is not ours."""
        if (found := self._methods.get(handler_call_details.method)) is None:
            return None
        method, wrapped = found
        if method is None:  # a stream, which is not cached
            return wrapped
        for name, value in handler_call_details.invocation_metadata or ():
            if name == "cache-control":
                return grpc.unary_unary_rpc_method_handler(partial(method.answer_max_age, _max_age(value)))
        return wrapped

    def only(self, *services: str) -> grpc.GenericRpcHandler:
        """Return a handler of some services alone, for a port that does not serve the others. Add all methods first."""
        return _Only(self, frozenset(path for path in self._methods if path.split("/")[1] in services))

    async def drain(self) -> None:
        """Refuse RPCs from now on; return once no new ones come, or after a second.

        A server that stops at once ends the RPCs that it has received and not begun as CANCELLED, which no client
        retries.
        """
        self.draining = True
        quiet = 0
        for _ in range(MAX_CHECKS):
            before = self.refused
            await asyncio.sleep(QUIET_SECONDS)
            quiet = quiet + 1 if self.refused == before else 0
            if quiet == QUIET_CHECKS:
                return

    def cancel_expired(self) -> None:
        """Cancel the RPCs over REQUEST_TIMEOUT; come back when the next one expires.

        One timer serves all RPCs: a timer each costs 7 us per RPC (measured).
        """
        now = time.perf_counter()
        for task, started in list(self.running.items()):
            if started + self._timeout > now:
                self.timer = self.loop.call_later(started + self._timeout - now, self.cancel_expired)
                return
            if started != EXPIRED:
                self.running[task] = EXPIRED
                task.cancel()
        self.timer = None


class _Only(grpc.GenericRpcHandler):
    """The methods of a dispatcher with these paths."""

    def __init__(self, dispatcher: Dispatcher, paths: frozenset[str]) -> None:
        self._dispatcher, self._paths = dispatcher, paths

    def service(self, handler_call_details: Any) -> Any:
        """Return the wrapped handler of a method, None if it is not one of these."""
        if handler_call_details.method not in self._paths:
            return None
        return self._dispatcher.service(handler_call_details)


class ParsedRequest(NamedTuple):
    """A valid request and the salons it names; `read` answers it, if its key follows from the request's bytes alone."""

    request: Message
    salons: Salons
    read: Read | None


class Method:
    """One method, wrapped.

    It remembers recent requests of reads by their bytes: a repeated one is not parsed, validated and keyed again. Each
    of these takes an eighth of an echo or more (measured). Handlers must not change requests.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        name: str,
        handler: Handler,
        requests: Requests,
        guard: Guard | None,
        *,
        is_read: bool,
    ) -> None:
        """Without a `guard` everybody may call it."""
        self._dispatcher = dispatcher
        self._name = name
        self._requests = requests
        self._guard = guard
        self._failures = FailureLog(name)
        self._handler = handler
        self._max_remembered_bytes = MAX_REMEMBERED_BYTES if is_read else -1
        self._remembered: dict[bytes, ParsedRequest] = {}

    async def answer(self, data: bytes, context: Any) -> bytes:
        """Answer one RPC; at once if the near cache has the reply."""
        dispatcher = self._dispatcher
        # Large requests are not looked up: a hash of 8 MB takes 2 ms.
        parsed = self._remembered.get(data) if len(data) <= self._max_remembered_bytes else None
        key = parsed.read.key if parsed is not None and parsed.read is not None else None
        if key is not None and key.tag.namespace.near and not dispatcher.draining:
            started = time.perf_counter()
            reply = dispatcher.cache.near(key)
            if reply is not None and reply.body is not None and self._admits(context, parsed):
                dispatcher.metrics.add(self._name, "OK", time.perf_counter() - started)
                return _reply(reply, context)
        return await self._answer(data, context, parsed)

    async def answer_max_age(self, max_age: int | None, data: bytes, context: Any) -> bytes:
        """Answer one RPC whose caller limits the age of a cached reply, in s."""
        MAX_AGE.set(max_age)
        return await self._answer(data, context, self._remembered.get(data))

    async def _answer(self, data: bytes, context: Any, parsed: ParsedRequest | None) -> bytes:
        dispatcher, started, code = self._dispatcher, time.perf_counter(), "OK"
        task: Any = asyncio.current_task(dispatcher.loop)
        request: Message | None = None
        raised: BaseException | None = None
        reason = ""
        visit = None if self._guard is None else Visit(self._guard, context)
        dispatcher.running[task] = started
        if dispatcher.timer is None:
            dispatcher.cancel_expired()
        try:
            if dispatcher.draining:
                dispatcher.refused += 1
                raise errors.draining()
            if len(dispatcher.running) > dispatcher.limit:
                raise errors.exhausted("OVERLOADED", "the service has too many requests under way: try again")
            if visit is not None and not visit.is_known(context):
                await visit.begin(context)
            if parsed is None:
                if len(data) > LARGE_REQUEST_BYTES:
                    await asyncio.sleep(0)  # joining its parts took 10 ms of this tick for 8 MB
                request = self._requests.parse(data)
                self._requests.check(request)
                parsed = ParsedRequest(request, () if self._guard is None else self._guard.salons_of(request), None)
            request = parsed.request
            if visit is not None:
                visit.use(parsed.salons)
            if parsed.read is not None and (reply := await dispatcher.cache.resolve(parsed.read)).body is not None:
                return _reply(reply, context)
            reply = await self._handle(request, context)
            if len(data) <= self._max_remembered_bytes and parsed.read is None:
                self._remember(data, parsed._replace(read=getattr(reply, "again", None)))
            return _reply(reply, context)
        except asyncio.CancelledError:
            code = reason = "CANCELLED"
            if dispatcher.running[task] != EXPIRED:
                raise
            task.uncancel()
            error = errors.query_timeout()
            code, reason = error.code.name, error.reason
        except Exception as exception:
            error = errors.of_exception(exception, dispatcher.constraints, request)
            code, reason, raised = error.code.name, error.reason, exception
        finally:
            del dispatcher.running[task]
            seconds = time.perf_counter() - started
            dispatcher.metrics.add(self._name, code, seconds)
            if visit is not None:
                visit.end(code, reason, request)
            if reason:
                self._failures.add(code, reason, seconds, context.invocation_metadata(), request, raised)
                raised = None  # its traceback refers to this frame: a cycle that only the garbage collector frees
        await context.abort(error.code, error.message, error.trailing_metadata())
        raise AssertionError  # abort raises

    def _admits(self, context: Any, parsed: ParsedRequest | None) -> bool:
        return self._guard is None or (parsed is not None and self._guard.admits(context, parsed.salons))

    def _remember(self, data: bytes, parsed: ParsedRequest) -> None:
        """Remember a request in place of the oldest."""
        if len(self._remembered) >= MAX_REMEMBERED:
            del self._remembered[next(iter(self._remembered))]
        self._remembered[data] = parsed

    async def _handle(self, request: Message, context: Any) -> Any:
        try:
            try:
                return await self._handler(request, context)
            except RETRIED as error:
                if error.diag.constraint_name in self._dispatcher.constraints:
                    raise
                await asyncio.sleep(random.uniform(0.001, 0.01))  # noqa: S311
                return await self._handler(request, context)
        except Replayed as replayed:
            return replayed.body


_MAX_AGE = re.compile("max-age=0*([0-9]+)")
_MAX_AGE_DIGITS = 10
_ANY_AGE = 2**31  # what RFC 9111 takes for a number that is too large


def _max_age(cache_control: str) -> int | None:
    """Return the limit for a reply's age in s; None without a valid one. int() refuses more than 4,300 digits."""
    if cache_control == "no-cache":
        return 0
    if (found := _MAX_AGE.fullmatch(cache_control)) is None:
        return None
    return int(found[1]) if len(found[1]) <= _MAX_AGE_DIGITS else _ANY_AGE


_X_CACHE = {source: ("x-cache", source) for source in ("hit", "miss", "bypass", "near")}


def _reply(reply: Any, context: Any) -> bytes:
    if isinstance(reply, Reply):
        context.set_trailing_metadata((_X_CACHE[reply.source], ("x-cache-age-ms", str(reply.age_ms))))
        return reply.body or b""
    return reply if isinstance(reply, bytes) else reply.SerializeToString()
