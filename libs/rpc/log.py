"""Logs: one JSON object a line, phone numbers masked."""

import logging
import re
from typing import Any

import structlog

_PHONE = re.compile(r"\+?\d{7,15}")


def mask(text: str) -> str:
    """Return the text with the middle of each phone number hidden: +4915112345678 is +49********678."""
    return _PHONE.sub(lambda found: found[0][:3] + "*" * (len(found[0]) - 6) + found[0][-3:], text)


def _mask_all(_: Any, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    return {
        name: mask(value) if isinstance(value, str) and name != "timestamp" else value for name, value in event.items()
    }


def configure(level: str, **fields: str) -> None:
    """Log to standard error from `level` on, each line with `fields`."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            _mask_all,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(**fields)
