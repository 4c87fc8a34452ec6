"""Runs all checks."""

from collections.abc import Iterable
from ssl import SSLContext

import psycopg

from libs.db import split_pool_parameters
from ops.doctor.database import CHECKS
from ops.doctor.findings import Diagnosis, Finding, Limits
from ops.doctor.metrics import examine_metrics, read_metrics


def examine(
    database_url: str, metrics_urls: Iterable[str], limits: Limits | None = None, tls: SSLContext | None = None
) -> Diagnosis:
    """Return what is wrong in a database and in the services at these URLs. Only reads. Raises: psycopg.Error.

    `tls` is for URLs of https, see read_metrics.
    """
    limits = limits or Limits()
    findings: list[Finding] = []
    unchecked: list[str] = []
    with psycopg.connect(split_pool_parameters(database_url)[0], autocommit=True) as conn:
        conn.read_only = True
        for check in CHECKS:
            try:
                findings += list(check(conn, limits))
            except LookupError as error:
                unchecked.append(str(error))
            except psycopg.Error as error:
                if conn.closed:
                    raise
                unchecked.append(f"{check.__name__.replace('_', ' ')}: {' '.join(str(error).split())}")
    for url in metrics_urls:
        try:
            findings += examine_metrics(url, read_metrics(url, tls), limits)
        except (OSError, ValueError) as error:
            unchecked.append(f"{url}: {error}")
    return Diagnosis(findings, unchecked)
