"""What happens to every server-streaming RPC besides its handler: limits, validation, errors, metrics.

A stream has no REQUEST_TIMEOUT and does not count against MAX_CONCURRENT_RPCS: it may last for hours, and mostly waits.
A task that runs a stream is ended with an RpcError by `task.cancel(error)`; the caller gets that error.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from typing import Any, TypeAlias

from google.protobuf.message import Message

from libs.server import errors
from libs.server.auth import Guard, Visit
from libs.server.failure_log import FailureLog
from libs.server.metrics import RpcMetrics
from libs.server.validation import Requests

StreamHandler: TypeAlias = Callable[[Any, Any], AsyncIterator[Any]]

ENDED_AT_ONCE = 50  # streams of a drain, before other tasks run
SENT_AT_ONCE = 50  # replies of a stream, before other tasks run


class Streams:
    """The streams under way. The one over `limit` fails with OVERLOADED."""

    def __init__(
        self, limit: int, constraints: Mapping[str, Callable[[Any], errors.RpcError]], metrics: RpcMetrics
    ) -> None:
        self.limit = limit
        self.constraints = constraints
        self.metrics = metrics
        self.running: set[asyncio.Task[Any]] = set()
        self.draining = False

    async def drain(self) -> None:
        """End all streams with DRAINING, and refuse new ones."""
        self.draining = True
        for number, task in enumerate(list(self.running), 1):
            task.cancel(errors.draining())
            if not number % ENDED_AT_ONCE:
                await asyncio.sleep(0)

    def begin(self, task: asyncio.Task[Any]) -> None:
        """Count a stream. Raises: DRAINING; OVERLOADED."""
        if self.draining:
            raise errors.draining()
        if len(self.running) >= self.limit:
            raise errors.exhausted("OVERLOADED", "the service has too many streams: try again")
        self.running.add(task)


class StreamMethod:
    """One server-streaming method, wrapped. Its handler yields messages or their bytes."""

    def __init__(
        self, streams: Streams, name: str, handler: StreamHandler, requests: Requests, guard: Guard | None = None
    ) -> None:
        """Without a `guard` everybody may call it."""
        self._streams = streams
        self._name = name
        self._handler = handler
        self._requests = requests
        self._guard = guard
        self._failures = FailureLog(name)
        streams.metrics.streaming.add(name)

    async def answer(self, data: bytes, context: Any) -> None:
        """Answer one RPC."""
        streams, started, code, reason = self._streams, time.perf_counter(), "OK", ""
        task: Any = asyncio.current_task()
        request: Message | None = None
        raised: BaseException | None = None
        visit = None if self._guard is None else Visit(self._guard, context)
        try:
            streams.begin(task)
            if visit is not None and not visit.is_known(context):
                await visit.begin(context)
            request = self._requests.parse(data)
            self._requests.check(request)
            if visit is not None:
                visit.use(visit.guard.salons_of(request))
                visit.watch(task)
            await self._send(request, context)
            return
        except asyncio.CancelledError as canceled:
            code = reason = "CANCELLED"
            error = canceled.args[0] if canceled.args else None
            if streams.draining and not context.cancelled():
                error = errors.draining()  # a timeout that ran out at the same time has its own message
            if not isinstance(error, errors.RpcError):
                raise
            task.uncancel()
            code, reason = error.code.name, error.reason
        except Exception as exception:
            error = errors.of_exception(exception, streams.constraints, request)
            code, reason, raised = error.code.name, error.reason, exception
            if context.cancelled():  # writing has failed
                code = reason = "CANCELLED"
        finally:
            streams.running.discard(task)
            seconds = time.perf_counter() - started
            streams.metrics.add(self._name, code, seconds)
            if visit is not None:
                visit.unwatch(task)
                visit.end(code, reason, request)
            if reason:
                self._failures.add(code, reason, seconds, context.invocation_metadata(), request, raised)
                raised = None  # its traceback refers to this frame: a cycle that only the garbage collector frees
        await context.abort(error.code, error.message, error.trailing_metadata())

    async def _send(self, request: Message, context: Any) -> None:
        """Send what the handler yields."""
        sent = 0
        async with aclosing(self._handler(request, context)) as replies:  # type: ignore[type-var]
            async for reply in replies:
                await context.write(reply if isinstance(reply, bytes) else reply.SerializeToString())
                sent += 1
                if not sent % SENT_AT_ONCE:
                    await asyncio.sleep(0)
