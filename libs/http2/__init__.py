"""A gRPC server on libnghttp2, for the servicers that grpcio generates.

    server = Server()
    add_GreeterServicer_to_server(Greeter(), server)
    server.listen("127.0.0.1:50051")
    await server.start()

It serves what grpc.aio's server serves, at a fraction of the CPU. Besides grpcio and libs/listener.py it depends only
on ngh2, a binding of libnghttp2.
"""

from libs.http2.framing import Metadata, Refused
from libs.http2.limits import Counters, Limits
from libs.http2.server import Server
from libs.listener import Tls

__all__ = ["Counters", "Limits", "Metadata", "Refused", "Server", "Tls"]
