"""Phone numbers as callers write them, turned into E.164.

Everything that takes a number asks `e164` or `canonical`; the messaging service also `whatsapp_number`.
"""

import re
from collections.abc import Awaitable, Callable
from functools import cache

import phonenumbers
from phonenumbers import PhoneMetadata, PhoneNumber

from libs.server.errors import RpcError, invalid_fields

_E164 = re.compile(r"\+[1-9][0-9]{6,14}")
_PLUS = re.compile("[+\uff0b]")
_NUMBER_BEGINNING = re.compile(r"[+\uff0b]?[0-9 ().\-/\u00a0]+")
_COUNTRIES = frozenset(map(str, phonenumbers.COUNTRY_CODE_TO_REGION_CODE))
# Mobile numbers as WhatsApp writes them by plans that have changed, by country, and the numbers of today.
_OLD_PLANS = {
    "52": (re.compile(r"\+521([0-9]{10})"), r"+52\1"),  # Mexico
    "55": (re.compile(r"\+55([1-9][0-9])([16-9][0-9]{7})"), r"+55\g<1>9\2"),  # Brazil; landlines begin with 2 to 5
}
_NUMBERS_OF_TODAY = {
    "52": (re.compile(r"\+52([0-9]{10})"), r"+521\1"),
    "55": (re.compile(r"\+55([1-9][0-9])9([16-9][0-9]{7})"), r"+55\1\2"),
}
# Beginnings that no number of today has. In Brazil, a 9 begins the rest of a mobile number of either plan.
_OLD_BEGINNINGS = (
    (re.compile(r"\+521"), "+52"),
    (re.compile(r"\+55([1-9][0-9])([16-8])"), r"+55\g<1>9\2"),
    (re.compile(r"\+54([1-3])"), r"+549\1"),
)
# Argentina's mobile numbers have a 9 if they are dialed from abroad, which some leave out.
_WITHOUT_9 = re.compile(r"\+54([1-3][0-9]{9})")
_WITH_9 = re.compile(r"\+549([1-3][0-9]{9})")


def is_national(number: str) -> bool:
    """Return whether a number is in national notation, which depends on the salon's region."""
    return bool(number) and not _PLUS.search(number)


async def e164(field: str, number: str, region_code: Callable[[], Awaitable[str]]) -> str:
    """Return a phone number as E.164; `region_code` returns the salon's, and is called only for a national number.

    Any well-formed E.164 number is accepted: WhatsApp knows number plans that our metadata lacks. A national number is
    refused if its digits are an international number, too, such as WhatsApp's ID of a customer abroad.
    Raises: INVALID_FIELD of `field`; what `region_code` raises.
    """
    if _E164.fullmatch(number):
        return canonical(number)
    region = None
    if is_national(number):
        international, region = _international(number), await region_code()
        if international:
            raise _invalid(field, _ambiguous(number, region, international))
        if not region:
            raise _invalid(field, "is not an E.164 number, such as +4915112345678, and the salon has no region_code")
    if (formatted := _valid(number, region)) is None:
        raise _invalid(field, f"is not a phone number of {region}" if region else "is not a phone number")
    return formatted


async def number_prefix(text: str, region_code: Callable[[], Awaitable[str]]) -> str:
    """Return the E.164 number that a text begins, such as `+49151` for `0049 151`; "" if it begins none.

    A national one, `0151`, needs the `region_code` of the salon. It is the beginning of the number that
    `whatsapp_number` returns: by the plan of today, without a trunk prefix. Raises: what `region_code` raises.
    """
    digits = re.sub("[^0-9]", "", text.replace("(0)", ""))
    if not digits or not _NUMBER_BEGINNING.fullmatch(text.strip()):
        return ""
    if _PLUS.search(text) or not digits.startswith("0"):
        return _beginning("+" + digits)
    if digits.startswith("00"):
        return _beginning("+" + digits[2:])
    region = await region_code()
    country = phonenumbers.country_code_for_region(region) if region else 0
    return _beginning(f"+{country}{digits[1:]}") if country else ""


def _beginning(number: str) -> str:
    """Return the beginning of a number, or all of it, as that of the number that `whatsapp_number` returns."""
    if _E164.fullmatch(number) and (complete := whatsapp_number(number)) != number:
        return complete
    country = next((number[1:end] for end in (2, 3, 4) if number[1:end] in _COUNTRIES), "")
    if country and number.startswith("0", 1 + len(country)):
        region = phonenumbers.region_code_for_country_code(int(country))
        if phonenumbers.ndd_prefix_for_region(region, True) == "0":
            number = f"+{country}{number[len(country) + 2 :]}"
    for old, today in _OLD_BEGINNINGS:
        number = old.sub(today, number)
    return number


