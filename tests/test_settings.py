"""Settings from the environment: an empty variable counts as not set."""

import sys

import pytest
from pydantic_settings import BaseSettings

from libs.cache import CacheSettings
from libs.db import DatabaseSettings
from libs.server import ServerSettings
from services.messaging.settings import MessagingSettings

URL = "postgresql://parlor@localhost/parlor"
KINDS: list[tuple[type[BaseSettings], str, dict[str, str]]] = [
    (ServerSettings, "", {}),
    (CacheSettings, "REDIS_", {}),
    (DatabaseSettings, "DB_", {"DB_URL": URL}),
    (MessagingSettings, "", {"WHATSAPP_APP_SECRET": "secret"}),
]


@pytest.mark.parametrize(("kind", "prefix", "needed"), KINDS, ids=lambda value: getattr(value, "__name__", ""))
def test_empty_variables_are_not_set(
    monkeypatch: pytest.MonkeyPatch, kind: type[BaseSettings], prefix: str, needed: dict[str, str]
) -> None:
    for name in kind.model_fields:
        monkeypatch.delenv(f"{prefix}{name}".upper(), raising=False)
    for name, value in needed.items():
        monkeypatch.setenv(name, value)
    unset = kind()
    for name in kind.model_fields:
        if f"{prefix}{name}".upper() not in needed:
            monkeypatch.setenv(f"{prefix}{name}".upper(), "")
    assert kind() == unset


def test_an_empty_port_is_the_default_of_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["services.booking"])
    monkeypatch.setenv("PORT", "")
    monkeypatch.setenv("METRICS_PORT", "")
    settings = ServerSettings.read(50_051)
    assert (settings.port, settings.metrics_port) == (50_051, None)


def test_a_pool_parameter_of_the_url_applies_if_its_variable_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"{URL}?connection_limit=7"
    monkeypatch.setenv("DB_CONNECTION_LIMIT", "")
    settings = DatabaseSettings.read("DATABASE_URL", environ={"DATABASE_URL": url, "DB_CONNECTION_LIMIT": ""})
    assert settings.connection_limit == 7


@pytest.mark.parametrize("environ", [{}, {"DATABASE_URL": ""}, {"BOOKING_DATABASE_URL": "", "DATABASE_URL": ""}])
def test_an_empty_url_is_not_set(environ: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="BOOKING_DATABASE_URL is not set"):
        DatabaseSettings.read("BOOKING_DATABASE_URL", "DATABASE_URL", environ=environ)
