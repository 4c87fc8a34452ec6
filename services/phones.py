"""Phone numbers as callers write them, turned into E.164."""

import re
from collections.abc import Awaitable, Callable

import phonenumbers

from libs.server.errors import RpcError, invalid_fields

_E164 = re.compile(r"\+[1-9][0-9]{6,14}")


def is_national(number: str) -> bool:
    """Return whether a number is in national notation, which depends on the salon's region."""
    return bool(number) and not number.lstrip().startswith("+")


async def e164(field: str, number: str, region_code: Callable[[], Awaitable[str]]) -> str:
    """Return a phone number as E.164; `region_code` returns the salon's, and is called only for a national number.

    Any well-formed E.164 number is accepted: WhatsApp knows number plans that our metadata lacks.
    Raises: INVALID_FIELD of `field`; what `region_code` raises.
    """
    if _E164.fullmatch(number):
        return number
    region = await region_code() if is_national(number) else None
    if is_national(number) and not region:
        raise _invalid(field, "is not an E.164 number, such as +4915112345678, and the salon has no region_code")
    try:
        parsed = phonenumbers.parse(number, region)
    except phonenumbers.NumberParseException as error:
        raise _invalid(field, "is not a phone number") from error
    if not phonenumbers.is_valid_number(parsed) or parsed.extension:
        raise _invalid(field, f"is not a phone number of {region}" if region else "is not a phone number")
    formatted = phonenumbers.format_number(parsed, phonenumbers.PhoneNumberFormat.E164)
    if not _E164.fullmatch(formatted):
        raise _invalid(field, "is not a phone number")
    return formatted


def parts(number: str) -> tuple[str, str, str]:
    """Return the country code, the national number and the trunk prefix of an E.164 number; "" for an unknown part.

    A number of an unknown plan is returned as a national number.
    """
    try:
        parsed = phonenumbers.parse(number)
    except phonenumbers.NumberParseException:
        return "", number.removeprefix("+"), ""
    country = parsed.country_code or 0
    trunk = phonenumbers.ndd_prefix_for_region(phonenumbers.region_code_for_country_code(country), True)
    return str(country), phonenumbers.national_significant_number(parsed), trunk or ""


def _invalid(field: str, description: str) -> RpcError:
    return invalid_fields([(field, description)])
