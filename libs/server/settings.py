"""Settings of an RPC server."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, ValidationError, model_validator

from libs.cache import CacheSettings
from libs.db import DatabaseSettings
from libs.server.auth.settings import AuthSettings

MIB = 2**20
LARGEST_MESSAGE_BYTES = 16 * MIB

# The prefix of the variables of each settings class.
PREFIXES = {kind.__name__: kind.model_config.get("env_prefix", "") for kind in (CacheSettings, DatabaseSettings)}


class ServerSettings(AuthSettings):
    """Addresses, callers and limits of a server. An empty variable counts as not set, here and elsewhere."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(0, ge=0, le=65_535, description="Port to listen on; 0 takes a free one.")
    ops_host: str = Field("127.0.0.1", description="Address of OPS_PORT and METRICS_PORT.")
    ops_port: int | None = Field(
        None,
        ge=0,
        le=65_535,
        description="Port of OpsService and of reflection. Default: OpsService is not served.",
    )
    metrics_port: int | None = Field(
        None, ge=0, le=65_535, description="Port of the Prometheus metrics. Default: none."
    )
    reflection: bool | None = Field(
        None, description="Whether PORT has reflection. Default: only if callers need no identity."
    )
    allow_insecure: bool = Field(
        False, description="Listen beyond this machine even without TLS or without identities of callers."
    )
    workers: int = Field(1, ge=1, le=64, description="Processes that share the port.")
    worker_timeout: int = Field(
        10_000, ge=0, description="Time after which a worker with a hanging event loop is killed, in ms; 0: never."
    )
    server_transport: Literal["http2", "grpcio"] = Field(
        "http2", description="Transport of the RPCs: our server on libnghttp2, or grpcio's."
    )
    tls_cert_file: Path | None = Field(None, description="Certificate to serve TLS with, PEM. Default: no TLS.")
    tls_key_file: Path | None = Field(None, description="Its key, PEM.")
    tls_client_ca_file: Path | None = Field(
        None, description="CAs, PEM: a client must have a certificate of one of them. Default: it needs none."
    )
    max_connections: int = Field(
        1000, ge=1, description="Maximum connections of a worker; more are closed (http2 only)."
    )
    max_concurrent_streams: int = Field(
        1000, ge=1, description="Maximum RPCs under way on one connection (http2 only)."
    )
    max_connection_age: int = Field(
        600_000, ge=0, description="Age at which a connection is ended with GOAWAY, in ms; 0: never."
    )
    max_connection_age_grace: int = Field(30_000, ge=0, description="Maximum time for its RPCs to end then, in ms.")
    max_connection_idle: int = Field(
        3_600_000, ge=0, description="Maximum time of a connection without an RPC, in ms; 0: no limit."
    )
    keepalive_time: int = Field(60_000, ge=0, description="Silence after which a client is pinged, in ms; 0: never.")
    keepalive_timeout: int = Field(20_000, ge=1, description="Maximum time for its answer, in ms.")
    send_timeout: int = Field(
        30_000,
        ge=1,
        description="Maximum time in which a client reads nothing of its replies, in ms (http2 only).",
    )
    receive_timeout: int = Field(
        30_000,
        ge=1,
        description="Maximum time for a client to send a request, in ms; more for a large one (http2 only).",
    )
    max_calls: int = Field(
        4000, ge=1, description="Maximum RPCs of a worker, with those waiting; more are refused (http2 only)."
    )
    max_receiving: int = Field(
        48 * MIB, ge=LARGEST_MESSAGE_BYTES, description="Maximum bytes of requests that a worker holds (http2 only)."
    )
    max_sending: int = Field(
        48 * MIB,
        ge=LARGEST_MESSAGE_BYTES,
        description="Maximum bytes of replies that a worker holds for clients (http2 only).",
    )
    max_concurrent_rpcs: int = Field(1000, ge=1, description="Maximum RPCs of a worker; more fail with OVERLOADED.")
    max_watchers: int = Field(2000, ge=1, description="Maximum streams of a worker; more fail with OVERLOADED.")
    request_timeout: int = Field(30_000, ge=1, description="Maximum time of an RPC, in ms.")
    drain_delay: int = Field(0, ge=0, description="On SIGTERM, time to serve on after health is NOT_SERVING, in ms.")
    drain_timeout: int = Field(30_000, ge=0, description="On SIGTERM, maximum time for RPCs to end, in ms.")
    log_level: str = Field("info", pattern="^(debug|info|warning|error)$", description="Minimum level that is logged.")

    @model_validator(mode="after")
    def _check_tls(self) -> Self:
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError("TLS_CERT_FILE and TLS_KEY_FILE belong together")
        if self.tls_client_ca_file is not None and self.tls_cert_file is None:
            raise ValueError("TLS_CLIENT_CA_FILE needs TLS_CERT_FILE and TLS_KEY_FILE")
        if self.takes_certificates and self.tls_client_ca_file is None:
            raise ValueError("AUTH_MODE=mtls needs TLS_CLIENT_CA_FILE, TLS_CERT_FILE and TLS_KEY_FILE")
        return self

    @property
    def tls_files(self) -> tuple[Path, Path, Path | None] | None:
        """The files of the certificate, the key and the clients' CAs; None without TLS."""
        if self.tls_cert_file is None or self.tls_key_file is None:
            return None
        return self.tls_cert_file, self.tls_key_file, self.tls_client_ca_file

    @classmethod
    def read(cls, default_port: int) -> Self:
        """Return the settings of the environment, overridden by the command line (`--workers 2`).

        Raises: ValueError, which names the variable.
        """
        settings = cls(_cli_parse_args=True, _cli_kebab_case=True)
        return settings if "port" in settings.model_fields_set else settings.model_copy(update={"port": default_port})


def explain(error: ValueError) -> str:
    """Describe invalid settings by the names of their variables, never by their values."""
    if not isinstance(error, ValidationError):
        return str(error)
    prefix = PREFIXES.get(error.title, "")
    return "; ".join(
        _explain_one(prefix, problem["type"], problem["loc"], problem["msg"]) for problem in error.errors()
    )


def _explain_one(prefix: str, kind: str, path: tuple[int | str, ...], message: str) -> str:
    name = str(path[0]) if path else "settings"
    variable = name if name.isupper() or not path else f"{prefix}{name}".upper()
    return f"{variable} is not set" if kind == "missing" else f"{variable}: {message}"
