"""The errors of callers without an identity, a right or a quota. They say nothing about what exists."""

import grpc

from libs.server.errors import RETRY_MS, RpcError


def unauthenticated(why: str) -> RpcError:
    """Return the error of a call whose caller is not known."""
    return RpcError(grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED", f"the caller is not known: {why}")


def method_not_allowed() -> RpcError:
    """Return the error of a call of a method that the policy does not grant."""
    return RpcError(grpc.StatusCode.PERMISSION_DENIED, "METHOD_NOT_ALLOWED", "the caller may not call this method")


def salon_not_allowed(*, names_salons: bool) -> RpcError:
    """Return the error of a request for a salon, or for all, that the policy does not grant."""
    text = "the caller may not use this salon"
    if not names_salons:
        text = "the request is about all salons: the caller may not use all"
    return RpcError(grpc.StatusCode.PERMISSION_DENIED, "SALON_NOT_ALLOWED", text)


def quota_exceeded(whose: str, of_what: str, retry_ms: int = RETRY_MS) -> RpcError:
    """Return the error of a call over a quota; `retry_ms` is when the next one may be within it."""
    text = f"{whose} has too many calls {of_what}: try again"
    return RpcError(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED", text, retry_ms=retry_ms)
