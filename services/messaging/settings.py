"""Settings of the messaging service."""

from pathlib import Path
from typing import Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from libs.server import Identity


class MessagingSettings(BaseSettings):
    """The settings of the messaging service besides those of its database and cache."""

    model_config = SettingsConfigDict(env_ignore_empty=True)

    booking_address: str = Field("localhost:50051", description="HOST:PORT of the booking service.")
    booking_tls_ca_file: Path | None = Field(
        None, description="CAs of the booking service's certificate, PEM: it is called by TLS. Default: no TLS."
    )
    booking_tls_cert_file: Path | None = Field(None, description="Certificate to call the booking service with, PEM.")
    booking_tls_key_file: Path | None = Field(None, description="Its key, PEM.")
    booking_token_file: Path | None = Field(
        None, description="File with a bearer token to call the booking service with."
    )
    booking_timeout: int = Field(2_000, ge=1, description="Longest time to wait for the booking service, in ms.")
    whatsapp_app_secret: SecretStr = Field(
        min_length=1,
        description="Secret of the WhatsApp app, by which webhook bodies are signed; during a rotation several, "
        "separated by commas.",
    )
    retention_raw_items: int | None = Field(
        None, ge=1, description="How long raw webhook items of messages are kept, in days; unset: forever."
    )
    retention_failures: int | None = Field(
        None, ge=1, description="How long webhook items that could not be recorded are kept, in days; unset: forever."
    )
    retention_ai_messages: int | None = Field(
        None, ge=1, description="How long the texts of AI messages are kept, in days; unset: forever."
    )

    @property
    def booking_identity(self) -> Identity:
        """The files to call the booking service with."""
        return Identity(
            self.booking_tls_ca_file, self.booking_tls_cert_file, self.booking_tls_key_file, self.booking_token_file
        )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.booking_tls_cert_file is None) != (self.booking_tls_key_file is None):
            raise ValueError("BOOKING_TLS_CERT_FILE and BOOKING_TLS_KEY_FILE belong together")
        if self.booking_tls_cert_file is not None and self.booking_tls_ca_file is None:
            raise ValueError("BOOKING_TLS_CERT_FILE needs BOOKING_TLS_CA_FILE")
        if not self.app_secrets:
            raise ValueError("WHATSAPP_APP_SECRET has no secret")
        return self

    @property
    def app_secrets(self) -> list[str]:
        """The secrets of the WhatsApp app, any of which may have signed a webhook body."""
        return [each for part in self.whatsapp_app_secret.get_secret_value().split(",") if (each := part.strip())]
