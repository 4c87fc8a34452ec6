"""grpc.health.v1 by service name.

Not grpc_health's own servicer: there a Watch never ends, and the server, whose drain waits for every stream, would take
as long as it may (30 s) to end; and a watcher that is slow to read keeps everybody's status from being set.
"""

import asyncio
from typing import Any

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckResponse

SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING


class HealthServicer(health_pb2_grpc.HealthServicer):
    """The health of one server; the empty name is the process, SERVING until it drains."""

    def __init__(self) -> None:
        self._statuses: dict[str, Any] = {"": SERVING}
        self._draining = False
        self._changed = asyncio.Event()

    async def set(self, service: str, status: Any) -> None:
        """Set the status of a service; once draining, it stays NOT_SERVING."""
        self._statuses[service] = NOT_SERVING if self._draining else status
        self._tell()

    async def drain(self) -> None:
        """Say NOT_SERVING to all who ask and all who watch, and end every Watch."""
        self._draining = True
        self._statuses = dict.fromkeys(self._statuses, NOT_SERVING)
        self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def Check(self, request: Any, context: Any) -> HealthCheckResponse:
        """Tell the status; NOT_FOUND for a service that is not here."""
        if request.service not in self._statuses:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
        return HealthCheckResponse(status=self._statuses[request.service])

    async def Watch(self, request: Any, context: Any) -> None:
        """Tell the status, and each change of it, until the caller leaves or the server drains."""
        told = None
        while True:
            changed, draining = self._changed, self._draining
            status = self._statuses.get(request.service, HealthCheckResponse.SERVICE_UNKNOWN)
            if status != told:
                await context.write(HealthCheckResponse(status=status))
                told = status
            if draining:
                return
            await changed.wait()
