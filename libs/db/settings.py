"""Settings of the database access, under the names that the predecessor's operators know."""

import os
from collections.abc import Mapping
from typing import Any, Self
from urllib.parse import parse_qsl, quote, urlencode

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict
from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

POOL_PARAMETERS = ("connection_limit", "pool_timeout", "statement_cache_size")


def split_pool_parameters(url: str) -> tuple[str, dict[str, str]]:
    """Return the URL without Prisma's three pool parameters, which libpq refuses, and those parameters.

    A DSN that is no URL (`host=... dbname=...`) has none and comes back as it is.
    """
    base, _, parameters = url.partition("?")
    if not base.startswith("postgres"):
        return url, {}
    query = parse_qsl(parameters.replace("+", "%2B"), keep_blank_values=True)  # to libpq a plus is no space
    kept = [(name, value) for name, value in query if name not in POOL_PARAMETERS]
    taken = {name: value for name, value in query if name in POOL_PARAMETERS}
    return base + ("?" + urlencode(kept, quote_via=quote) if kept else ""), taken


class DatabaseSettings(BaseSettings):
    """How a process connects to Postgres. services x workers x (limit + 1) must fit max_connections."""

    model_config = SettingsConfigDict(env_prefix="DB_", env_ignore_empty=True, hide_input_in_errors=True)

    url: SecretStr = Field(description="Connection string without pool parameters.")
    connection_limit: int = Field(20, ge=1, le=1000, description="Most connections of this process.")
    pool_timeout: int = Field(20, ge=1, le=3600, description="Longest wait for a connection, in s.")
    statement_cache_size: int = Field(100, ge=0, le=10_000, description="Prepared statements kept on a connection.")
    query_timeout: int = Field(10_000, ge=1, le=3_600_000, description="Longest time of a statement, in ms.")
    lock_timeout: int = Field(2_000, ge=1, le=3_600_000, description="Longest wait for a lock, in ms.")
    slow_query_threshold: int = Field(1_000, ge=0, le=3_600_000, description="From when a statement is slow, in ms.")

    @classmethod
    def read(cls, *variables: str, environ: Mapping[str, str] = os.environ) -> Self:
        """Return the settings of the environment; the URL is that of the first of `variables` that is set.

        The URL may carry pool parameters; an explicit DB_* variable wins over them.
        Raises: ValueError, which names the variable, if the URL is missing or a value is bad.
        """
        name = next((variable for variable in variables if environ.get(variable)), None)
        if name is None:
            raise ValueError(f"{variables[0]} is not set")
        url, parameters = split_pool_parameters(environ[name])
        try:
            conninfo_to_dict(url)
        except ProgrammingError as error:
            raise ValueError(f"{name} is no connection string of Postgres") from error
        of_url: dict[str, Any] = {
            parameter: value for parameter, value in parameters.items() if not environ.get(f"DB_{parameter.upper()}")
        }
        try:
            return cls(url=SecretStr(url), **of_url)
        except ValidationError as error:
            bad = [
                f"{problem['loc'][0]}: {problem['msg']}" for problem in error.errors() if problem["loc"][0] in of_url
            ]
            if bad:
                raise ValueError(f"{name}: {'; '.join(bad)}") from None
            raise
