"""Regular expressions for Postgres that find a customer's phone number in JSON, in any common notation.

The JSON is ASCII. Other characters are escaped as in JSON or, if it could not be parsed, byte by byte as in Python.
"""

import base64
import re
import string

from services.phones import parts

_ESCAPE = r"\\(?:u[0-9a-f]{4}|x[0-9a-f]{2})"
# Separators between two digits. Excludes everything that ends a JSON string or separates two values.
_GAP = rf'(?:[^]["\\,:{{}}0-9A-Za-z]|\\[nrt/]|{_ESCAPE})*'
_FULL_WIDTH, _ARABIC, _PERSIAN, _HINDI = 0xFF10, 0x0660, 0x06F0, 0x0966
_BASE64 = f"{string.ascii_uppercase}{string.ascii_lowercase}{string.digits}+/"
_SHORTEST_ALONE = 7  # digits; a shorter national number is matched only with its country code


def pattern(phone_number: str) -> str:
    r"""Return a regular expression that finds an E.164 number in JSON.

    Matches separators between digits, digits of other scripts, the national format and international prefixes. Does
    not match a longer number that contains this one, unless it is written with a separator where this one ends.
    """
    country, national, trunk = parts(phone_number)
    abroad = f"(?:(?:00|011){_GAP})?{_digits(country)}{_GAP}" if country else ""
    if len(national) >= _SHORTEST_ALONE:
        abroad = f"(?:{abroad})?"
    inland = f"(?:{_digits(trunk)}{_GAP})?" if trunk else ""
    # A digit before the number must belong to an escape. A lookbehind for this is 20 times slower.
    return rf"(?i)(?:^|[^0-9]|{_ESCAPE}){abroad}{inland}{_digits(national)}(?![0-9])"


def in_whatsapp_id(name: str) -> str:
    """Return a regular expression that finds a phone number or user_id in a WhatsApp message id (wamid).

    A wamid is base64. It contains the length of the name and the name, at one of three bit offsets.
    """
    digits = name.removeprefix("+").encode()
    data = bytes([len(digits) % 256]) + digits
    texts = []
    for before in range(3):
        letters = base64.b64encode(bytes(before) + data + bytes(2)).decode()
        end, rest = divmod((before + len(data)) * 8, 6)
        last = _BASE64.index(letters[end])  # shares its low bits with the next byte
        whole = re.escape(letters[-(-before * 8 // 6) : end])  # it may contain a +
        texts.append(whole + f"[{_BASE64[last : last + 2 ** (6 - rest)]}]" * (rest > 0))
    return f"(?:{'|'.join(texts)})"


def _digits(number: str) -> str:
    return _GAP.join(map(_digit, number))


def _digit(digit: str) -> str:
    """Return a pattern for a digit in ASCII, full-width, Arabic, Persian or Devanagari."""
    others = [chr(zero + int(digit)) for zero in (_FULL_WIDTH, _ARABIC, _PERSIAN, _HINDI)]
    escapes = [rf"\\u{ord(other):04x}" for other in others]
    escapes += ["".join(rf"\\x{byte:02x}" for byte in other.encode()) for other in others]
    return f"(?:{'|'.join([digit, *escapes])})"
