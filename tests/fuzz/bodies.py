"""Signed webhook bodies: those of tests/data/whatsapp with random changes of their JSON and of their text."""

from __future__ import annotations

import copy
import json
from random import Random
from typing import Any

from tests.stack import SALON
from tests.test_webhook import BODIES, PHONE_NUMBER_ID, signed

KNOWN = [json.loads(path.read_text()) for path in sorted(BODIES.glob("*.json"))]
LEAVES: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        -1,
        1.5,
        1e400,
        2**63,
        -(2**63),
        10**30,
        "",
        "\0",
        "a\0b",
        "\ud800",
        "\udfff\ud800",
        "x" * 70_000,
    ),
    *(
        [],
        {},
        [[]],
        [None],
        {"": ""},
        {"body": None},
        "wamid.",
        "+4915112345678",
        "0151 12345678",
        "\u0664\u0669\u0661",
    ),
    *(
        "1749416383",
        "99999999999999",
        "1e9",
        "-1",
        "9" * 5000,
        1749416383,
        "text",
        "reaction",
        "system",
        "\u202e",
        "💇",
    ),
)
PIECES = (
    *(
        "[" * 5000,
        '{"a":' * 5000,
        "]" * 100,
        "1" * 5000,
        "-",
        "1e999999",
        "NaN",
        "Infinity",
        "\ufeff",
        "\\ud800",
        "\\u0000",
    ),
    *('"', "\\", ",", ":", "{", "}", "\0", "\x7f", "/**/", "'", "true", "nul", " " * 1000, '"a":1,"a":2,'),
)


def request(random: Random) -> Any:
    """Return an IngestWebhookRequest that is mostly signed."""
    body = copy.deepcopy(random.choice(KNOWN))
    for _ in range(random.choice((0, 1, 1, 2, 5))):
        _change(random, body)
    text = json.dumps(body, ensure_ascii=random.random() < 0.7)
    if random.random() < 0.95:
        text = text.replace(PHONE_NUMBER_ID, f"10{SALON}")
    if random.random() < 0.8:
        text = text.replace("wamid.", f"wamid.{random.randrange(100_000)}")
        text = text.replace("1650555", f"1650{random.randrange(550, 560)}")
    if random.random() < 0.2:
        place = random.randrange(len(text))
        text = text[:place] + random.choice((*PIECES, "")) + text[place + random.choice((0, 0, 1, 30)) :]
    payload = text.encode(errors=random.choice(("surrogatepass", "replace")))
    if random.random() < 0.03:
        place = random.randrange(len(payload))
        payload = payload[:place] + random.randbytes(3) + payload[place:]
    return signed(payload, "wrong") if random.random() < 0.02 else signed(payload)


def _change(random: Random, body: Any) -> None:
    """Change one value of a body: replace it, remove it or repeat it."""
    if not body:
        return
    parent, key = body, random.choice(list(body))
    for _ in range(random.randrange(12)):
        value = parent[key]
        if not isinstance(value, dict | list) or not value:
            break
        parent, key = value, random.choice(list(value) if isinstance(value, dict) else range(len(value)))
    match random.randrange(6):
        case 0:
            del parent[key]
        case 1 if isinstance(parent, list):
            parent.extend([parent[key]] * random.choice((1, 3, 150)))
        case 2:
            parent[key] = _nested(random.choice((1, 60, 70, 900)), copy.deepcopy(random.choice(LEAVES)))
        case 3:
            other = random.choice(KNOWN)["entry"][0]["changes"][0]
            parent[key] = copy.deepcopy(random.choice((other, other["value"], other.get("field"))))
        case _:
            parent[key] = copy.deepcopy(random.choice(LEAVES))


def _nested(depth: int, leaf: Any) -> Any:
    for _ in range(depth):
        leaf = [leaf] if depth % 2 else {"a": leaf}
    return leaf
