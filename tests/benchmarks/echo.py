"""A bare grpcio server that answers each message with itself: `python -m tests.benchmarks.echo PORT`."""

import sys
from importlib import import_module
from typing import Any

import grpc
import uvloop
from google.protobuf.descriptor import Descriptor

PACKAGES = ("booking", "messaging", "stats")


def message_classes() -> dict[str, Any]:
    """Return the classes of all replies by their full names."""
    modules = [import_module(f"parlor.{package}.v1.{package}_pb2") for package in PACKAGES]
    return {
        value.DESCRIPTOR.full_name: value
        for module in modules
        for value in vars(module).values()
        if isinstance(getattr(value, "DESCRIPTOR", None), Descriptor)
    }


async def answer(request: Any, context: Any) -> Any:
    """Answer a message with itself."""
    return request


async def serve(port: int) -> None:
    """Serve `/echo/<full name>` for each message, until canceled."""
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(answer, kind.FromString, kind.SerializeToString)
        for name, kind in message_classes().items()
    }
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("echo", handlers),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
