"""A statement for each of the 15 indexes, as the predecessor's report has them, with values of the sample data."""

# By index: the report's name for the query, and the statement.
INDEX_STATEMENTS = {
    "idx_bookings_salon_start": (
        "Get bookings by salon",
        "SELECT * FROM bookings WHERE salon_id = 'salon-123' AND start_ts >= timestamptz '2025-01-13 00:00+00'"
        " AND start_ts < timestamptz '2025-01-20 00:00+00' ORDER BY start_ts, booking_id LIMIT 51",
    ),
    "idx_bookings_salon_status_start": (
        "Get confirmed bookings",
        "SELECT * FROM bookings WHERE salon_id = 'salon-123' AND status = 'CONFIRMED'"
        " ORDER BY start_ts, booking_id LIMIT 51",
    ),
    "idx_bookings_customer_salon": (
        "Customer booking history",
        "SELECT * FROM bookings WHERE customer_phone = '+4915128747135' AND salon_id = 'salon-123'"
        " ORDER BY start_ts, booking_id LIMIT 51",
    ),
    "idx_bookings_created": (
        "Daily booking analytics",
        "SELECT date_trunc('day', created_at, 'Europe/Berlin') AS day, status, count(*) FROM bookings"
        " WHERE salon_id = 'salon-123' AND created_at >= timestamptz '2025-01-11 00:00+00'"
        " AND created_at < timestamptz '2025-01-18 00:00+00' GROUP BY day, status",
    ),
    "idx_messages_salon_created": (
        "Recent salon messages",
        "SELECT * FROM messages WHERE salon_id = 'salon-123' ORDER BY created_at DESC, message_id DESC LIMIT 51",
    ),
    "idx_messages_phone_salon": (
        "Customer message history",
        "SELECT * FROM messages WHERE phone_number = '+4915128747135' AND salon_id = 'salon-123'"
        " ORDER BY created_at DESC, message_id DESC LIMIT 51",
    ),
    "idx_messages_conversation_created": (
        "Conversation messages",
        "SELECT * FROM messages WHERE conversation_id = 'c7eee201-3045-432c-ab0e-5732b7bf0c16'"
        " ORDER BY created_at DESC, message_id DESC LIMIT 10",
    ),
    "idx_messages_direction_salon": (
        "Direction statistics",
        "SELECT direction, count(*) FROM messages WHERE direction IN ('INBOUND', 'OUTBOUND')"
        " AND salon_id = 'salon-123' GROUP BY direction",
    ),
    "idx_conversations_salon_status_last": (
        "Active conversation list",
        "SELECT * FROM conversations WHERE salon_id = 'salon-123' AND status = 'ACTIVE'"
        " ORDER BY last_message_at DESC, conversation_id DESC LIMIT 51",
    ),
    "idx_conversations_salon_started": (
        "Conversation initiation analytics",
        "SELECT date_trunc('week', started_at, 'Europe/Berlin') AS week, count(*) FROM conversations"
        " WHERE salon_id = 'salon-123' AND started_at >= timestamptz '2024-12-16 00:00+00'"
        " AND started_at < timestamptz '2025-01-13 00:00+00' GROUP BY week",
    ),
    "idx_ai_messages_conversation_created": (
        "AI conversation history",
        "SELECT * FROM ai_messages WHERE conversation_id = 'c7eee201-3045-432c-ab0e-5732b7bf0c16'"
        " ORDER BY created_at DESC, ai_message_id DESC LIMIT 51",
    ),
    "idx_ai_messages_salon_created": (
        "AI analytics",
        "SELECT model, count(*), sum(cost_micros), avg(latency_ms) FROM ai_messages WHERE salon_id = 'salon-123'"
        " AND created_at >= timestamptz '2025-01-11 00:00+00' AND created_at < timestamptz '2025-01-18 00:00+00'"
        " GROUP BY model",
    ),
    "booking_code_salon_id": (
        "Booking by code",
        "SELECT * FROM bookings WHERE booking_code = '83KMAT' AND salon_id = 'salon-123'",
    ),
    "salon_id_phone_number": (
        "Conversation context",
        "SELECT * FROM conversations WHERE salon_id = 'salon-123' AND phone_number = '+4915128747135'",
    ),
    "whatsapp_id": (
        "Message by whatsapp_id",
        "SELECT * FROM messages WHERE salon_id = 'salon-123' AND whatsapp_id = 'wamid.6E5300B73740AE1736CD457F'",
    ),
}
