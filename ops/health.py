"""The health of a server, by grpc.health.v1."""

from pathlib import Path

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse


def is_serving(
    address: str, service: str = "", timeout: float = 2.0, credentials: grpc.ChannelCredentials | None = None
) -> bool:
    """Return whether `service` at host:port is SERVING; "" asks for the server as a whole. Never raises.

    Units: timeout in s.
    """
    options = [("grpc.enable_http_proxy", 0)]
    opened = (
        grpc.secure_channel(address, credentials, options) if credentials else grpc.insecure_channel(address, options)
    )
    with opened as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=HealthCheckRequest.SerializeToString,
            response_deserializer=HealthCheckResponse.FromString,
        )
        try:
            return check(HealthCheckRequest(service=service), timeout=timeout).status == HealthCheckResponse.SERVING
        except grpc.RpcError:
            return False


def credentials(ca: Path, cert: Path | None = None, key: Path | None = None) -> grpc.ChannelCredentials:
    """Return credentials of PEM files: the server's CA, and an own certificate with its key. Raises: OSError."""
    own = (key.read_bytes(), cert.read_bytes()) if key and cert else (None, None)
    return grpc.ssl_channel_credentials(ca.read_bytes(), *own)
