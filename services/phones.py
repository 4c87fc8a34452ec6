"""Phone numbers as callers write them, made E.164."""

import re
from collections.abc import Awaitable, Callable

import phonenumbers

from libs.server.errors import RpcError, invalid_fields

_E164 = re.compile(r"\+[1-9][0-9]{6,14}")


def is_national(number: str) -> bool:
    """Return whether what number is meant depends on the salon's region."""
    return bool(number) and not number.lstrip().startswith("+")


async def e164(field: str, number: str, region_code: Callable[[], Awaitable[str]]) -> str:
    """Return a phone number as E.164; `region_code` is asked, for the salon's, only if the number is a national one.

    What looks like E.164 is taken as it is: a number that WhatsApp knows is not refused for a plan that we don't.
    Raises: INVALID_FIELD of `field`; what `region_code` raises.
    """
    if _E164.fullmatch(number):
        return number
    region = await region_code() if is_national(number) else None
    if is_national(number) and not region:
        raise _bad(field, "is no E.164 number, such as +4915112345678, and the salon has no region_code")
    try:
        parsed = phonenumbers.parse(number, region)
    except phonenumbers.NumberParseException as error:
        raise _bad(field, "is no phone number") from error
    if not phonenumbers.is_valid_number(parsed) or parsed.extension:
        raise _bad(field, f"is no phone number of {region}" if region else "is no phone number")
    written = phonenumbers.format_number(parsed, phonenumbers.PhoneNumberFormat.E164)
    if not _E164.fullmatch(written):
        raise _bad(field, "is no phone number")
    return written


def parts(number: str) -> tuple[str, str, str]:
    """Return the country code, the national number and the trunk prefix of an E.164 number.

    A number of an unknown plan is all national number; a part that is not known is "".
    """
    try:
        parsed = phonenumbers.parse(number)
    except phonenumbers.NumberParseException:
        return "", number.removeprefix("+"), ""
    country = parsed.country_code or 0
    trunk = phonenumbers.ndd_prefix_for_region(phonenumbers.region_code_for_country_code(country), True)
    return str(country), phonenumbers.national_significant_number(parsed), trunk or ""


def _bad(field: str, description: str) -> RpcError:
    return invalid_fields([(field, description)])
