"""The context of handlers: the same on both transports, unless a test names one."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest

from tests.http2.conftest import Serve, Served, method
from tests.http2.raw import Request, headers, message
from tests.http2.servicer import DETAILS, SERVICE


async def failure(call: Any) -> grpc.aio.AioRpcError:
    async with asyncio.timeout(20):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call
    return raised.value


def behaving(served: Served) -> Callable[[Callable[[Any, Any], Awaitable[Any]]], None]:
    """Return a decorator that sets the behavior of the methods Run and RunStream."""

    def set_behavior(behavior: Callable[[Any, Any], Awaitable[Any]]) -> None:
        served.servicer.behavior = behavior

    return set_behavior


async def test_abort_sends_its_status_details_and_metadata(served: Served) -> None:
    error = await failure(method(await served.channel(), "Abort")(b"NOT_FOUND"))
    assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, "100 % wrong: \u00fc\n")
    trailing = ("reason", "test"), ("reason", "again"), ("grpc-status-details-bin", DETAILS)
    assert tuple(error.trailing_metadata() or ()) == trailing


async def test_abort_with_status_sends_it(served: Served) -> None:
    class Status(grpc.Status):
        code, details, trailing_metadata = grpc.StatusCode.DATA_LOSS, "gone", (("a", "b"),)

    @behaving(served)
    async def behavior(request: Any, context: Any) -> None:
        await context.abort_with_status(Status())

    error = await failure(method(await served.channel(), "Run")(b""))
    assert (error.code(), error.details()) == (grpc.StatusCode.DATA_LOSS, "gone")
    assert tuple(error.trailing_metadata() or ()) == (("a", "b"),)


async def test_abort_keeps_details_and_metadata_that_were_set_before(served: Served) -> None:
    @behaving(served)
    async def behavior(request: Any, context: Any) -> None:
        context.set_details("before")
        context.set_trailing_metadata((("a", "b"),))
        await context.abort(grpc.StatusCode.ABORTED)

    error = await failure(method(await served.channel(), "Run")(b""))
    assert (error.code(), error.details()) == (grpc.StatusCode.ABORTED, "before")
    assert tuple(error.trailing_metadata() or ()) == (("a", "b"),)


async def test_an_abort_ends_the_call_even_if_the_handler_catches_it(served: Served) -> None:
    @behaving(served)
    async def behavior(request: Any, context: Any) -> bytes:
        try:
            await context.abort(grpc.StatusCode.ABORTED, "no")
        except Exception:
            return b"yes"
        raise AssertionError

    error = await failure(method(await served.channel(), "Run")(b""))
    assert (error.code(), error.details()) == (grpc.StatusCode.ABORTED, "no")


async def test_abort_is_answered_before_the_handler_ends(served: Served) -> None:
    @behaving(served)
    async def behavior(request: Any, context: Any) -> None:
        try:
            await context.abort(grpc.StatusCode.ABORTED, "no")
        finally:
            await served.servicer.proceed.wait()

    call = method(await served.channel(), "Run")(b"", timeout=10)
    assert (await failure(call)).code() == grpc.StatusCode.ABORTED
    served.servicer.proceed.set()


async def test_a_code_set_by_the_handler_is_the_status_and_the_reply_is_dropped(served: Served) -> None:
    @behaving(served)
    async def behavior(request: Any, context: Any) -> bytes:
        context.set_code(grpc.StatusCode.OUT_OF_RANGE)
        context.set_details("too far")
        assert (context.code(), context.details()) == (grpc.StatusCode.OUT_OF_RANGE, "too far")
        return b"reply"

    error = await failure(method(await served.channel(), "Run")(b""))
    assert (error.code(), error.details()) == (grpc.StatusCode.OUT_OF_RANGE, "too far")


async def test_a_code_set_by_the_handler_ends_a_stream_after_its_messages(served: Served) -> None:
    @behaving(served)
    async def behavior(request: Any, context: Any) -> None:
        await context.write(b"first")
        context.set_code(grpc.StatusCode.OUT_OF_RANGE)
        context.set_details("no second")

    call = method(await served.channel(), "RunStream")(b"")
    assert await call.read() == b"first"
    error = await failure(call.read())
    assert (error.code(), error.details()) == (grpc.StatusCode.OUT_OF_RANGE, "no second")


async def test_metadata_arrives_unchanged_both_ways(served: Served) -> None:
    sent = ("a", "1"), ("a", "2"), ("b-bin", bytes(range(256))), ("b-bin", b""), ("c", "! ~")
    back: list[Any] = []

    @behaving(served)
    async def behavior(request: Any, context: Any) -> bytes:
        back.extend((name, value) for name, value in context.invocation_metadata() if name != "user-agent")
        await context.send_initial_metadata(sent)
        context.set_trailing_metadata(sent[::-1])
        assert context.trailing_metadata() == sent[::-1]
        return b""

    call = method(await served.channel(), "Run")(b"", metadata=sent)
    assert tuple(await call.initial_metadata()) == sent
    assert tuple(await call.trailing_metadata()) == sent[::-1]
    assert sorted(back, key=lambda pair: pair[0]) == sorted(sent, key=lambda pair: pair[0])


async def test_initial_metadata_arrives_before_the_handler_replies(served: Served) -> None:
    @behaving(served)
    async def behavior(request: Any, context: Any) -> None:
        await context.send_initial_metadata((("a", "b"),))
        await served.servicer.proceed.wait()
        await context.write(b"reply")

    call = method(await served.channel(), "RunStream")(b"", timeout=20)
    assert tuple(await call.initial_metadata()) == (("a", "b"),)
    served.servicer.proceed.set()
    assert await call.read() == b"reply"


async def test_initial_metadata_is_sent_once(served: Served) -> None:
    @behaving(served)
    async def behavior(request: Any, context: Any) -> bytes:
        await context.send_initial_metadata((("a", "b"),))
        with pytest.raises(grpc.aio.UsageError):
            await context.send_initial_metadata((("a", "c"),))
        return b"reply"

    call = method(await served.channel(), "Run")(b"")
    assert await call == b"reply"
    assert tuple(await call.initial_metadata()) == (("a", "b"),)


async def test_an_exception_is_unknown_and_logged(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    @behaving(served)
    async def behavior(request: Any, context: Any) -> None:
        raise ValueError("a secret")

    channel = await served.channel()
    for name in ("Run", "RunStream"):
        call = method(channel, name)(b"")
        error = await failure(call if name == "Run" else call.read())
        assert error.code() == grpc.StatusCode.UNKNOWN
        if served.transport == "http2":
            assert "secret" not in f"{error.details()} {error.trailing_metadata()}"
        [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
        assert record.exc_info is not None
        assert "a secret" in str(record.exc_info[1])
        caplog.clear()


async def test_an_exception_keeps_the_code_that_was_set(served: Served) -> None:
    @behaving(served)
    async def behavior(request: Any, context: Any) -> None:
        context.set_code(grpc.StatusCode.FAILED_PRECONDITION)
        context.set_trailing_metadata((("a", "b"),))
        raise ValueError

    error = await failure(method(await served.channel(), "Run")(b""))
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert tuple(error.trailing_metadata() or ()) == (("a", "b"),)


async def test_a_handler_that_returns_none_is_unknown(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    served = await serve("http2")  # grpcio's server ends such a call with OK, without a message

    @behaving(served)
    async def behavior(request: Any, context: Any) -> Any:
        return None

    assert (await failure(method(await served.channel(), "Run")(b""))).code() == grpc.StatusCode.UNKNOWN
    assert [record for record in caplog.records if record.levelno == logging.ERROR]


async def test_done_callbacks_are_called_with_the_context_once_the_call_has_ended(served: Served) -> None:
    seen: asyncio.Queue[tuple[str, Any, bool]] = asyncio.Queue()

    @behaving(served)
    async def behavior(request: Any, context: Any) -> bytes:
        assert not context.done()
        context.add_done_callback(lambda given: seen.put_nowait(("first", given, given.done())))
        context.add_done_callback(lambda given: seen.put_nowait(("second", given, given.done())))
        return b""

    await method(await served.channel(), "Run")(b"")
    async with asyncio.timeout(10):
        assert [await seen.get(), await seen.get()] == [
            ("first", served.servicer.context, True),
            ("second", served.servicer.context, True),
        ]


async def test_a_failing_callback_is_logged_and_the_others_run(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    called: asyncio.Queue[None] = asyncio.Queue()

    def fail(context: Any) -> None:
        called.put_nowait(None)
        raise ValueError("a secret")

    @behaving(served)
    async def behavior(request: Any, context: Any) -> Any:
        context.add_done_callback(fail)
        if request == b"wait":
            served.servicer.begun.set()
            await asyncio.Event().wait()
        return request

    channel = await served.channel()
    async with asyncio.timeout(10):
        assert await method(channel, "Run")(b"a") == b"a"
        canceled = method(channel, "Run")(b"wait")
        await served.servicer.begun.wait()
        canceled.cancel()
        assert await method(channel, "Run")(b"b") == b"b"
        for _ in range(3):
            await called.get()
    errors = [record.exc_info[1] for record in caplog.records if record.exc_info]
    assert list(map(str, errors)) == ["a secret"] * 3


async def test_cancellation_reaches_the_handler_and_its_context(served: Served) -> None:
    call = method(await served.channel(), "Slow")(b"")
    async with asyncio.timeout(10):
        await served.servicer.begun.wait()
        context = served.servicer.context
        assert not context.cancelled()
        call.cancel()
        assert await served.servicer.ended.get() == "canceled"
        assert await served.servicer.callbacks.get() is context
    if served.transport == "http2":  # grpcio's server shows it only for calls answered with CANCELLED
        assert context.cancelled()
        assert context.done()


async def test_a_lost_connection_cancels_its_calls(served: Served) -> None:
    raw = await served.raw()
    path = f"/{SERVICE}/Slow".encode()
    calls = [asyncio.ensure_future(raw.call(Request(headers(path), (message(b""),)))) for _ in range(3)]
    async with asyncio.timeout(10):
        for _ in calls:
            await served.servicer.entered.get()
        raw.close()
        for _ in calls:
            assert await served.servicer.ended.get() == "canceled"
    await asyncio.gather(*calls)


async def test_a_generator_is_closed_when_its_call_is_canceled(served: Served) -> None:
    closed = asyncio.Event()

    async def stream(request: bytes, context: Any) -> Any:
        try:
            while True:
                yield bytes(64 * 1024)  # waits for the client here
        finally:
            closed.set()

    served.servicer.iterate = stream
    call = method(await served.channel(), "Iterate")(b"")
    assert await call.read() == bytes(64 * 1024)
    call.cancel()
    async with asyncio.timeout(10):
        await closed.wait()


async def test_the_handler_sees_the_deadline_and_is_canceled_at_it(served: Served) -> None:
    remaining: list[float] = []

    @behaving(served)
    async def behavior(request: Any, context: Any) -> None:
        remaining.append(context.time_remaining())
        try:
            await asyncio.Event().wait()
        finally:
            remaining.append(context.time_remaining())
            served.servicer.ended.put_nowait("over")

    raw = await served.raw()  # a raw client does not enforce the deadline itself
    request = Request(headers(f"/{SERVICE}/Run".encode(), (b"grpc-timeout", b"300m")), (message(b""),))
    async with asyncio.timeout(10):
        answer = await raw.call(request)
        await served.servicer.ended.get()
    assert answer.status == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
    assert answer.trailers[b"grpc-message"] == b"Deadline Exceeded"
    assert 0.05 < remaining[0] < 0.31
    assert remaining[1] < 0.05


async def test_a_call_without_a_deadline_has_none(served: Served) -> None:
    report = json.loads(await method(await served.channel(), "Report")(b""))
    assert report == {"metadata": [], "has_deadline": False}


async def test_the_peer_is_the_address_of_the_client(served: Served) -> None:
    await method(await served.channel(), "Echo")(b"")
    kind, host, port = served.servicer.context.peer().split(":") if served.transport == "http2" else ("ipv4", "", "")
    assert kind == "ipv4"
    assert not host or (host == "127.0.0.1" and int(port) > 0)


async def test_missing_context_methods_raise(serve: Serve) -> None:
    lacking = ("set_compression", "disable_next_message_compression", "add_callback", "is_active", "cancel_all")
    served = await serve("http2")

    @behaving(served)
    async def behavior(request: Any, context: Any) -> bytes:
        for name in lacking[:-1]:
            with pytest.raises(AttributeError):
                getattr(context, name)
        return b"all"

    assert await method(await served.channel(), "Run")(b"") == b"all"
