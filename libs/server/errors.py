"""The error model: what a handler raises, what a driver raises, and the google.rpc.Status that a caller gets.

Every error carries ErrorInfo{reason, domain "parlor", metadata}; what may pass by itself carries RetryInfo, too, which
also goes out as `grpc-retry-pushback-ms`. The text is our own, never a driver's.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grpc
import psycopg
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, PreconditionFailure, ResourceInfo, RetryInfo
from google.rpc.status_pb2 import Status

from libs.cache import CacheUnavailable, CommitUnknown
from libs.db import STATEMENT_LOST, DatabaseUnavailable, PoolExhausted

DOMAIN = "parlor"
RETRY_MS = 250
PUSHBACK = "grpc-retry-pushback-ms"
MOST_VIOLATIONS = 16  # a client takes 8 KB of metadata, in which an error travels


class RpcError(Exception):
    """An error with the status code, reason and details that the caller shall get."""

    def __init__(
        self,
        code: grpc.StatusCode,
        reason: str,
        message: str,
        *details: Message,
        metadata: Mapping[str, str] | None = None,
        retry_ms: int | None = None,
    ) -> None:
        """Make an error; `retry_ms` says when a retry may help."""
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.retry_ms = retry_ms
        self.details: list[Message] = [ErrorInfo(reason=reason, domain=DOMAIN, metadata=metadata or {}), *details]
        if retry_ms is not None:
            delay = Duration()
            delay.FromMilliseconds(retry_ms)
            self.details.append(RetryInfo(retry_delay=delay))

    def trailing_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        """Return the details as gRPC carries them."""
        status = Status(code=self.code.value[0], message=self.message)
        for detail in self.details:
            packed = AnyMessage()
            packed.Pack(detail)
            status.details.append(packed)
        carried: list[tuple[str, str | bytes]] = [("grpc-status-details-bin", status.SerializeToString())]
        if self.retry_ms is not None:
            carried.append((PUSHBACK, str(self.retry_ms)))
        return tuple(carried)


def invalid_fields(violations: Sequence[tuple[str, str]], reason: str = "INVALID_FIELD") -> RpcError:
    """Return the error of bad fields: pairs of the field's path and what is wrong with it; the first of them."""
    violations = violations[:MOST_VIOLATIONS]
    listed = [BadRequest.FieldViolation(field=field, description=description) for field, description in violations]
    message = "; ".join(f"{field}: {description}" if field else description for field, description in violations)
    return RpcError(grpc.StatusCode.INVALID_ARGUMENT, reason, message, BadRequest(field_violations=listed))


def not_found(kind: str, name: str) -> RpcError:
    """Return the error of something that does not exist: `not_found("salon", "salon-1")` is SALON_NOT_FOUND."""
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
    """Return the error of a state that does not allow what was asked; a retry will not help."""
    violation = PreconditionFailure.Violation(type=reason, subject=subject, description=message)
    details = PreconditionFailure(violations=[violation])
    return RpcError(grpc.StatusCode.FAILED_PRECONDITION, reason, message, details, metadata=metadata)


def etag_mismatch(kind: str, name: str) -> RpcError:
    """Return the error of a request that names an older version."""
    return RpcError(
        grpc.StatusCode.ABORTED,
        "ETAG_MISMATCH",
        f"the {kind} was changed meanwhile: read it again",
        ResourceInfo(resource_type=f"{DOMAIN}/{kind}", resource_name=name),
    )


def unavailable(reason: str, message: str) -> RpcError:
    """Return the error of a part that is away; a retry may help."""
    return RpcError(grpc.StatusCode.UNAVAILABLE, reason, message, retry_ms=RETRY_MS)


def exhausted(reason: str, message: str) -> RpcError:
    """Return the error of a part that is full; a retry may help."""
    return RpcError(grpc.StatusCode.RESOURCE_EXHAUSTED, reason, message, retry_ms=RETRY_MS)


def query_timeout() -> RpcError:
    """Return the error of a statement or request over its time."""
    return RpcError(grpc.StatusCode.DEADLINE_EXCEEDED, "QUERY_TIMEOUT", "the request took longer than it may")


def conflict() -> RpcError:
    """Return the error of transactions in each other's way."""
    message = "concurrent changes are in each other's way"
    return RpcError(grpc.StatusCode.ABORTED, "CONFLICT", message, retry_ms=RETRY_MS)


def internal() -> RpcError:
    """Return the error of whatever nobody foresaw."""
    return RpcError(grpc.StatusCode.INTERNAL, "INTERNAL", "something went wrong in the service; its log says what")


def _database_unavailable() -> RpcError:
    return unavailable("DATABASE_UNAVAILABLE", "the database is away")


def _commit_unknown(request: Any) -> RpcError:
    """Return the error of a commit of unknown outcome: UNAVAILABLE if a repeat is safe, since proxies repeat that."""
    message = "the change may have been made or not; "
    if getattr(request, "request_id", ""):
        return unavailable("COMMIT_UNKNOWN", message + "a retry with the same request_id is safe")
    message += "read before you repeat it: only a request with a request_id may be repeated blindly"
    return RpcError(grpc.StatusCode.ABORTED, "COMMIT_UNKNOWN", message)


# What drivers and libs raise, most special first.
TABLE: Sequence[tuple[type[Exception] | tuple[type[Exception], ...], Callable[[], RpcError]]] = (
    (DatabaseUnavailable, _database_unavailable),
    (PoolExhausted, lambda: exhausted("POOL_EXHAUSTED", "no database connection came free in time")),
    (CacheUnavailable, lambda: unavailable("CACHE_UNAVAILABLE", "the cache can't be invalidated now")),
    (psycopg.errors.QueryCanceled, query_timeout),
    (TimeoutError, query_timeout),
    (
        (
            psycopg.errors.DeadlockDetected,
            psycopg.errors.LockNotAvailable,  # after the lock timeout
            psycopg.errors.SerializationFailure,
            *STATEMENT_LOST,  # by a pooler that lends the server to others; nothing is prepared from then on
        ),
        conflict,
    ),
    (psycopg.errors.DiskFull, lambda: unavailable("DATABASE_FULL", "the database has no room for more")),
    # Away, shutting down, failing over, full: all of class 08, 53, 57, and a lost connection.
    (psycopg.errors.ReadOnlySqlTransaction, _database_unavailable),
    (psycopg.OperationalError, _database_unavailable),
    (psycopg.InterfaceError, _database_unavailable),
)


def of_exception(error: Exception, constraints: Mapping[str, Callable[[Any], RpcError]], request: Any) -> RpcError:
    """Return the error that the caller gets for what a handler raised; INTERNAL for what is in no table.

    `constraints` says what the violation of a named constraint means to a request.
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
