"""Logs: one JSON object a line, phone numbers masked."""

import logging
import re
import sys
from typing import Any

import structlog

_PHONE = re.compile(r"\+?\d{7,15}")


def mask(text: str) -> str:
    """Return the text with the middle of each phone number hidden: +4915112345678 is +49********678."""
    return _PHONE.sub(lambda found: found[0][:3] + "*" * (len(found[0]) - 6) + found[0][-3:], text)


def _mask_in(value: Any) -> Any:
    if isinstance(value, str):
        return mask(value)
    if isinstance(value, dict):
        return {name: _mask_in(part) for name, part in value.items()}
    return [_mask_in(part) for part in value] if isinstance(value, list | tuple | set) else value


def _mask_all(_: Any, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    return {name: value if name == "timestamp" else _mask_in(value) for name, value in event.items()}


def configure(level: str, **fields: str) -> None:
    """Log to standard error from `level` on, each line with `fields`; what libraries log, from `warning` on, too."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso"),
        structlog.processors.format_exc_info,
        _mask_all,
    ]
    write = structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[*shared, write],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(**fields)
    handler = logging.StreamHandler(sys.stderr)
    remove_meta = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=[remove_meta, write]))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
