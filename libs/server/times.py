"""Moments of a request."""

from datetime import UTC, datetime, timedelta
from typing import Any

from libs.server.errors import invalid_fields

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def moment(request: Any, field: str) -> datetime | None:
    """Return a Timestamp field to the microsecond, None if it is not set.

    Raises: INVALID_FIELD for nanos that are none (protovalidate's rules, which came before, look at the seconds only).
    """
    if not request.HasField(field):
        return None
    timestamp = getattr(request, field)
    if not 0 <= timestamp.nanos < 1_000_000_000:
        raise invalid_fields([(field, "nanos must be from 0 to 999999999")])
    return _EPOCH + timedelta(seconds=timestamp.seconds, microseconds=timestamp.nanos // 1000)


def period(request: Any) -> tuple[datetime, datetime]:
    """Return the required fields start_time and end_time of a request."""
    start, end = moment(request, "start_time"), moment(request, "end_time")
    if start is None or end is None or start >= end:
        raise invalid_fields([("end_time", "end_time must be at least a microsecond after start_time")])
    return start, end


def whole_seconds(request: Any, field: str) -> int | None:
    """Return a Duration field in s, None if it is not set. Raises: INVALID_FIELD for parts of a second."""
    if not request.HasField(field):
        return None
    duration = getattr(request, field)
    if duration.nanos:
        raise invalid_fields([(field, "must be whole seconds")])
    return int(duration.seconds)
