"""Logs failed RPCs, a line each: at most 10 per second of each method and reason, 1 per minute of canceled RPCs."""

import re
import time
from collections.abc import Iterable
from typing import Any
from uuid import UUID

import structlog

from libs.server.errors import RpcError

LINES_A_SECOND = 10
LIMITS = {"CANCELLED": (1, 60)}  # lines, seconds: a client may cancel thousands of RPCs

# Failures of the service itself: each one is logged.
LEVELS = {"INTERNAL": "error", "DATABASE_FULL": "error", "COMMIT_UNKNOWN": "warning"}

# https://www.w3.org/TR/trace-context/#traceparent-header
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")

log = structlog.get_logger()


class FailureLog:
    """Logs the failed RPCs of one method.

    A line does not contain an RpcError's message, which may quote the request, and contains the caller's IDs only if
    they are well-formed: they are not masked.
    """

    def __init__(self, method: str) -> None:
        self._method = method
        self._period: dict[str, int] = {}
        self._lines: dict[str, int] = {}
        self._skipped: dict[str, int] = {}

    def add(
        self,
        code: str,
        reason: str,
        seconds: float,
        metadata: Iterable[tuple[str, Any]] | None,
        request: Any,
        raised: BaseException | None = None,
    ) -> None:
        """Log one failed RPC that took `seconds`; `request` is None if it could not be parsed."""
        level = LEVELS.get(reason, "info")
        if level == "info" and not self._may_log(reason):
            return
        event: dict[str, Any] = {"method": self._method, "code": code, "reason": reason, "ms": round(seconds * 1000, 1)}
        if skipped := self._skipped.pop(reason, 0):
            event["skipped"] = skipped
        event["trace_id"] = trace_id(metadata or ())
        event["request_id"] = uuid_of(getattr(request, "request_id", ""))
        if reason == "INTERNAL":
            event["exc_info"] = raised
        elif raised is not None and not isinstance(raised, RpcError):
            event["error"] = repr(raised)
        getattr(log, level)("rpc", **{name: value for name, value in event.items() if value is not None})

    def _may_log(self, reason: str) -> bool:
        """Count a line; return whether it is within the limit. The next line logged has the number of skipped ones."""
        most, seconds = LIMITS.get(reason, (LINES_A_SECOND, 1))
        period = int(time.monotonic() / seconds)
        if self._period.get(reason) != period:
            self._period[reason], self._lines[reason] = period, 0
        self._lines[reason] += 1
        if self._lines[reason] <= most:
            return True
        self._skipped[reason] = self._skipped.get(reason, 0) + 1
        return False


def trace_id(metadata: Iterable[tuple[str, Any]]) -> str | None:
    """Return the trace id of a caller's `traceparent`, None without a valid one."""
    for name, value in metadata:
        if name == "traceparent" and isinstance(value, str) and (found := _TRACEPARENT.fullmatch(value)):
            return found[1]
    return None


def uuid_of(text: str) -> str | None:
    """Return a UUID in its usual notation, None for other texts: they may contain personal data."""
    try:
        return str(UUID(text)) if text else None
    except ValueError:
        return None
