"""The audit log: a JSON line for each call that changes data, and for each refused one.

A line has the time, the caller, its address, the method, the salons, the request_id, the code and the reason. It never
contains a customer's number, name or text. The salons and the caller are masked like other texts of the log unless
they are known: the salons of a successful call, the callers of the policy.
"""

import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import IO, Any

from libs.server.auth.settings import AccessError
from libs.server.failure_log import uuid_of
from libs.server.logs import mask

# Refusals per second; the next line has the number of skipped ones. A stranger must not fill the disk.
MOST_REFUSALS = 100
MOST_SALONS = 16
MOST_CHARACTERS = 256


class Audit:
    """Writes the lines, each with one write: processes may share a file."""

    def __init__(self, path: Path | None) -> None:
        """Append to a file; None is standard error. Raises: AccessError."""
        self._path = path
        self._file: IO[str] = sys.stderr
        self._second = 0
        self._refusals = 0
        self._skipped = 0
        self.reopen()

    def reopen(self) -> None:
        """Open the file again: it may have been rotated. Raises: AccessError; the last file stays in use."""
        if self._path is not None:
            try:
                before, self._file = self._file, self._path.open("a", buffering=1, encoding="utf-8")
            except OSError as error:
                raise AccessError(f"AUDIT_LOG: {self._path} can't be written: {error.strerror}") from error
            if before is not sys.stderr:
                before.close()

    def close(self) -> None:
        """Close the file."""
        if self._file is not sys.stderr:
            self._file.close()

    def refused(self, **fields: Any) -> None:
        """Write a line of a refused call, unless there were too many in this second."""
        second = int(monotonic())
        if second != self._second:
            self._second, self._refusals = second, 0
        self._refusals += 1
        if self._refusals > MOST_REFUSALS:
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
        """Write a line; `request` is None if it was not read."""
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
        }
        text = json.dumps({name: value for name, value in line.items() if value not in ("", None)})
        self._file.write(text + "\n")
