"""What a status says of the price of its message.

Meta's `pricing` names a category and whether the message is billed. It has no amount (as of 2026); a provider between
Meta and us may add one with its `currency`: `amount` as a decimal or as {"value", "offset"}, the shape of Meta's
payments, or `amount_micros`. A price that can't be read is left out.
"""

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, NamedTuple

from services.messaging.webhook.content import word

MOST_MICROS = 10**15
_CURRENCY = re.compile("[A-Z]{3}")


class Price(NamedTuple):
    """A price as a status event has it: None where nothing is said. A cost comes with its currency, or not at all."""

    pricing_category: str | None = None
    billable: bool | None = None
    cost_micros: int | None = None
    currency_code: str | None = None


def price(pricing: Any) -> Price:
    """Read a status's `pricing`."""
    if not isinstance(pricing, dict):
        return Price()
    billable = _billable(pricing)
    currency = word(pricing, "currency", 3) or ""
    cost = _micros(pricing) if _CURRENCY.fullmatch(currency) and billable is not False else None
    return Price(word(pricing, "category", 64), billable, cost, currency if cost else None)


def _billable(pricing: Mapping[str, Any]) -> bool | None:
    """Return what `billable` says, else what the type does: Meta is about to drop the former."""
    found, kind = pricing.get("billable"), word(pricing, "type") or ""
    if isinstance(found, bool):
        return found
    return True if kind == "regular" else False if kind.startswith("free_") else None


def _micros(pricing: Mapping[str, Any]) -> int | None:
    """Return the amount in millionths, None for none, for nothing and for what can't be."""
    amount = pricing.get("amount")
    try:
        if "amount_micros" in pricing:
            micros = _decimal(pricing["amount_micros"])
        elif isinstance(amount, dict):
            micros = _decimal(amount.get("value")) / _decimal(amount.get("offset")) * 1_000_000
        else:
            micros = _decimal(amount) * 1_000_000
        return round(micros) or None if micros.is_finite() and 0 < micros <= MOST_MICROS else None
    except (ArithmeticError, ValueError):
        return None


def _decimal(value: Any) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError
    return Decimal(str(value))
