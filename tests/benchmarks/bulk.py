"""A server that receives and sends large messages: `python -m tests.benchmarks.bulk PORT TRANSPORT`."""

import asyncio
import sys
from typing import Any

import grpc
import uvloop

from libs.server.settings import ServerSettings
from libs.server.transport import make_transport

SERVICE = "bulk"


async def upload(request: bytes, context: Any) -> bytes:
    """Receive a message."""
    return b""


async def download(request: bytes, context: Any) -> bytes:
    """Send as many bytes as requested."""
    return bytes(int(request))


async def serve(port: int, transport: Any) -> None:
    """Serve until canceled."""
    handlers: dict[str, Any] = {
        "Upload": grpc.unary_unary_rpc_method_handler(upload),
        "Download": grpc.unary_unary_rpc_method_handler(download),
    }
    settings = ServerSettings(server_transport=transport)
    server = make_transport(settings, [grpc.method_handlers_generic_handler(SERVICE, handlers)], share_port=False)
    server.listen(f"127.0.0.1:{port}")
    await server.start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), sys.argv[2]))
