"""Parts of the expected results of the bodies in tests/data/whatsapp."""

from dataclasses import dataclass, field
from typing import Any

from parlor.messaging.v1 import messaging_pb2 as pb
from tests.stack import Fields

SHEENA, PABLO, JOERG, JOAO = "+16505551234", "+16505555678", "+4915112345678", "+5511987654321"
NINA = "+12195555358"  # +16505550199 until then
PABLO_ID, ANA_ID, MIKA_ID = "US.13491208655302741918", "BR.2093847561029384", "FI.7719203348817720"
# Sent by the salon, and named in statuses; the message that it replies to is not always recorded.
REMINDER = "wamid.HRYLMTY1MDU1NTEyMzQVAgARGBIzN0FDM0E1QTJGODNCREYwN0Y2QgA="
OWN: Fields = {"cost_micros": 50_000, "currency_code": "EUR"}
FREE: Fields = {"billable": False, "cost_micros": 0, "currency_code": ""}
SENT: Fields = {"direction": pb.MESSAGE_DIRECTION_OUTBOUND, "status": pb.MESSAGE_STATUS_SENT}


@dataclass
class Case:
    """The counts of a body, and the expected final fields of its messages and of its statuses' messages, in order."""

    counts: dict[str, int]
    messages: list[Fields] = field(default_factory=list)
    statuses: list[Fields] = field(default_factory=list)


def inbound(kind: str, content: str = "", **fields: Any) -> Case:
    """Return the case of one message, by default from Sheena."""
    return Case({"unknown" if kind == "UNKNOWN" else "messages": 1}, [message(kind, content, **fields)])


def message(kind: str, content: str = "", **fields: Any) -> Fields:
    """Return all expected fields of a message."""
    return {"type": f"MESSAGE_TYPE_{kind}", "content": content, "phone_number": SHEENA, **fields}


def outbound(state: str, count: int = 1, **fields: Any) -> Case:
    """Return the case of `count` statuses of one message that was recorded with the cost OWN."""
    return Case({"statuses": count}, [], [{"status": f"MESSAGE_STATUS_{state}", **OWN, **fields}])


def failure(code: int, title: str, details: str = "") -> Fields:
    return {"error_code": code, "error_title": title, "error_details": details}


def at(seconds: int) -> Fields:
    """Return a Timestamp."""
    return {"seconds": seconds}


def prices(kind: str = "", model: str = "PMP") -> Fields:
    """Return the pricing fields of a status."""
    return {"pricing_type": kind, "pricing_model": model}


REGULAR = prices("regular")


def choice(kind: str, **fields: str) -> Fields:
    """Return what a customer chose, in a reply to the reminder."""
    return {"reply_to_whatsapp_id": REMINDER, "interactive_reply": {"kind": kind, **fields}}


def product(name: str, quantity: int, micros: int) -> Fields:
    """Return a product of an order."""
    return {"product_retailer_id": name, "quantity": quantity, "item_price_micros": micros, "currency_code": "EUR"}


# What a reaction, an edit or a revoke brings: it changes its message instead of being one.
AMENDMENT = Case({"messages": 1})
