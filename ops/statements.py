"""The statements whose plans show what each of the 15 indexes is for.

Salons, times and ids are those of the seed's data set, the same at every scale.
"""

from dataclasses import dataclass
from inspect import cleandoc


@dataclass(frozen=True)
class Statement:
    """A statement, and the indexes that its plan must use.

    `credited` is the index that the report credits where Postgres rightly picks another: such a plan never fails.
    """

    serves: str
    indexes: tuple[str, ...]
    query: str
    credited: str = ""

    @property
    def sql(self) -> str:
        """The query, without the indentation of this file."""
        return cleandoc(self.query)


# One for each index, in the order of the report.
PROOFS = (
    Statement(
        'ListBookings of a week; report: "Get bookings by salon"',
        ("idx_bookings_salon_start",),
        """
        SELECT booking_id, booking_code, customer_phone, resource_id, start_ts, end_ts, status
        FROM bookings
        WHERE salon_id = 'salon-123'
          AND start_ts >= timestamptz '2025-01-13 00:00+00' AND start_ts < timestamptz '2025-01-20 00:00+00'
        ORDER BY start_ts, booking_id
        LIMIT 51
        """,
    ),
    Statement(
        'ListBookings by status; report: "Get confirmed bookings"',
        ("idx_bookings_salon_status_start",),
        """
        SELECT booking_id, booking_code, customer_phone, resource_id, start_ts, end_ts, status
        FROM bookings
        WHERE salon_id = 'salon-123' AND status = 'CONFIRMED'
        ORDER BY start_ts, booking_id
        LIMIT 51
        """,
    ),
    Statement(
        'ListBookings by customer_phone; report: "Customer booking history"',
        ("idx_bookings_customer_salon",),
        """
        SELECT booking_id, booking_code, customer_phone, resource_id, start_ts, end_ts, status
        FROM bookings
        WHERE customer_phone = '+4915128747135' AND salon_id = 'salon-123'
        ORDER BY start_ts, booking_id
        LIMIT 51
        """,
    ),
    Statement(
        'ListBookingStats of a week by day; report: "Daily booking analytics"',
        ("idx_bookings_created",),
        """
        SELECT date_trunc('day', created_at, 'Europe/Berlin') AS day, status, count(*)
        FROM bookings
        WHERE salon_id = 'salon-123'
          AND created_at >= timestamptz '2025-01-11 00:00+00' AND created_at < timestamptz '2025-01-18 00:00+00'
        GROUP BY day, status
        """,
    ),
    Statement(
        'ListMessages of a salon; report: "Recent salon messages"',
        ("idx_messages_salon_created",),
        """
        SELECT message_id, conversation_id, phone_number, direction, type, content, status, created_at
        FROM messages
        WHERE salon_id = 'salon-123'
        ORDER BY created_at DESC, message_id DESC
        LIMIT 51
        """,
    ),
    Statement(
        'ListMessages by phone_number; report: "Customer message history"',
        ("idx_messages_phone_salon",),
        """
        SELECT message_id, conversation_id, phone_number, direction, type, content, status, created_at
        FROM messages
        WHERE phone_number = '+4915128747135' AND salon_id = 'salon-123'
        ORDER BY created_at DESC, message_id DESC
        LIMIT 51
        """,
    ),
    Statement(
        'GetConversation, ListMessages by conversation_id; report: "Conversation messages"',
        ("idx_messages_conversation_created",),
        """
        SELECT message_id, conversation_id, phone_number, direction, type, content, status, created_at
        FROM messages
        WHERE conversation_id = 'c7eee201-3045-432c-ab0e-5732b7bf0c16' AND salon_id = 'salon-123'
        ORDER BY created_at DESC, message_id DESC
        LIMIT 10
        """,
    ),
    Statement(
        'Counts per direction of all time; report: "Direction statistics"',
        ("idx_messages_direction_salon",),
        """
        SELECT direction, count(*)
        FROM messages
        WHERE direction IN ('INBOUND', 'OUTBOUND') AND salon_id = 'salon-123'
        GROUP BY direction
        """,
    ),
    Statement(
        'ListConversations by status; report: "Active conversation list"',
        ("idx_conversations_salon_status_last",),
        """
        SELECT conversation_id, phone_number, status, started_at, last_message_at
        FROM conversations
        WHERE salon_id = 'salon-123' AND status = 'ACTIVE'
        ORDER BY last_message_at DESC, conversation_id DESC
        LIMIT 51
        """,
    ),
    Statement(
        'ListConversationStats of 4 weeks by week; report: "Conversation initiation analytics"',
        ("idx_conversations_salon_started",),
        """
        SELECT date_trunc('week', started_at, 'Europe/Berlin') AS week, count(*)
        FROM conversations
        WHERE salon_id = 'salon-123'
          AND started_at >= timestamptz '2024-12-16 00:00+00' AND started_at < timestamptz '2025-01-13 00:00+00'
        GROUP BY week
        """,
    ),
    Statement(
        'ListAiMessages; report: "AI conversation history"',
        ("idx_ai_messages_conversation_created",),
        """
        SELECT ai_message_id, conversation_id, model, role, content, created_at
        FROM ai_messages
        WHERE conversation_id = 'c7eee201-3045-432c-ab0e-5732b7bf0c16' AND salon_id = 'salon-123'
        ORDER BY created_at DESC, ai_message_id DESC
        LIMIT 51
        """,
    ),
    Statement(
        'GetAiAnalytics of a week; report: "AI analytics"',
        ("idx_ai_messages_salon_created",),
        """
        SELECT model, count(*), sum(prompt_tokens), sum(completion_tokens), sum(cost_micros), avg(latency_ms)
        FROM ai_messages
        WHERE salon_id = 'salon-123'
          AND created_at >= timestamptz '2025-01-11 00:00+00' AND created_at < timestamptz '2025-01-18 00:00+00'
        GROUP BY model
        """,
    ),
    Statement(
        'GetBookingByCode, UpdateBookingStatus; report: "Booking by code"',
        ("booking_code_salon_id",),
        """
        SELECT booking_id, booking_code, customer_phone, resource_id, start_ts, end_ts, status
        FROM bookings
        WHERE booking_code = '83KMAT' AND salon_id = 'salon-123'
        """,
    ),
    Statement(
        'GetConversation, RecordMessage; report: "Conversation context"',
        ("salon_id_phone_number",),
        """
        SELECT conversation_id, phone_number, status, started_at, last_message_at
        FROM conversations
        WHERE salon_id = 'salon-123' AND phone_number = '+4915128747135'
        """,
    ),
    Statement(
        "RecordMessage of a repeat, RecordMessageStatus",
        ("whatsapp_id",),
        """
        SELECT message_id, conversation_id, status
        FROM messages
        WHERE salon_id = 'salon-123' AND whatsapp_id = 'wamid.6E5300B73740AE1736CD457F'
        """,
    ),
)

