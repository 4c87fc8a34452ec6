"""WhatsApp's timestamps."""

from datetime import UTC, datetime, timedelta
from typing import Any

FUTURE = timedelta(minutes=10)  # by which a clock may be fast
_IN_9998 = 253_370_764_799  # s since 1970


def moment(value: Any) -> datetime:
    """Read a timestamp: seconds since 1970, as a string or a number; the last moment of 9998 for later ones.

    Raises: ValueError.
    """
    try:
        seconds = int(value) if isinstance(value, str | int) and not isinstance(value, bool) else -1
    except ValueError:
        seconds = -1
    if seconds < 0:
        raise ValueError("not the seconds since 1970")
    return datetime.fromtimestamp(min(seconds, _IN_9998), UTC)


def clamped(time: datetime) -> tuple[datetime, bool]:
    """Return a time, or now if it is too far in the future; and whether it was."""
    now = datetime.now(UTC)
    return (now, True) if time > now + FUTURE else (time, False)
