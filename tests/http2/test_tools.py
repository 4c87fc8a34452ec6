"""Common clients written in Go: grpcurl and `buf curl`, with reflection, on both transports."""

import asyncio
import json
import sys
from base64 import b64decode
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from google.rpc.error_details_pb2 import ErrorInfo

from tests.http2.conftest import TRANSPORTS
from tests.stack import SALON, Stack, running, salon

BIN = Path(sys.executable).parent
SERVICE = "parlor.booking.v1.BookingService"
SECONDS = 30


@pytest.fixture(params=TRANSPORTS)
async def stack(request: pytest.FixtureRequest, database_url: str, redis_url: str) -> AsyncIterator[Stack]:
    """The three services on a transport, with a salon."""
    async with running(database_url, redis_url, server={"server_transport": request.param}) as stack:
        await salon(stack)
        yield stack


async def run(program: str, *arguments: str, code: int = 0) -> str:
    """Run a program; return its output."""
    process = await asyncio.create_subprocess_exec(
        BIN / program, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    async with asyncio.timeout(SECONDS):
        output, _ = await process.communicate()
    assert (process.returncode == 0) == (code == 0), output.decode()
    return output.decode()


async def grpcurl(stack: Stack, *arguments: str, options: tuple[str, ...] = (), data: Any = None, code: int = 0) -> str:
    body = () if data is None else ("-d", json.dumps(data))
    address = f"127.0.0.1:{stack.servers['booking'].port}"
    return await run("grpcurl", "-plaintext", *options, *body, address, *arguments, code=code)


async def buf(stack: Stack, path: str, *options: str, data: Any = None, code: int = 0) -> str:
    body = [] if data is None else ["--data", json.dumps(data)]
    address = f"http://127.0.0.1:{stack.servers['booking'].port}"
    fixed = ("curl", "--http2-prior-knowledge", "--protocol", "grpc", "--reflect-protocol", "grpc-v1alpha")
    return await run("buf", *fixed, *options, *body, address + path, code=code)


async def first_line(stack: Stack, program: str, *arguments: str) -> str:
    """Return the first JSON object that a program prints, and end it."""
    process = await asyncio.create_subprocess_exec(BIN / program, *arguments, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    async with asyncio.timeout(SECONDS):
        output = b""
        while b"}" not in output:
            output += await process.stdout.readline()
    process.terminate()
    await process.communicate()
    return output.decode()


async def test_grpcurl_lists_and_describes(stack: Stack) -> None:
    assert SERVICE in (await grpcurl(stack, "list")).splitlines()
    methods = (await grpcurl(stack, "list", SERVICE)).splitlines()
    assert f"{SERVICE}.GetSalon" in methods
    described = await grpcurl(stack, "describe", SERVICE)
    assert "rpc GetSalon ( .parlor.booking.v1.GetSalonRequest ) returns ( .parlor.booking.v1.Salon )" in described
    assert "string salon_id = 1" in await grpcurl(stack, "describe", "parlor.booking.v1.GetSalonRequest")


async def test_grpcurl_calls_and_shows_trailers(stack: Stack) -> None:
    shown = await grpcurl(stack, f"{SERVICE}/GetSalon", options=("-v",), data={"salon_id": SALON})
    assert f': "{SALON}"' in shown
    assert "x-cache: " in shown.split("Response trailers received:")[1]


async def test_grpcurl_shows_an_errors_details(stack: Stack) -> None:
    shown = await grpcurl(stack, f"{SERVICE}/GetSalon", data={"salon_id": "salon-9"}, code=1)
    assert "Code: NotFound" in shown
    assert "type.googleapis.com/google.rpc.ErrorInfo" in shown


async def test_grpcurl_reads_a_server_stream(stack: Stack) -> None:
    address = f"127.0.0.1:{stack.servers['booking'].port}"
    data = json.dumps({"service": SERVICE})
    method = "grpc.health.v1.Health/Watch"
    assert '"status": "SERVING"' in await first_line(stack, "grpcurl", "-plaintext", "-d", data, address, method)
    shown = await grpcurl(stack, method, options=("-max-time", "1"), data={"service": SERVICE}, code=1)
    assert '"status": "SERVING"' in shown
    assert "Code: DeadlineExceeded" in shown


async def test_buf_curl_lists(stack: Stack) -> None:
    assert SERVICE in (await buf(stack, "", "--list-services")).splitlines()
    assert f"{SERVICE}/GetSalon" in (await buf(stack, "", "--list-methods")).splitlines()


async def test_buf_curl_calls_and_shows_trailers(stack: Stack) -> None:
    shown = await buf(stack, f"/{SERVICE}/GetSalon", "-v", data={"salon_id": SALON})
    assert '"salonId":"salon-1"' in shown.replace(" ", "")
    assert "x-cache:" in shown.lower()


async def test_buf_curl_shows_an_errors_details(stack: Stack) -> None:
    shown = json.loads(await buf(stack, f"/{SERVICE}/GetSalon", data={"salon_id": "salon-9"}, code=1))
    assert shown["code"] == "not_found"
    info = ErrorInfo.FromString(b64decode(shown["details"][0]["value"] + "=="))
    assert (shown["details"][0]["type"], info.reason) == ("google.rpc.ErrorInfo", "SALON_NOT_FOUND")


async def test_buf_curl_reads_a_server_stream(stack: Stack) -> None:
    url = f"http://127.0.0.1:{stack.servers['booking'].port}/grpc.health.v1.Health/Watch"
    fixed = ("curl", "--http2-prior-knowledge", "--protocol", "grpc", "--reflect-protocol", "grpc-v1alpha")
    shown = await first_line(stack, "buf", *fixed, "--data", json.dumps({"service": SERVICE}), url)
    assert json.loads(shown) == {"status": "SERVING"}
