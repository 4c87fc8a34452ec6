"""What each kind of message does to its conversation: the one place that decides it."""

from typing import NamedTuple

AMENDMENTS = frozenset(("REACTION", "EDIT", "REVOKE"))  # change a message instead of being one


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
# Edits and revokes, which change their message; system messages; calls by the salon.
NO_EFFECT = Rule(unread=False, reopens=False, opens_window=False, counted=False)
# Sent by a person of the salon on the phone app.
ECHO = NO_EFFECT._replace(counted=True)
# Sent or received before the salon's number was connected.
HISTORY = NO_EFFECT
# A reaction is shown on its message, so it is no message that one could read.
REACTION = NO_EFFECT._replace(opens_window=True)
CALL = NO_EFFECT._replace(reopens=True, opens_window=True)
MISSED_CALL = CALL._replace(unread=True)

_OUTBOUND = dict.fromkeys(("REACTION", "EDIT", "REVOKE", "SYSTEM", "CALL"), NO_EFFECT)
_INBOUND = {**_OUTBOUND, "REACTION": REACTION, "CALL": CALL}


def rule(direction: str, kind: str) -> Rule:
    """Return the rule of a live message by its direction and its type."""
    if direction == "INBOUND":
        return _INBOUND.get(kind, FROM_CUSTOMER)
    return _OUTBOUND.get(kind, FROM_SALON)
