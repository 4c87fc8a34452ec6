"""Settings that say who may call a server."""

from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

LOOPBACK = ("localhost", "127.0.0.1", "::1")


class AccessError(Exception):
    """The policy, the keys or the audit log can't be used; the message says why."""


class AuthSettings(BaseSettings):
    """How callers are identified, and what they may do. An empty variable counts as not set."""

    model_config = SettingsConfigDict(env_ignore_empty=True)

    auth_mode: Literal["none", "mtls", "jwt", "mtls,jwt"] = Field(
        "none", description="How callers are identified: client certificates, bearer tokens, or both."
    )
    auth_policy: Path | None = Field(None, description="File of the callers and their rights, TOML.")
    auth_jwks: str | None = Field(None, description="Keys of bearer tokens: a JWKS file, or its https URL.")
    auth_audience: str | None = Field(None, description="The `aud` that a bearer token must have.")
    auth_issuer: str | None = Field(None, description="The `iss` that a bearer token must have. Default: any.")
    auth_caller_claim: str = Field("sub", description="Claim of a bearer token that names the caller.")
    auth_salons_claim: str = Field("salons", description="Claim of a bearer token that lists its salons: no others.")
    audit_log: Path | None = Field(None, description="File for the audit log. Default: standard error.")

    @property
    def requires_identity(self) -> bool:
        """Whether callers need an identity."""
        return self.auth_mode != "none"

    @property
    def takes_certificates(self) -> bool:
        """Whether a client certificate identifies a caller."""
        return "mtls" in self.auth_mode

    @property
    def takes_tokens(self) -> bool:
        """Whether a bearer token identifies a caller."""
        return "jwt" in self.auth_mode

    @model_validator(mode="after")
    def _check_auth(self) -> Self:
        if self.requires_identity == (self.auth_policy is None):
            raise ValueError("AUTH_MODE and AUTH_POLICY belong together")
        if self.takes_tokens and not (self.auth_jwks and self.auth_audience):
            raise ValueError("AUTH_MODE=jwt needs AUTH_JWKS and AUTH_AUDIENCE")
        url = urlsplit(self.auth_jwks or "")
        if url.scheme == "http" and url.hostname not in LOOPBACK:
            raise ValueError("AUTH_JWKS: keys are read by https, by http only from this machine")
        return self