# What else the report shows plans of, and RPCs whose plan is not obvious.
QUERIES = (
    Statement(
        "Report: EXPLAIN 1, all confirmed bookings",
        ("idx_bookings_salon_status_start",),
        """
        SELECT booking_id, booking_code, customer_phone, resource_id, start_ts, end_ts, status
        FROM bookings
        WHERE salon_id = 'salon-123' AND status = 'CONFIRMED'
        ORDER BY start_ts ASC
        """,
    ),
    Statement(
        "Report: EXPLAIN 2, the newest 100 messages",
        ("idx_messages_salon_created",),
        """
        SELECT message_id, conversation_id, phone_number, direction, type, content, status, created_at
        FROM messages
        WHERE salon_id = 'salon-123'
        ORDER BY created_at DESC
        LIMIT 100
        """,
    ),
    Statement(
        "Report: EXPLAIN 3, active conversations",
        ("idx_conversations_salon_status_last",),
        """
        SELECT conversation_id, phone_number, status, started_at, last_message_at
        FROM conversations
        WHERE salon_id = 'salon-123' AND status = 'ACTIVE'
        ORDER BY last_message_at DESC
        LIMIT 50
        """,
    ),
    Statement(
        'GetSalonStats of a week; report: EXPLAIN 4, "Salon stats (first call)"',
        (
            "idx_bookings_salon_start",
            "idx_messages_salon_created",
            "idx_messages_salon_priced",
            "idx_conversations_salon_started",
        ),
        """
        SELECT bookings.count AS bookings, messages.count AS messages, conversations.count AS conversations,
          priced.cost_micros
        FROM (
          SELECT count(*) FROM bookings
          WHERE salon_id = 'salon-123'
            AND start_ts >= timestamptz '2025-01-11 00:00+00' AND start_ts < timestamptz '2025-01-18 00:00+00'
        ) AS bookings, (
          SELECT count(*) FROM messages
          WHERE salon_id = 'salon-123'
            AND created_at >= timestamptz '2025-01-11 00:00+00' AND created_at < timestamptz '2025-01-18 00:00+00'
        ) AS messages, (
          SELECT coalesce(sum(cost_micros), 0) AS cost_micros FROM messages
          WHERE salon_id = 'salon-123' AND cost_micros > 0
            AND created_at >= timestamptz '2025-01-11 00:00+00' AND created_at < timestamptz '2025-01-18 00:00+00'
        ) AS priced, (
          SELECT count(*) FROM conversations
          WHERE salon_id = 'salon-123'
            AND started_at >= timestamptz '2025-01-11 00:00+00' AND started_at < timestamptz '2025-01-18 00:00+00'
        ) AS conversations
        """,
    ),
    Statement(
        "GetMessageDirectionStats of a week",
        ("idx_messages_salon_created",),
        """
        SELECT direction, currency_code, count(*), sum(cost_micros)
        FROM messages
        WHERE salon_id = 'salon-123'
          AND created_at >= timestamptz '2025-01-11 00:00+00' AND created_at < timestamptz '2025-01-18 00:00+00'
        GROUP BY direction, currency_code
        """,
        credited="idx_messages_direction_salon",
    ),
    Statement(
        "ListMessages by direction",
        ("idx_messages_salon_created",),
        """
        SELECT message_id, conversation_id, phone_number, direction, type, content, status, created_at
        FROM messages
        WHERE salon_id = 'salon-123' AND direction = 'OUTBOUND'
        ORDER BY created_at DESC, message_id DESC
        LIMIT 51
        """,
        credited="idx_messages_direction_salon",
    ),
)
