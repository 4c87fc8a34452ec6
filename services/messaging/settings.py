"""Settings of the messaging service."""

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class MessagingSettings(BaseSettings):
    """The settings of the messaging service besides those of its database and cache."""

    model_config = SettingsConfigDict(env_ignore_empty=True)

    booking_address: str = Field("localhost:50051", description="HOST:PORT of the booking service.")
    booking_timeout: int = Field(2_000, ge=1, description="Longest time to wait for the booking service, in ms.")
    whatsapp_app_secret: SecretStr = Field(
        min_length=1, description="Secret of the WhatsApp app: webhook bodies are signed with it."
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
