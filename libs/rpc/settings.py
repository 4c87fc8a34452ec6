"""Settings of an RPC server."""

from typing import Self

from pydantic import Field
from pydantic_settings import BaseSettings


class ServerSettings(BaseSettings):
    """Where a server listens and how much it takes on."""

    host: str = Field("0.0.0.0", description="Address to listen on.")  # noqa: S104
    port: int = Field(0, ge=0, le=65_535, description="Port to listen on; 0 takes a free one.")
    metrics_port: int | None = Field(
        None, ge=0, le=65_535, description="Port of the Prometheus metrics. Default: none."
    )
    max_concurrent_rpcs: int = Field(1000, ge=1, description="RPCs under way beyond which one is told OVERLOADED.")
    request_timeout: int = Field(30_000, ge=1, description="Longest time of an RPC, in ms.")
    drain_timeout: int = Field(30_000, ge=0, description="Longest time to let RPCs end on SIGTERM, in ms.")
    log_level: str = Field("info", pattern="^(debug|info|warning|error)$", description="Least level that is logged.")

    @classmethod
    def read(cls, default_port: int) -> Self:
        """Return the settings of the environment. Raises: ValueError, which names the variable."""
        settings = cls()
        return settings if "port" in settings.model_fields_set else settings.model_copy(update={"port": default_port})
