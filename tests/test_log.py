"""Personal data is masked in the log."""

import subprocess
import sys

import pytest

from libs.server.logs import mask
from tests.stack import PHONE
from tests.test_erase_failures import wamid

DIGITS = PHONE[4:-3]


@pytest.mark.parametrize(
    "text",
    [PHONE, PHONE[1:], "+49 151 1234 5678", "+49 (151) 123-456-78", "tel:+49.151.12345678", f"'{PHONE}'", f"x{PHONE}y"],
)
def test_the_middle_of_a_phone_number_is_masked(text: str) -> None:
    hidden = mask(f"call {text} now")
    assert not [part for part in (DIGITS, "1234", "123-456") if part in hidden]
    assert hidden.startswith("call ") and hidden.endswith(" now")


@pytest.mark.parametrize("form", ["{}", "'{}'", '{{"id": "{}"}}', "({})=({})", "salon-1/{}"])
def test_whatsapp_ids_are_masked(form: str) -> None:
    for name in (
        wamid(PHONE),
        "wamid.HBgLMTY1MDM4Nzk0MzkVAgARGBJCQjg3OTZ-_+/==",
        "DE.12ab34567890",
        "US.ENT.12ab34567890",
    ):
        hidden = mask(form.format(name, name))
        assert name[8:16] not in hidden
        assert name[:3] in hidden


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-26 08:57:27",
        "0.123456",
        "salon-123",
        "query:booking:salon:{salon-1}:code:B1",
        "psycopg.errors",
        "a.bcdefgh",
    ],
)
def test_other_texts_are_not_masked(text: str) -> None:
    assert mask(text) == text


def test_a_traceback_has_no_row_values(database_url: str) -> None:
    program = f"""
import psycopg, structlog
from libs.server import logs
logs.configure("debug", service="test")
conn = psycopg.connect("{database_url}", autocommit=True)
conn.execute("CREATE TABLE notes (text text CONSTRAINT short CHECK (length(text) < 9))")
for raised in (ValueError, None):
    try:
        try:
            conn.execute("INSERT INTO notes VALUES (%s)", ["Zoe Hartmann" + chr(10) + "has an allergy"])
        except psycopg.Error as error:
            structlog.get_logger().warning("rpc", error=repr(error))
            structlog.get_logger().warning("rpc", error=str(error))
            raise (raised or type(error))("wrapped") from error
    except Exception:
        structlog.get_logger().exception("rpc")
"""
    ended = subprocess.run(  # noqa: S603 - ours
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True
    )
    assert len(ended.stderr.splitlines()) == 6
    assert "short" in ended.stderr and "wrapped" in ended.stderr
    assert not [word for word in ("Zoe", "Hartmann", "allergy") if word in ended.stderr]
