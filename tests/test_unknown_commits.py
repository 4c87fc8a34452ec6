"""The errors of a commit with unknown outcome, and of a full database."""

from types import SimpleNamespace

import grpc
import psycopg
import pytest

from libs.cache import CommitUnknown
from libs.server.errors import of_exception


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (SimpleNamespace(request_id="d9b0c8e0-0000-4000-8000-000000000000"), grpc.StatusCode.UNAVAILABLE),
        (SimpleNamespace(request_id=""), grpc.StatusCode.ABORTED),
        (SimpleNamespace(), grpc.StatusCode.ABORTED),
        (None, grpc.StatusCode.ABORTED),
    ],
)
def test_only_a_request_with_a_request_id_may_be_retried_after_an_unknown_commit(
    request_: object, code: grpc.StatusCode
) -> None:
    error = of_exception(CommitUnknown(), {}, request_)
    assert (error.code, error.reason) == (code, "COMMIT_UNKNOWN")


def test_a_full_disk_has_its_own_reason() -> None:
    error = of_exception(psycopg.errors.DiskFull(), {}, None)
    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "DATABASE_FULL")


@pytest.mark.parametrize("kind", [psycopg.errors.OutOfMemory, psycopg.errors.TooManyConnections])
def test_other_resource_errors_are_an_unavailable_database(kind: type[psycopg.Error]) -> None:
    error = of_exception(kind(), {}, None)
    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "DATABASE_UNAVAILABLE")
