"""Settings of an RPC server."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from libs.cache import CacheSettings
from libs.db import DatabaseSettings

MIB = 2**20
LARGEST_MESSAGE_BYTES = 16 * MIB

# What the variables of a group of settings start with, where that is anything.
PREFIXES = {kind.__name__: kind.model_config.get("env_prefix", "") for kind in (CacheSettings, DatabaseSettings)}


class ServerSettings(BaseSettings):
    """Where a server listens and how much it takes on. A variable that is empty is not set, here and elsewhere."""

    model_config = SettingsConfigDict(env_ignore_empty=True)

    host: str = Field("0.0.0.0", description="Address to listen on.")  # noqa: S104
    port: int = Field(0, ge=0, le=65_535, description="Port to listen on; 0 takes a free one.")
    metrics_port: int | None = Field(
        None, ge=0, le=65_535, description="Port of the Prometheus metrics. Default: none."
    )
    workers: int = Field(1, ge=1, le=64, description="Processes that share the port.")
    worker_timeout: int = Field(
        10_000, ge=0, description="Time after which a worker whose event loop hangs is killed, in ms; 0: never."
    )
    server_transport: Literal["http2", "grpcio"] = Field(
        "http2", description="What carries the RPCs: our own server on libnghttp2, or grpcio's."
    )
    tls_cert_file: Path | None = Field(None, description="Certificate to serve TLS with, PEM. Default: no TLS.")
    tls_key_file: Path | None = Field(None, description="Its key, PEM.")
    tls_client_ca_file: Path | None = Field(
        None, description="Authorities, PEM: a client must show a certificate of one of them. Default: it needs none."
    )
    max_connections: int = Field(1000, ge=1, description="Connections of a worker; more are closed (http2 only).")
    max_concurrent_streams: int = Field(1000, ge=1, description="RPCs under way on one connection (http2 only).")
    max_connection_age: int = Field(
        600_000, ge=0, description="Age of a connection from which its client is sent to a new one, in ms; 0: never."
    )
    max_connection_age_grace: int = Field(
        30_000, ge=0, description="Longest time to let its RPCs end from then on, in ms."
    )
    max_connection_idle: int = Field(
        3_600_000, ge=0, description="Longest time of a connection without an RPC, in ms; 0: for ever."
    )
    keepalive_time: int = Field(
        60_000, ge=0, description="Silence of a client from which it is pinged, in ms; 0: never."
    )
    keepalive_timeout: int = Field(20_000, ge=1, description="Longest time for its answer, in ms.")
    send_timeout: int = Field(
        30_000,
        ge=1,
        description="Longest time that a client may take nothing of its replies, in ms (http2 only).",
    )
    receive_timeout: int = Field(
        30_000,
        ge=1,
        description="Longest time for a client to send a request, in ms, and more for a large one (http2 only).",
    )
    max_calls: int = Field(
        4000, ge=1, description="RPCs of a worker, waiting ones included; more are told to retry (http2 only)."
    )
    max_receiving: int = Field(
        48 * MIB, ge=LARGEST_MESSAGE_BYTES, description="Bytes of all requests that a worker holds (http2 only)."
    )
    max_sending: int = Field(
        48 * MIB,
        ge=LARGEST_MESSAGE_BYTES,
        description="Bytes of all replies of a worker that no client has taken (http2 only).",
    )
    max_concurrent_rpcs: int = Field(1000, ge=1, description="RPCs of a worker beyond which one is told OVERLOADED.")
    request_timeout: int = Field(30_000, ge=1, description="Longest time of an RPC, in ms.")
    drain_delay: int = Field(
        0, ge=0, description="On SIGTERM, time to keep serving after health says NOT_SERVING, in ms."
    )
    drain_timeout: int = Field(30_000, ge=0, description="Longest time to let RPCs end on SIGTERM, in ms.")
    log_level: str = Field("info", pattern="^(debug|info|warning|error)$", description="Least level that is logged.")

    @model_validator(mode="after")
    def _check_tls(self) -> Self:
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError("TLS_CERT_FILE and TLS_KEY_FILE belong together")
        if self.tls_client_ca_file is not None and self.tls_cert_file is None:
            raise ValueError("TLS_CLIENT_CA_FILE needs TLS_CERT_FILE and TLS_KEY_FILE")
        return self

    @property
    def tls_files(self) -> tuple[Path, Path, Path | None] | None:
        """The files of the certificate, the key and the clients' authorities; None without TLS."""
        if self.tls_cert_file is None or self.tls_key_file is None:
            return None
        return self.tls_cert_file, self.tls_key_file, self.tls_client_ca_file

    @classmethod
    def read(cls, default_port: int) -> Self:
        """Return the settings of the environment and, over it, of the command line (`--workers 2`).

        Raises: ValueError, which names the variable.
        """
        settings = cls(_cli_parse_args=True, _cli_kebab_case=True)
        return settings if "port" in settings.model_fields_set else settings.model_copy(update={"port": default_port})


def explain(error: ValueError) -> str:
    """Return what is wrong with settings, by the names of their variables; never their values."""
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
