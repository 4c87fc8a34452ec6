"""The same servicer on each transport, on the event loop of the services."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import grpc
import pytest

from libs.server.settings import ServerSettings
from libs.server.transport import make_transport
from tests.http2.raw import Raw
from tests.http2.servicer import SERVICE, Servicer

TRANSPORTS = ("http2", "grpcio")


@dataclass
class Served:
    """A running server, and its servicer."""

    transport: str
    server: Any
    servicer: Servicer
    port: int
    exits: AsyncExitStack

    @property
    def address(self) -> str:
        """The address."""
        return f"127.0.0.1:{self.port}"

    async def channel(self, *options: tuple[str, Any], **more: Any) -> grpc.aio.Channel:
        """Return a channel of grpc.aio that is closed after the test."""
        channel = grpc.aio.insecure_channel(self.address, options=[*LARGE, *options], **more)
        return await self.exits.enter_async_context(channel)

    async def raw(self) -> Raw:
        """Return a raw connection that is closed after the test."""
        raw = await Raw.connect(self.port)
        self.exits.callback(raw.close)
        return raw


LARGE = (("grpc.max_receive_message_length", 2**25), ("grpc.max_send_message_length", 2**25))


def method(channel: Any, name: str) -> Any:
    """Return a method of the servicer, over bytes."""
    kinds = {
        "Stream": channel.unary_stream,
        "Write": channel.unary_stream,
        "RunStream": channel.unary_stream,
        "Iterate": channel.unary_stream,
        "Discuss": channel.stream_stream,
        "Collect": channel.stream_unary,
        "Chat": channel.stream_stream,
        "Talk": channel.stream_stream,
    }
    return kinds.get(name, channel.unary_unary)(f"/{SERVICE}/{name}")


@pytest.fixture
async def exits() -> AsyncIterator[AsyncExitStack]:
    """Closes everything that the test opens."""
    async with AsyncExitStack() as stack:
        yield stack


Serve = Callable[..., Any]


@pytest.fixture
def serve(exits: AsyncExitStack) -> Serve:
    """Start a server on a transport, with settings by name."""

    async def start(transport: str, address: str = "127.0.0.1:0", **settings: Any) -> Served:
        servicer = Servicer()
        chosen = ServerSettings(server_transport=transport, **settings)
        server = make_transport(chosen, [servicer.handler()], share_port=False)
        port = server.listen(address)
        await server.start()
        exits.push_async_callback(server.stop, 0)
        return Served(transport, server, servicer, port, exits)

    return start


@pytest.fixture(params=TRANSPORTS)
async def served(request: pytest.FixtureRequest, serve: Serve) -> Served:
    """A server on each transport in turn."""
    return await serve(request.param)  # type: ignore[no-any-return]
