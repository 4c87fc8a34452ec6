"""What a server may listen on: beyond this machine only with TLS and with identities of its callers."""

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from ipaddress import ip_address
from urllib.parse import parse_qs, unquote, urlsplit

import structlog
from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict

from libs.server.settings import ServerSettings

# Secrets that this repository or the images of its servers have published.
KNOWN_SECRETS = frozenset({"parlor-dev", "parlor-test", "postgres", "password", "changeme", "secret"})

log = structlog.get_logger()


class Exposed(Exception):
    """The server would listen beyond this machine, unprotected. The message is one line."""


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach an address: a loopback address, `localhost`, or `unix:path`."""
    if host == "localhost" or host.startswith("unix:"):
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:  # a name, which may come to mean any address
        return False


def check_exposure(
    settings: ServerSettings, secrets: Iterable[str] = (), environ: Mapping[str, str] = os.environ
) -> None:
    """Return if the server may listen where its settings say; with ALLOW_INSECURE log a warning.

    `secrets` are the names of variables whose values must not be known ones. Raises: Exposed.
    """
    hosts = {"HOST": settings.host}
    if settings.ops_port is not None or settings.metrics_port is not None:
        hosts["OPS_HOST"] = settings.ops_host
    exposed = " and ".join(f"{name}={host}" for name, host in hosts.items() if not is_loopback(host))
    if not exposed:
        return
    if known := [name for name in secrets if KNOWN_SECRETS & secret_parts(environ.get(name, ""))]:
        raise Exposed(f"{exposed} is reachable from other machines, and {known[0]} has a known development secret")
    missing = [] if settings.tls_files else ["TLS_CERT_FILE and TLS_KEY_FILE"]
    missing += [] if settings.requires_identity else ["AUTH_MODE"]
    if settings.metrics_port is not None and not is_loopback(settings.ops_host) and not settings.tls_client_ca_file:
        missing.append("TLS_CLIENT_CA_FILE, which METRICS_PORT needs")
    if not missing:
        return
    reason = f"{exposed} is reachable from other machines, without {' and without '.join(missing)}"
    if not settings.allow_insecure:
        raise Exposed(f"{reason}; set these, or ALLOW_INSECURE=true")
    log.warning("insecure", reason=reason)


def shows_reflection(settings: ServerSettings) -> bool:
    """Return whether the main port has reflection."""
    return settings.reflection if settings.reflection is not None else not settings.requires_identity


def secret_parts(value: str) -> set[str]:
    """Return the secrets that a value may contain: passwords of a URL or DSN, or several separated by commas."""
    parts = {part.strip() for part in value.split(",")}
    with suppress(ValueError):  # no URL
        url = urlsplit(value)
        parts.add(unquote(url.netloc.rpartition("@")[0].partition(":")[2]))
        parts.update(parse_qs(url.query).get("password", ()))
    with suppress(ProgrammingError):  # no DSN
        parts.add(str(conninfo_to_dict(value).get("password")))
    return parts
