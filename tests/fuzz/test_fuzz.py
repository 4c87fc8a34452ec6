"""Random requests to every RPC: no INTERNAL, no UNKNOWN, no call that takes too long."""

from __future__ import annotations

import grpc
import pytest

from tests.fuzz.driver import Fuzzer, targets
from tests.hostile import OWN, valid_requests
from tests.stack import Stack, salon

# `make fuzz` sends more. This takes about a minute altogether.
PER_RPC = 250
OPTIONS = [("grpc.max_send_message_length", 2**24), ("grpc.max_receive_message_length", 2**24)]


@pytest.mark.parametrize("name", OWN)
async def test_no_random_request_breaks_a_service(stack: Stack, name: str) -> None:
    valid = await valid_requests(stack)
    for other in ("salon-2", "salon-3"):
        await salon(stack, other)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{stack.servers[name].port}", OPTIONS) as channel:
        fuzzer = Fuzzer(targets({name: channel}, valid), seed=1)
        await fuzzer.run(PER_RPC * len(fuzzer.targets), in_flight=16)
    assert {target.name for target in fuzzer.targets if target.codes.total() != PER_RPC} == set()
    assert "\n".join(map(str, fuzzer.findings[:10])) == ""


async def test_every_rpc_is_called_with_requests_that_succeed_and_some_that_fail(stack: Stack) -> None:
    valid = await valid_requests(stack)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{stack.servers['booking'].port}", OPTIONS) as channel:
        fuzzer = Fuzzer(targets({"booking": channel}, valid), seed=1)
        await fuzzer.run(60 * len(fuzzer.targets), in_flight=16)
    for target in fuzzer.targets:
        assert target.codes["OK"] and target.codes["INVALID_ARGUMENT"], (target.name, target.codes)
