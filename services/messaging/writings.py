"""The ways in which a customer's number may stand in a text, as patterns of Postgres.

The texts are JSON in ASCII: every other character is an escape.
"""

import base64
import string

from services.phones import parts

# Between two digits: what people put there, but nothing that ends a JSON string or separates two values.
_GAP = r'(?:[^]["\\,:{}0-9A-Za-z]|\\[nrt/]|\\u[0-9a-f]{4})*'
_FULL_WIDTH, _ARABIC, _PERSIAN, _HINDI = 0xFF10, 0x0660, 0x06F0, 0x0966
_BASE64 = f"{string.ascii_uppercase}{string.ascii_lowercase}{string.digits}+/"
_SHORTEST_ALONE = 7  # digits of a number that is found without its country code


def pattern(phone_number: str) -> str:
    r"""Return a regular expression that finds an E.164 number in JSON, however it is written.

    It may have gaps, other scripts' digits, the national form, or a prefix for calls abroad. A number that this is only
    a part of is not found, but for one that is written with a gap where this one ends.
    """
    country, national, trunk = parts(phone_number)
    abroad = f"(?:(?:00|011){_GAP})?{_digits(country)}{_GAP}" if country else ""
    if len(national) >= _SHORTEST_ALONE:
        abroad = f"(?:{abroad})?"
    inland = f"(?:{_digits(trunk)}{_GAP})?" if trunk else ""
    # An escape may end with a digit, which is none of the number. A lookbehind would take 20 times as long.
    return rf"(?:^|[^0-9]|\\u[0-9a-f]{{4}}){abroad}{inland}{_digits(national)}(?![0-9])"


def in_whatsapp_id(name: str) -> str:
    """Return a regular expression that finds a number or a user_id in a message's id from WhatsApp.

    The id is base64 of, among others, the name's length and the name, which may begin at any of three bits.
    """
    digits = name.removeprefix("+").encode()
    data = bytes([len(digits) % 256]) + digits
    texts = []
    for before in range(3):
        letters = base64.b64encode(bytes(before) + data + bytes(2)).decode()
        whole, rest = divmod((before + len(data)) * 8, 6)
        last = _BASE64.index(letters[whole])  # its other bits are the next byte's
        texts.append(letters[-(-before * 8 // 6) : whole] + f"[{_BASE64[last : last + 2 ** (6 - rest)]}]" * (rest > 0))
    return f"(?:{'|'.join(texts)})"


def _digits(number: str) -> str:
    return _GAP.join(map(_digit, number))


def _digit(digit: str) -> str:
    """Return the pattern of a digit in any of the scripts that people write numbers in."""
    escapes = [f"{zero + int(digit):04x}" for zero in (_FULL_WIDTH, _ARABIC, _PERSIAN, _HINDI)]
    return rf"(?:{digit}|\\u(?:{'|'.join(escapes)}))"
