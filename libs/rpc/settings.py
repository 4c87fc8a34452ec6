"""Settings of an RPC server."""

from typing import Self

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings

from libs.cache import CacheSettings
from libs.db import DatabaseSettings

# What the variables of a group of settings start with, where that is anything.
PREFIXES = {kind.__name__: kind.model_config.get("env_prefix", "") for kind in (CacheSettings, DatabaseSettings)}


class ServerSettings(BaseSettings):
    """Where a server listens and how much it takes on."""

    host: str = Field("0.0.0.0", description="Address to listen on.")  # noqa: S104
    port: int = Field(0, ge=0, le=65_535, description="Port to listen on; 0 takes a free one.")
    metrics_port: int | None = Field(
        None, ge=0, le=65_535, description="Port of the Prometheus metrics. Default: none."
    )
    workers: int = Field(1, ge=1, le=64, description="Processes that share the port.")
    max_concurrent_rpcs: int = Field(1000, ge=1, description="RPCs of a worker beyond which one is told OVERLOADED.")
    request_timeout: int = Field(30_000, ge=1, description="Longest time of an RPC, in ms.")
    drain_timeout: int = Field(30_000, ge=0, description="Longest time to let RPCs end on SIGTERM, in ms.")
    log_level: str = Field("info", pattern="^(debug|info|warning|error)$", description="Least level that is logged.")

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
    variable = f"{prefix}{path[0]}".upper() if path else "settings"
    return f"{variable} is not set" if kind == "missing" else f"{variable}: {message}"
