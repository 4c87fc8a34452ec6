"""Logs: one JSON object per line, with personal data masked."""

import logging
import re
import sys
import traceback
from collections.abc import Callable
from typing import Any

import psycopg
import structlog
from structlog.typing import ExcInfo

_PHONE = re.compile(r"\+\d(?:[ ()./-]{0,2}\d){6,14}|\d{7,15}")
_WHATSAPP_ID = re.compile(r"wamid\.[\w+/=.-]+")
_USER_ID = re.compile(r"\b([A-Z]{2}\.)(?:ENT\.)?[A-Za-z0-9]{6,128}\b")
# Postgres appends the values of the row to an error. Cut to the end of the text: a value may contain newlines.
_DETAIL = re.compile(r"(?:\n|\\n)(?:DETAIL|CONTEXT):.*", re.DOTALL)


def mask(text: str) -> str:
    """Return the text with the middle of each phone number masked: +4915112345678 becomes +49********678.

    WhatsApp message ids, which contain the phone number in base64, and user ids keep only their prefix.
    """
    text = _WHATSAPP_ID.sub("wamid.***", text)
    text = _USER_ID.sub(r"\1***", text)
    return _PHONE.sub(lambda found: found[0][:3] + "*" * (len(found[0]) - 6) + found[0][-3:], text)


def _formatted(exc_info: ExcInfo) -> str:
    """Return a traceback without the row values in the texts of Postgres errors."""
    text = "".join(traceback.format_exception(*exc_info)).rstrip()
    chain: list[BaseException | None] = [exc_info[1]]
    seen = set()
    while chain:
        if (error := chain.pop()) is None or id(error) in seen:
            continue
        seen.add(id(error))
        chain += [error.__cause__, error.__context__]
        if isinstance(error, psycopg.Error) and error.diag.message_primary:
            text = text.replace(str(error), error.diag.message_primary)
    return text


def _mask_in(value: Any) -> Any:
    if isinstance(value, str):
        return mask(_DETAIL.sub("", value))
    if isinstance(value, dict):
        return {name: _mask_in(part) for name, part in value.items()}
    return [_mask_in(part) for part in value] if isinstance(value, list | tuple | set) else value


def _mask_all(_: Any, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    # The two IDs are hexadecimal: any digits may follow each other.
    texts: dict[str, Callable[[Any], Any]] = {"timestamp": str, "trace_id": str, "request_id": str, "exception": mask}
    return {name: texts.get(name, _mask_in)(value) for name, value in event.items()}


def configure(level: str, **fields: str) -> None:
    """Log to standard error from `level` on, with `fields` on each line; libraries' logs from `warning` on."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso"),
        structlog.processors.ExceptionRenderer(_formatted),
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
