"""What each kind of message does to its conversation: the one place that decides it."""

from typing import NamedTuple


class Rule(NamedTuple):
    """The effects of a message.

    `unread`: adds 1 to unread_count. `reopens`: makes the conversation ACTIVE. `opens_window`: the customer's service
    window is open for 24 h from then on. `counted`: the statistics count it as a message.
    """

    unread: bool
    reopens: bool
    opens_window: bool
    counted: bool


FROM_CUSTOMER = Rule(unread=True, reopens=True, opens_window=True, counted=True)
FROM_SALON = Rule(unread=False, reopens=True, opens_window=False, counted=True)
# Sent by a person of the salon on the phone app.
ECHO = Rule(unread=False, reopens=False, opens_window=False, counted=True)
# Sent or received before the salon's number was connected.
HISTORY = Rule(unread=False, reopens=False, opens_window=False, counted=False)
# A reaction is shown on its message, so it is no message that one could read.
REACTION = Rule(unread=False, reopens=False, opens_window=True, counted=False)
SYSTEM = Rule(unread=False, reopens=False, opens_window=False, counted=False)
CALL = Rule(unread=False, reopens=True, opens_window=True, counted=False)
MISSED_CALL = CALL._replace(unread=True)
CALL_BY_SALON = Rule(unread=False, reopens=False, opens_window=False, counted=False)
# A group has no service window.
IN_GROUP = FROM_CUSTOMER._replace(opens_window=False)

_INBOUND = {"REACTION": REACTION, "SYSTEM": SYSTEM, "CALL": CALL}
_OUTBOUND = {"REACTION": CALL_BY_SALON, "SYSTEM": SYSTEM, "CALL": CALL_BY_SALON}


def rule(direction: str, kind: str) -> Rule:
    """Return the rule of a live message by its direction and its type; edits and revokes have no effects at all."""
    if direction == "INBOUND":
        return _INBOUND.get(kind, FROM_CUSTOMER)
    return _OUTBOUND.get(kind, FROM_SALON)
