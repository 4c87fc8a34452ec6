"""Both transports answer valid and invalid requests in the same way, except for the cases in differences.py."""

import asyncio
import json
import logging
import random
from urllib.parse import unquote_to_bytes

import grpc
import pytest

from tests.http2.conftest import Serve, Served
from tests.http2.differences import DIFFERENCES, SAME, SERVED, Difference
from tests.http2.raw import Answer, Raw, Request, headers, message
from tests.http2.requests import Draft, make
from tests.http2.servicer import SERVICE

PATH = f"/{SERVICE}/Echo".encode()
REQUESTS = 5000
CONNECTIONS = 8
IN_FLIGHT = 60  # per connection
_NOT_COMPARED = frozenset(
    (
        *(b":status", b"content-type", b"grpc-accept-encoding", b"grpc-status", b"grpc-message"),
        b"grpc-status-details-bin",  # ours gives more details of refused requests
    )
)


def outcome(answer: Answer) -> str:
    """Return the status of an answer."""
    if answer.status is not None:
        return next(code.name for code in grpc.StatusCode if code.value[0] == answer.status)
    if answer.heads:
        return f"HTTP {answer.head[b':status'].decode()}"
    return "lost" if answer.reset is None else f"RESET {answer.reset}"


def content(answer: Answer) -> tuple[object, ...]:
    """Return the parts of an answer that must be the same."""
    pairs = [[pair for pair in head if pair[0] not in _NOT_COMPARED] for head in answer.heads]
    head, trailers = (pairs[0] if len(pairs) > 1 else []), (pairs[-1] if pairs else [])
    details = unquote_to_bytes(answer.trailers.get(b"grpc-message", b"")).decode()
    return outcome(answer), details, head, trailers, _body(bytes(answer.body))


def _body(body: bytes) -> object:
    if not body[5:].startswith(b'{"metadata"'):
        return body
    found = json.loads(body[5:])  # of Report: grpcio sorts metadata, but not those with the same name
    return {**found, "metadata": sorted(found["metadata"], key=lambda pair: pair[0])}


def problem(draft: Draft, grpcio: Answer, http2: Answer) -> str | None:
    """Return what is wrong with the two answers, None if nothing is."""
    theirs, ours = outcome(grpcio), outcome(http2)
    found = f"{draft.method} with {draft.odd or 'nothing odd'}: {content(grpcio)} {content(http2)}"
    if ours in ("INTERNAL", "UNKNOWN") and "a handler that fails" not in draft.odd:
        return f"the caller gets an internal error: {found}"
    if not DIFFERENCES.keys() & draft.odd and len(draft.odd) < 2:
        return None if content(grpcio) == content(http2) else found
    named = [DIFFERENCES.get(name) or Difference(SAME[name], SAME[name], "") for name in draft.odd]
    is_expected = theirs in _any(draft, [each.grpcio for each in named]) and ours in _any(
        draft, [each.http2 for each in named]
    )
    return None if is_expected else found


def _any(draft: Draft, outcomes: list[str]) -> set[str]:
    """Return the allowed answers to a combination of odd things: transports may find either first."""
    possible = {outcome for outcomes_of_one in outcomes for outcome in outcomes_of_one.split(", or ")}
    if any(SERVED not in outcomes_of_one for outcomes_of_one in outcomes):
        possible.discard(SERVED)
    return {draft.served if outcome == SERVED else outcome for outcome in possible}


async def answers(served: Served, requests: list[Request]) -> list[Answer]:
    """Return the answers to requests that are sent concurrently on a few connections."""
    waiting = list(enumerate(requests))[::-1]
    found: dict[int, Answer] = {}

    async def send(raw: Raw) -> None:
        while waiting:
            number, request = waiting.pop()
            found[number] = await raw.call(request)

    raws = [await served.raw() for _ in range(CONNECTIONS)]
    async with asyncio.timeout(120), asyncio.TaskGroup() as group:
        for raw in raws:
            for _ in range(IN_FLIGHT):
                group.create_task(send(raw))
    return [found[number] for number in range(len(requests))]


async def test_5000_random_requests_get_the_same_answers_except_for_named_differences(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    chance = random.Random(13)
    drafts = [make(chance) for _ in range(REQUESTS)]
    requests = [draft.request() for draft in drafts]
    theirs = await answers(await serve("grpcio"), requests)
    caplog.clear()
    ours = await answers(await serve("http2"), requests)
    triples = zip(drafts, theirs, ours, strict=True)
    problems = [found for triple in triples if (found := problem(*triple)) is not None]
    assert not problems, "\n".join(problems[:20])
    assert {draft.odd[0] for draft in drafts if len(draft.odd) == 1} == DIFFERENCES.keys() | SAME.keys()
    assert sum(not draft.odd for draft in drafts) > REQUESTS / 5
    failed = sum(answer.status == grpc.StatusCode.UNKNOWN.value[0] for answer in ours)
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == failed


async def test_a_path_that_is_not_utf8_is_unimplemented_and_the_connection_goes_on(serve: Serve) -> None:
    served = await serve("http2")  # it crashes a server of grpcio
    raw = await served.raw()
    odd, fine = Request(headers(b"/\xff/\xff"), (message(b""),)), Request(headers(PATH), (message(b"hi"),))
    assert (await raw.call(odd)).status == grpc.StatusCode.UNIMPLEMENTED.value[0]
    assert (await raw.call(fine)).body == message(b"hi")


async def test_requests_after_a_malformed_header_are_served_on_its_connection(serve: Serve) -> None:
    served = await serve("http2")  # grpcio's server refuses the second: its header refers to the first one's name
    raw = await served.raw()
    for name, bad, good in (
        (b"grpc-timeout", b"abc", b"10S"),
        (b"grpc-encoding", b"br", b"gzip"),
        (b"a-bin", b"!", b""),
    ):
        refused = await raw.call(Request(headers(PATH, (name, bad)), (message(b"hi"),)))
        assert refused.status != 0
        answer = await raw.call(Request(headers(PATH, (name, good)), (message(b"hi"),)))
        assert answer.status == 0
