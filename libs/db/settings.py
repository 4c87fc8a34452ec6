"""Settings of the database access, under the names of Prisma's connection parameters."""

import os
from collections.abc import Mapping
from typing import Any, Self
from urllib.parse import parse_qsl, quote, urlencode

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import Conninfo
from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

# Prisma's parameters that are settings of ours, with the name of the setting.
POOL_PARAMETERS = {
    "connection_limit": "connection_limit",
    "pool_timeout": "pool_timeout",
    "statement_cache_size": "statement_cache_size",
    "pgbouncer": "pgbouncer",
    "socket_timeout": "query_timeout",
}
DEFAULT_SCHEMA = "public"


def split_pool_parameters(url: str) -> tuple[str, dict[str, str]]:
    """Return the URL for libpq, and the values of Prisma's pool parameters by the names of our settings.

    A DSN (`host=... dbname=...`) is returned unchanged, without parameters.
    Raises: ValueError, which names the parameter, if neither knows it or its value is invalid.
    """
    base, _, parameters = url.partition("?")
    if not base.startswith("postgres"):
        return url, {}
    query = dict(
        parse_qsl(parameters.replace("+", "%2B"), keep_blank_values=True)
    )  # libpq does not read a plus as a space
    taken = {POOL_PARAMETERS[name]: query.pop(name) for name in POOL_PARAMETERS if name in query}
    if "query_timeout" in taken:
        taken["query_timeout"] = _milliseconds("socket_timeout", taken["query_timeout"])
    _translate(query)
    if unknown := sorted(query.keys() - {option.keyword.decode() for option in Conninfo.get_defaults()}):
        raise ValueError(f"unknown parameter {', '.join(unknown)}")
    return base + ("?" + urlencode(query, quote_via=quote) if query else ""), taken


def _milliseconds(name: str, seconds: str) -> str:
    try:
        return str(round(float(seconds) * 1000))
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{name} is not a number of seconds") from error


def _translate(query: dict[str, str]) -> None:
    """Replace Prisma's other parameters with those of libpq."""
    schema = query.pop("schema", DEFAULT_SCHEMA)
    if not schema.replace("_", "").isalnum():
        raise ValueError("schema is not the name of a schema")
    if schema != DEFAULT_SCHEMA:
        query["options"] = " ".join(filter(None, [query.get("options"), f"-csearch_path={schema}"]))
    accept = query.pop("sslaccept", None)
    if accept == "strict":
        query["sslmode"] = "verify-full"
        query.setdefault(
            "sslrootcert", query.pop("sslcert", "system")
        )  # Prisma's sslcert is the authority's certificate
    elif accept == "accept_invalid_certs":
        query["sslmode"] = "require"
        query.pop("sslcert", None)
    elif accept is not None:
        raise ValueError("sslaccept is neither strict nor accept_invalid_certs")


def _check_attributes(url: str) -> None:
    """Raise ValueError if a URL asks for a standby, and ProgrammingError if it is not a URL.

    A service always connects to the primary. libpq's `read-write` would refuse the primary if the transactions of the
    login are read-only by default.
    """
    wanted = conninfo_to_dict(url).get("target_session_attrs", "any")
    if wanted not in ("any", "primary", "read-write"):
        raise ValueError(f"target_session_attrs={wanted}: the services need the primary")


class DatabaseSettings(BaseSettings):
    """How a process connects to Postgres. max_connections must be at least services x workers x (limit + 1)."""

    model_config = SettingsConfigDict(env_prefix="DB_", env_ignore_empty=True, hide_input_in_errors=True)

    url: SecretStr = Field(description="Connection string without pool parameters.")
    connection_limit: int = Field(20, ge=1, le=1000, description="Most connections of this process.")
    pool_timeout: int = Field(20, ge=1, le=3600, description="Longest wait for a connection, in s.")
    statement_cache_size: int = Field(100, ge=0, le=10_000, description="Most prepared statements of a connection.")
    pgbouncer: bool = Field(False, description="A pooler assigns servers per transaction: prepare no statements.")
    query_timeout: int = Field(10_000, ge=1, le=3_600_000, description="Longest time of a statement, in ms.")
    lock_timeout: int = Field(2_000, ge=1, le=3_600_000, description="Longest wait for a lock, in ms.")
    replica_max_lag: int = Field(
        1_000, ge=300, le=60_000, description="How far a replica may be behind to be read, in ms."
    )
    slow_query_threshold: int = Field(1_000, ge=0, le=3_600_000, description="From when a statement is slow, in ms.")

    @classmethod
    def read(cls, *variables: str, environ: Mapping[str, str] = os.environ, primary: bool = True) -> Self:
        """Return the settings of the environment; the URL is that of the first of `variables` that is set.

        The URL may have pool parameters; an explicit DB_* variable overrides them. That of a `primary` must not ask for
        a standby; that of a replica names one host.
        Raises: ValueError, which names the variable, if the URL is missing or a value is invalid.
        """
        name = next((variable for variable in variables if environ.get(variable)), None)
        if name is None:
            raise ValueError(f"{variables[0]} is not set")
        try:
            url, parameters = split_pool_parameters(environ[name])
            if primary:
                _check_attributes(url)
            elif "," in str(conninfo_to_dict(url).get("host", "")):
                raise ValueError("names several hosts; a replica is one")  # its lag is measured there
        except ProgrammingError as error:
            raise ValueError(f"{name} is not a connection string of Postgres") from error
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
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
