"""The figures of the predecessor's report, and its targets."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Line:
    """A line of the predecessor's tables.

    `case` is the read that measures it. `first` means that its "after" is a read that is not cached yet. `target` is
    the highest after/before, None where the predecessor sets none. Units: ms.
    """

    table: str
    name: str
    case: str
    before_ms: float
    after_ms: float
    target: float | None = None
    first: bool = False


BOOKINGS, STATS, SALONS = 0.25, 0.30, 0.10  # targets: 25 of 100 ms, 90 of 300 ms, 5 of 50 ms

LINES = (
    Line("Booking queries", "Get bookings by salon", "salon_bookings", 98, 18, BOOKINGS),
    Line("Booking queries", "Get confirmed bookings", "confirmed_bookings", 145, 22, BOOKINGS),
    Line("Booking queries", "Customer booking history", "customer_bookings", 112, 25, BOOKINGS),
    Line("Booking queries", "Daily booking analytics", "daily_bookings", 340, 85, BOOKINGS),
    Line("Message queries", "Recent salon messages", "salon_messages", 156, 28),
    Line("Message queries", "Customer message history", "customer_messages", 134, 32),
    Line("Message queries", "Conversation messages", "conversation_messages", 98, 15),
    Line("Message queries", "Direction statistics", "direction_statistics", 215, 55),
    Line("Stats queries", "Salon stats (first call)", "salon_stats", 298, 75, STATS, first=True),
    Line("Stats queries", "Salon stats (cached)", "salon_stats", 298, 5, STATS),
    Line("Stats queries", "AI analytics", "ai_analytics", 245, 68, STATS),
    Line("Salon queries", "Lookup by phone", "salon_by_phone", 48, 3, SALONS),
    Line("Salon queries", "Lookup by ID", "salon_by_id", 42, 3, SALONS),
    Line("Query cache", "Salon lookup", "salon_by_phone", 50, 3, SALONS),
    Line("Query cache", "Booking by code", "booking_by_code", 45, 4, BOOKINGS),
    Line("Query cache", "Salon stats (first)", "salon_stats", 300, 75, STATS, first=True),
    Line("Query cache", "Salon stats (cached)", "salon_stats", 300, 5, STATS),
    Line("Query cache", "Conversation context", "conversation_context", 120, 8),
)
