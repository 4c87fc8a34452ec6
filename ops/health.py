"""The health of a server, by grpc.health.v1."""

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse


def is_serving(address: str, service: str = "", timeout: float = 2.0) -> bool:
    """Return whether `service` at host:port is SERVING; "" asks for the server as a whole. Never raises.

    Units: timeout in s.
    """
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=HealthCheckRequest.SerializeToString,
            response_deserializer=HealthCheckResponse.FromString,
        )
        try:
            return check(HealthCheckRequest(service=service), timeout=timeout).status == HealthCheckResponse.SERVING
        except grpc.RpcError:
            return False
