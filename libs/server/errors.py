"""The error model: maps what handlers and drivers raise to the google.rpc.Status that a caller gets.

Every error carries ErrorInfo{reason, domain "parlor", metadata}. Errors that a retry may resolve also carry RetryInfo,
and the trailer `grpc-retry-pushback-ms`. Messages are ours, never a driver's.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeAlias

import grpc
import psycopg
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, PreconditionFailure, ResourceInfo, RetryInfo
from google.rpc.status_pb2 import Status

from libs.cache import CacheUnavailable, CommitUnknown
from libs.db import STATEMENT_LOST, DatabaseUnavailable, PoolExhausted

Trailers: TypeAlias = tuple[tuple[str, str | bytes], ...]

DOMAIN = "parlor"
RETRY_MS = 250
PUSHBACK = "grpc-retry-pushback-ms"
MOST_VIOLATIONS = 16  # clients accept 8 KB of metadata, which contains the error


class RpcError(Exception):
    """An error with the status code, reason and details that the caller gets."""

    def __init__(
        self,
        code: grpc.StatusCode,
        reason: str,
        message: str,
        *details: Message,
        metadata: Mapping[str, str] | None = None,
        retry_ms: int | None = None,
    ) -> None:
        """`retry_ms` is the delay after which a retry may help, in ms."""
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.retry_ms = retry_ms
        self._details = details
        self._metadata = metadata

    @property
    def details(self) -> list[Message]:
        """The details that the caller gets."""
        found: list[Message] = [ErrorInfo(reason=self.reason, domain=DOMAIN, metadata=self._metadata or {})]
        found += self._details
        if self.retry_ms is not None:
            delay = Duration()
            delay.FromMilliseconds(self.retry_ms)
            found.append(RetryInfo(retry_delay=delay))
        return found

    def trailing_metadata(self) -> Trailers:
        """Return the trailers that carry the details."""
        if not self._details and not self._metadata:
            return _plain_trailers(self.code, self.reason, self.message, self.retry_ms)
        return self._trailers()

    def _trailers(self) -> Trailers:
        status = Status(code=self.code.value[0], message=self.message)
        for detail in self.details:
            packed = AnyMessage()
            packed.Pack(detail)
            status.details.append(packed)
        carried: Trailers = (("grpc-status-details-bin", status.SerializeToString()),)
        return carried if self.retry_ms is None else (*carried, (PUSHBACK, str(self.retry_ms)))


@lru_cache(maxsize=256)
def _plain_trailers(code: grpc.StatusCode, reason: str, message: str, retry_ms: int | None) -> Trailers:
    """Return the trailers of an error without details. To make them is a sixth of the work of a refused call."""
    return RpcError(code, reason, message, retry_ms=retry_ms)._trailers()


def invalid_fields(violations: Sequence[tuple[str, str]], reason: str = "INVALID_FIELD") -> RpcError:
    """Return the error of invalid fields: pairs of path and description, of which the first 16 are shown."""
    violations = violations[:MOST_VIOLATIONS]
    listed = [BadRequest.FieldViolation(field=field, description=description) for field, description in violations]
    message = "; ".join(f"{field}: {description}" if field else description for field, description in violations)
    return RpcError(grpc.StatusCode.INVALID_ARGUMENT, reason, message, BadRequest(field_violations=listed))


def not_found(kind: str, name: str) -> RpcError:
    """Return the error of a missing resource: `not_found("salon", "salon-1")` has the reason SALON_NOT_FOUND."""
    return RpcError(
        grpc.StatusCode.NOT_FOUND,
        f"{kind.upper()}_NOT_FOUND",
        f"there is no {kind} {name}",
        ResourceInfo(resource_type=f"{DOMAIN}/{kind}", resource_name=name),
    )


def already_exists(field: str, kind: str, name: str) -> RpcError:
    """Return the error of a unique value that is taken, with the reason `<FIELD>_TAKEN`."""
    return RpcError(
        grpc.StatusCode.ALREADY_EXISTS,
        f"{field.upper()}_TAKEN",
        f"{field} {name} belongs to another {kind}",
        ResourceInfo(resource_type=f"{DOMAIN}/{kind}", resource_name=name),
    )


def failed_precondition(reason: str, subject: str, message: str, **metadata: str) -> RpcError:
    """Return the error of a state that does not allow the request; a retry does not help."""
    violation = PreconditionFailure.Violation(type=reason, subject=subject, description=message)
    details = PreconditionFailure(violations=[violation])
    return RpcError(grpc.StatusCode.FAILED_PRECONDITION, reason, message, details, metadata=metadata)


def etag_mismatch(kind: str, name: str) -> RpcError:
    """Return the error of a request with an outdated etag."""
    return RpcError(
        grpc.StatusCode.ABORTED,
        "ETAG_MISMATCH",
        f"the {kind} was changed meanwhile: read it again",
        ResourceInfo(resource_type=f"{DOMAIN}/{kind}", resource_name=name),
    )


def unavailable(reason: str, message: str) -> RpcError:
    """Return the error of an unavailable dependency; a retry may help."""
    return RpcError(grpc.StatusCode.UNAVAILABLE, reason, message, retry_ms=RETRY_MS)


def draining() -> RpcError:
    """Return the error of an RPC that a stopping server refuses or ends."""
    return unavailable("DRAINING", "the service is about to end: call again")


def exhausted(reason: str, message: str) -> RpcError:
    """Return the error of an exhausted limit; a retry may help."""
    return RpcError(grpc.StatusCode.RESOURCE_EXHAUSTED, reason, message, retry_ms=RETRY_MS)


def query_timeout() -> RpcError:
    """Return the error of a statement or request that exceeded its time limit."""
    message = "the request took longer than it may: ask for less, or try again"
    return RpcError(grpc.StatusCode.DEADLINE_EXCEEDED, "QUERY_TIMEOUT", message)


def conflict() -> RpcError:
    """Return the error of conflicting transactions."""
    message = "concurrent changes are in each other's way: try again"
    return RpcError(grpc.StatusCode.ABORTED, "CONFLICT", message, retry_ms=RETRY_MS)


def internal() -> RpcError:
    """Return the error of an unexpected exception."""
    return RpcError(grpc.StatusCode.INTERNAL, "INTERNAL", "something went wrong in the service; its log says what")


def _database_unavailable() -> RpcError:
    return unavailable("DATABASE_UNAVAILABLE", "the database is away: try again")


def _commit_unknown(request: Any) -> RpcError:
    """Return the error of a commit of unknown outcome: UNAVAILABLE only if a repeat is safe: proxies repeat it."""
    message = "the change may have been made or not; "
    if getattr(request, "request_id", ""):
        return unavailable("COMMIT_UNKNOWN", message + "a retry with the same request_id is safe")
    message += "read before you repeat it: only a request with a request_id may be repeated blindly"
    return RpcError(grpc.StatusCode.ABORTED, "COMMIT_UNKNOWN", message)


# Exceptions of drivers and libs, most specific first.
TABLE: Sequence[tuple[type[Exception] | tuple[type[Exception], ...], Callable[[], RpcError]]] = (
    (DatabaseUnavailable, _database_unavailable),
    (PoolExhausted, lambda: exhausted("POOL_EXHAUSTED", "no database connection came free in time: try again")),
    (CacheUnavailable, lambda: unavailable("CACHE_UNAVAILABLE", "the cache can't be invalidated now: try again")),
    (psycopg.errors.QueryCanceled, query_timeout),
    (TimeoutError, query_timeout),
    (
        (
            psycopg.errors.DeadlockDetected,
            psycopg.errors.LockNotAvailable,  # after the lock timeout
            psycopg.errors.SerializationFailure,
            *STATEMENT_LOST,  # by a pooler; from then on nothing is prepared
        ),
        conflict,
    ),
    (psycopg.errors.DiskFull, lambda: unavailable("DATABASE_FULL", "the database is full: try again later")),
    # Unreachable, shutting down, failing over, full: classes 08, 53, 57, and lost connections.
    (psycopg.errors.ReadOnlySqlTransaction, _database_unavailable),
    (psycopg.OperationalError, _database_unavailable),
    (psycopg.InterfaceError, _database_unavailable),
)


def of_exception(error: Exception, constraints: Mapping[str, Callable[[Any], RpcError]], request: Any) -> RpcError:
    """Return the error that the caller gets for an exception of a handler; INTERNAL if it is not in TABLE.

    `constraints` returns the error for a violated constraint, by the constraint's name.
    """
    if isinstance(error, RpcError):
        return error
    if isinstance(error, psycopg.Error) and error.diag.constraint_name in constraints:
        return constraints[error.diag.constraint_name or ""](request)
    if isinstance(error, CommitUnknown):
        return _commit_unknown(request)
    for kinds, make in TABLE:
        if isinstance(error, kinds):
            return make()
    return internal()
