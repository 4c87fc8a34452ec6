"""Numbers in headers, of any length: the call ends with a status, and its connection serves the next call."""

import asyncio

import grpc
import pytest

from tests.http2.conftest import Serve
from tests.http2.raw import Request, headers, message
from tests.http2.servicer import SERVICE

PATH = f"/{SERVICE}/Echo".encode()
DIGITS = (b"9" * 4301, b"0" * 4301, b"1" + b"0" * 5000, b"-1", b"1e9", b"1_0", b"\xd9\xa9", b"")
NAMES = (
    b"grpc-timeout",
    b"content-length",
    b"cache-control",
    b"grpc-previous-rpc-attempts",
    b"x-number",
    b"x-number-bin",
)
FORMS = {b"grpc-timeout": b"%sS", b"cache-control": b"max-age=%s"}


@pytest.mark.parametrize("name", NAMES)
async def test_a_number_of_any_length_ends_its_call_and_no_other(serve: Serve, name: bytes) -> None:
    raw = await (await serve("http2")).raw()
    for digits in DIGITS:
        value = FORMS.get(name, b"%s") % digits
        async with asyncio.timeout(10):
            answer = await raw.call(Request(headers(PATH, (name, value)), (message(b"hi"),)))
        assert answer.status not in (grpc.StatusCode.UNKNOWN.value[0], grpc.StatusCode.INTERNAL.value[0])
        assert answer.status is not None or answer.reset is not None or b":status" in answer.head
        async with asyncio.timeout(10):
            next_answer = await raw.call(Request(headers(PATH), (message(b"hi"),)))
        assert next_answer.status == 0, (name, digits[:10], answer)


class Broken(grpc.GenericRpcHandler):
    """A handler that fails before there is a call."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> None:
        """Fail for one method."""
        if handler_call_details.method == "/broken":
            raise ValueError("broken")


async def test_a_call_whose_method_can_t_be_found_for_an_error_ends_alone(serve: Serve) -> None:
    served = await serve("http2")
    served.server.add_generic_rpc_handlers([Broken()])
    raw = await served.raw()
    async with asyncio.timeout(10):
        answer = await raw.call(Request(headers(b"/broken"), (message(b""),)))
        assert answer.status == grpc.StatusCode.UNKNOWN.value[0]
        assert (await raw.call(Request(headers(PATH), (message(b"hi"),)))).status == 0
