"""The audit log: a JSON line for each call that changes data, and for each refused one.

A line has the time, the caller, its address, the method, the salons, the request_id, the code and the reason. It never
contains a customer's number, name or text. The salons and the caller are masked like other texts of the log unless
they are known: the salons of a successful call, the callers of the policy.
"""

import errno
import json
import math
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any

import structlog

from libs.server.auth.settings import AccessError
from libs.server.failure_log import uuid_of
from libs.server.logs import mask

# Lines per second that strangers cause; the next line has the number of skipped ones. They must not fill the disk.
MOST_LIMITED = 100
REPORT_SECONDS = 60  # between two lines of the log that say that the file can't be written
MOST_SALONS = 16
MOST_CHARACTERS = 256
STDERR = 2

log = structlog.get_logger()


class Audit:
    """Writes the lines, each with one write: processes may share a file."""

    def __init__(self, path: Path | None) -> None:
        """Append to a file; None is standard error. Raises: AccessError."""
        self._path = path
        self._file = STDERR
        self._second = 0
        self._limited = 0
        self._skipped = 0
        self._lost = 0
        self._reported = -math.inf
        self._is_torn = False
        self.reopen()

    def reopen(self) -> None:
        """Open the file again: it may have been rotated. Raises: AccessError; the last file stays in use."""
        if self._path is not None:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
            try:
                opened = os.open(self._path, flags, 0o666)
            except OSError as error:
                raise AccessError(f"AUDIT_LOG: {self._path} can't be written: {error.strerror}") from error
            self.close()
            self._file = opened

    def close(self) -> None:
        """Close the file; later lines go to standard error."""
        before, self._file = self._file, STDERR
        if before != self._file:
            os.close(before)

    def add_limited(self, **fields: Any) -> None:
        """Write a line that a stranger can cause at will, unless there were too many in this second."""
        second = int(monotonic())
        if second != self._second:
            self._second, self._limited = second, 0
        self._limited += 1
        if self._limited > MOST_LIMITED:
            self._skipped += 1
            return
        if self._skipped:
            fields["skipped"], self._skipped = self._skipped, 0
        self.add(**fields)

    def add(
        self,
        *,
        method: str,
        caller: str,
        is_listed: bool,
        peer: str,
        salons: Sequence[str],
        request: Any,
        code: str,
        reason: str,
        **more: int,
    ) -> None:
        """Write a line; `request` is None if it was not read.

        A line that can't be written is lost: the call has ended, and its caller gets its reply. The log says so, once a
        minute, and the next line has the number of `lost` ones.
        """
        named = ",".join(salons[:MOST_SALONS])
        line = {
            "event": "audit",
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "caller": caller if is_listed else mask(caller[:MOST_CHARACTERS]),
            "peer": peer,
            "method": method,
            "salon_id": named if code == "OK" else mask(named[:MOST_CHARACTERS]),
            "request_id": uuid_of(getattr(request, "request_id", "")),
            "code": code,
            "reason": reason,
            **more,
            "lost": self._lost or None,
        }
        try:
            self._write(json.dumps({name: value for name, value in line.items() if value not in ("", None)}))
        except OSError as error:
            self._lost += 1
            self._report(error)
        else:
            self._lost = 0

    def _write(self, text: str) -> None:
        """Write a line with one call. Raises: OSError, also if only a part was written."""
        data = (("\n" if self._is_torn else "") + text + "\n").encode()
        written = os.write(self._file, data)
        self._is_torn = written < len(data)
        if self._is_torn:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _report(self, error: OSError) -> None:
        if monotonic() - self._reported >= REPORT_SECONDS:
            self._reported = monotonic()
            log.error("audit", error=f"AUDIT_LOG can't be written: {error.strerror}", lost=self._lost)