def canonical(number: str) -> str:
    """Return a well-formed E.164 number by the plan of today, without the trunk prefix that some write: +49(0)151.

    WhatsApp still writes some numbers of Mexico and Brazil by older plans: +52 1 55..., +55 11 8765-4321.
    A number that is not valid without the prefix is returned as it is. Most numbers have none, which takes 0.4 us to
    see; others take 25 us.
    """
    if number[1:3] in _OLD_PLANS:
        old, today = _OLD_PLANS[number[1:3]]
        if found := old.fullmatch(number):
            return found.expand(today)
    for end in (2, 3, 4):
        if (country := number[1:end]) in _COUNTRIES:
            break
    else:
        return number
    prefix = _trunk_prefix(country)
    if prefix is None or not (found := prefix.match(number, end)) or found.end() == end:
        return number
    return _valid(number) or number


def whatsapp_number(number: str) -> str:
    """Return the number of a WhatsApp customer as `canonical` does, and one of Argentina with its 9.

    There only mobile numbers have the 9, so that a number without it could be a landline; WhatsApp means the mobile.
    """
    number = canonical(number)
    return f"+549{found[1]}" if (found := _WITHOUT_9.fullmatch(number)) else number


def spellings(number: str) -> list[str]:
    """Return the ways in which WhatsApp, or releases up to 0.3, may have written an E.164 number."""
    country, national, trunk = parts(number)
    written = [number, f"+{country}{trunk}{national}"] if trunk else [number]
    if country in _NUMBERS_OF_TODAY:
        today, old = _NUMBERS_OF_TODAY[country]
        written += [found.expand(old)] if (found := today.fullmatch(number)) else []
    written += [f"+54{found[1]}"] if (found := _WITH_9.fullmatch(number)) else []
    written += [f"+549{found[1]}"] if (found := _WITHOUT_9.fullmatch(number)) else []
    return written


def parts(number: str) -> tuple[str, str, str]:
    """Return the country code, the national number and the trunk prefix of an E.164 number; "" for an unknown part.

    A number of an unknown plan is returned as a national number.
    """
    parsed = _parse(number)
    if parsed is None:
        return "", number.removeprefix("+"), ""
    country = parsed.country_code or 0
    trunk = phonenumbers.ndd_prefix_for_region(phonenumbers.region_code_for_country_code(country), True)
    return str(country), phonenumbers.national_significant_number(parsed), trunk or ""


def _international(number: str) -> str | None:
    """Return the international number that a number without `+` would be with it, None if that is not valid."""
    digits = phonenumbers.normalize_digits_only(number)
    if digits.startswith("0"):  # as no country code does
        return None
    number = canonical(f"+{digits}")
    return number if _valid(f"+{digits}") or _valid(number) else None


def _ambiguous(number: str, region: str, international: str) -> str:
    """Return what is wrong with a number that can be read in two ways, and how to write it."""
    national = _valid(number, region) if region else None
    or_national = f", or {national} for a number of {region}" if national not in (None, international) else ""
    return f"the digits can be read as an international number, too: write {international}{or_national}"


@cache
def _trunk_prefix(country: str) -> re.Pattern[str] | None:
    """Return what `phonenumbers.parse` looks for at the beginning of a country's national numbers, to drop it."""
    region = phonenumbers.region_code_for_country_code(int(country))
    if region == phonenumbers.REGION_CODE_FOR_NON_GEO_ENTITY:
        metadata = PhoneMetadata.metadata_for_nongeo_region(int(country))
    else:
        metadata = PhoneMetadata.metadata_for_region(region)
    prefix = metadata.national_prefix_for_parsing if metadata else None
    return re.compile(prefix) if prefix else None


def _valid(number: str, region: str | None = None) -> str | None:
    """Return a valid number as E.164, None for others."""
    parsed = _parse(number, region)
    if parsed is None or parsed.extension or not phonenumbers.is_valid_number(parsed):
        return None
    formatted = phonenumbers.format_number(parsed, phonenumbers.PhoneNumberFormat.E164)
    return formatted if _E164.fullmatch(formatted) else None


def _parse(number: str, region: str | None = None) -> PhoneNumber | None:
    try:
        return phonenumbers.parse(number, region)
    except phonenumbers.NumberParseException:
        return None


def _invalid(field: str, description: str) -> RpcError:
    return invalid_fields([(field, description)])
