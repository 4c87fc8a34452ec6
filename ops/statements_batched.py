"""The statements that load cached reads, as the services send them: each for many arguments, here for two.

The services' own texts are explained, not copies. Salons, times and ids are those of the seed's data set, the same at
every scale. ListResources is not among them: at scale 1 all resources stand on one page, which is rightly read whole.
"""

from collections.abc import Iterable

from ops.statements import Statement
from services.booking import booking_queries
from services.messaging import ai_queries, conversation_queries, message_queries
from services.stats import queries as stats_queries

_VALUES = {
    "salon_id": "salon-123",
    "booking_code": "83KMAT",
    "status": "CONFIRMED",
    "customer_phone": "+4915128747135",
    "phone_number": "+4915128747135",
    "user_id": "DE.1234567890",
    "conversation_id": "c7eee201-3045-432c-ab0e-5732b7bf0c16",
    "direction": "OUTBOUND",
    "tag": "complaint",
    "assignee": "user-1",
    "unread_only": "true",
    "start_time": "2025-01-11 00:00+00",
    "end_time": "2025-01-18 00:00+00",
    "bucket": "day",
    "messages": "10",
    "rows": "51",
    "after": "1736935200000000",
    "id": "c7eee201-3045-432c-ab0e-5732b7bf0c16",
}
_FIRST = ("salon_id", "rows")
_NEXT = (*_FIRST, "after", "id")


def _explained(serves: str, indexes: Iterable[str], query: str, names: Iterable[str], **values: str) -> Statement:
    """Return a statement with its parameters filled in: the last first, since $1 begins $10."""
    for place, name in reversed(list(enumerate(names, 1))):
        value = (_VALUES | values)[name]
        query = query.replace(f"${place}::", f"ARRAY['{value}', '{value}']::")
    return Statement(serves, tuple(indexes), query)


def _bookings(serves: str, index: str, names: tuple[str, ...]) -> Statement:
    return _explained(f"ListBookings {serves}", [index], booking_queries.bookings_statement(names), names)


def _messages(serves: str, index: str, names: tuple[str, ...]) -> Statement:
    return _explained(f"ListMessages {serves}", [index], message_queries.messages_statement(names), names)


def _conversations(serves: str, index: str, names: tuple[str, ...]) -> Statement:
    query = conversation_queries.conversations_statement(names)
    return _explained(f"ListConversations {serves}", [index], query, names, status="ACTIVE")


def _conversation(serves: str, index: str, name: str) -> Statement:
    names = ("salon_id", name, "messages")
    indexes = (index, "idx_messages_conversation_created")
    return _explained(f"GetConversation {serves}", indexes, conversation_queries.conversation_statement(names), names)


def _stats(serves: str, indexes: Iterable[str], query: str) -> Statement:
    return _explained(serves, indexes, query, stats_queries.Buckets._fields)


_EVENTS = ("salon_id", "booking_code", "rows")
_AI_MESSAGES = ("salon_id", "conversation_id", "rows")
BATCHED = (
    _bookings("of a salon", "idx_bookings_salon_start", _FIRST),
    _bookings("of a salon, a later page", "idx_bookings_salon_start", _NEXT),
    _bookings("of a week", "idx_bookings_salon_start", ("salon_id", "start_time", "end_time", "rows")),
    _bookings("by status", "idx_bookings_salon_status_start", ("salon_id", "status", "rows")),
    _bookings("by customer_phone", "idx_bookings_customer_salon", ("salon_id", "customer_phone", "rows")),
    _explained(
        "ListBookingEvents",
        ["booking_code_salon_id", "booking_events_pkey"],
        booking_queries.events_statement(_EVENTS),
        _EVENTS,
    ),
    _messages("of a salon", "idx_messages_salon_created", _FIRST),
    _messages("of a salon, a later page", "idx_messages_salon_created", _NEXT),
    _messages("by direction", "idx_messages_salon_created", ("salon_id", "direction", "rows")),
    _messages("by conversation_id", "idx_messages_conversation_created", _AI_MESSAGES),
    _messages("by phone_number", "idx_messages_phone_salon", ("salon_id", "phone_number", "rows")),
    _explained(
        "ListAiMessages",
        ["idx_ai_messages_conversation_created"],
        ai_queries.ai_messages_statement(_AI_MESSAGES),
        _AI_MESSAGES,
    ),
    _conversations("of every status: one limited branch each", "idx_conversations_salon_status_last", _FIRST),
    _conversations("by status", "idx_conversations_salon_status_last", ("salon_id", "status", "rows")),
    _conversations("by tag", "idx_conversations_salon_tags", ("salon_id", "tag", "rows")),
    _conversations("of the unread", "idx_conversations_salon_unread_last", ("salon_id", "unread_only", "rows")),
    _conversations("by assignee", "idx_conversations_salon_assignee_last", ("salon_id", "assignee", "rows")),
    _conversation("by conversation_id", "conversations_pkey", "conversation_id"),
    _conversation("by phone_number", "salon_id_phone_number", "phone_number"),
    _conversation("by user_id", "idx_conversations_salon_user", "user_id"),
    _stats(
        "GetSalonStats",
        (
            "idx_bookings_salon_start",
            "idx_messages_salon_created",
            "idx_messages_salon_priced",
            "idx_conversations_salon_started",
        ),
        stats_queries.SALON_STATS,
    ),
    _stats("GetMessageDirectionStats", ["idx_messages_salon_created"], stats_queries.MESSAGE_DIRECTION_STATS),
    _stats("GetAiAnalytics", ["idx_ai_messages_salon_created"], stats_queries.AI_ANALYTICS),
    _stats("ListBookingStats", ["idx_bookings_created"], stats_queries.BOOKING_STATS),
    _stats("ListConversationStats", ["idx_conversations_salon_started"], stats_queries.CONVERSATION_STATS),
)
