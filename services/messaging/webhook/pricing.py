"""The price of a message, as a status reports it.

Meta's `pricing` names a category and whether the message is billed, without an amount (as of 2026). A provider between
Meta and us may add an amount with its `currency`: `amount` as a decimal or as {"value", "offset"}, the shape of Meta's
payments, or `amount_micros`. A price that can't be read is left out.
"""

import re
from decimal import Decimal
from typing import Any

from services.messaging.webhook.content import text_field

MOST_MICROS = 10**15
_CURRENCY = re.compile("[A-Z]{3}")


def read_pricing(pricing: Any) -> dict[str, Any]:
    """Return the price fields of a status event; None for unknown ones. A cost comes with its currency."""
    if not isinstance(pricing, dict):
        return dict.fromkeys(("pricing_category", "billable", "cost_micros", "currency_code"))
    billable, kind = pricing.get("billable"), text_field(pricing, "type") or ""
    if not isinstance(billable, bool):  # Meta is about to drop it in favor of the type
        billable = True if kind == "regular" else False if kind.startswith("free_") else None
    currency = text_field(pricing, "currency", 3) or ""
    cost = _cost(pricing) if _CURRENCY.fullmatch(currency) and billable is not False else None
    return {
        "pricing_category": text_field(pricing, "category", 64),
        "billable": billable,
        "cost_micros": cost,
        "currency_code": currency if cost else None,
    }


def micros(amount: Any, offset: Any = 1) -> int | None:
    """Return an amount, divided by `offset`, in millionths; None if it is not a number above 0, or too large."""
    try:
        found = _decimal(amount) / _decimal(offset) * 1_000_000
        return round(found) or None if found.is_finite() and 0 < found <= MOST_MICROS else None
    except (ArithmeticError, ValueError):
        return None


def _cost(pricing: dict[str, Any]) -> int | None:
    amount = pricing.get("amount")
    if "amount_micros" in pricing:
        return micros(pricing["amount_micros"], 1_000_000)
    if isinstance(amount, dict):
        return micros(amount.get("value"), amount.get("offset"))
    return micros(amount)


def _decimal(value: Any) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError
    return Decimal(str(value))
