"""grpc.health.v1 by service name.

grpc_health's servicer does not fit: its Watch never ends, so that a drain, which waits for every stream, would take its
full 30 s; and one slow watcher blocks the setting of a status.
"""

import asyncio
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckResponse

SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING


class HealthServicer(health_pb2_grpc.HealthServicer):
    """The health of one server. The empty name is the process, SERVING until it drains."""

    def __init__(self) -> None:
        self._statuses: dict[str, Any] = {"": SERVING}
        self._draining = False
        self._changed = asyncio.Event()

    async def set(self, service: str, status: Any) -> None:
        """Set the status of a service. Once draining it stays NOT_SERVING."""
        self._statuses[service] = NOT_SERVING if self._draining else status
        self._notify()

    async def drain(self) -> None:
        """Set all to NOT_SERVING, and end every Watch."""
        self._draining = True
        self._statuses = dict.fromkeys(self._statuses, NOT_SERVING)
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def Check(self, request: Any, context: Any) -> HealthCheckResponse:
        """Return the status; NOT_FOUND for an unknown service."""
        if request.service not in self._statuses:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
        return HealthCheckResponse(status=self._statuses[request.service])

    async def List(self, request: Any, context: Any) -> Any:
        """Return the statuses of all services."""
        statuses = {name: HealthCheckResponse(status=status) for name, status in self._statuses.items()}
        return health_pb2.HealthListResponse(statuses=statuses)  # type: ignore[attr-defined]  # the stubs lack it

    async def Watch(self, request: Any, context: Any) -> None:
        """Send the status, and each change of it, until the caller cancels or the server drains."""
        sent = None
        while True:
            changed, draining = self._changed, self._draining
            status = self._statuses.get(request.service, HealthCheckResponse.SERVICE_UNKNOWN)
            if status != sent:
                await context.write(HealthCheckResponse(status=status))
                sent = status
            if draining:
                return
            await changed.wait()
