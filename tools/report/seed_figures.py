"""What the seed's report says: its tables, the gain that it expects of each index, and its targets."""

from typing import NamedTuple


class Line(NamedTuple):
    """A line of the seed's tables: which case measures it, its times in ms, and whether its "after" is a first read.

    `target` is what after/before may be at most; None where the seed sets none.
    """

    table: str
    name: str
    case: str
    before_ms: float
    after_ms: float
    target: float | None = None
    first: bool = False


# The seed's targets: 25 of 100 ms, 90 of 300 ms, 5 of 50 ms.
BOOKINGS, STATS, SALONS = 0.25, 0.30, 0.10

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

# By how much of its time a query gets faster, in %. The unique constraints have no figure.
EXPECTED_GAINS = {
    "idx_bookings_salon_start": 75,
    "idx_bookings_salon_status_start": 80,
    "idx_bookings_customer_salon": 70,
    "idx_bookings_created": 60,
    "idx_messages_salon_created": 75,
    "idx_messages_phone_salon": 70,
    "idx_messages_conversation_created": 80,
    "idx_messages_direction_salon": 65,
    "idx_conversations_salon_status_last": 85,
    "idx_conversations_salon_started": 60,
    "idx_ai_messages_conversation_created": 80,
    "idx_ai_messages_salon_created": 75,
}


class Load(NamedTuple):
    """The seed's figures of the whole system: %, ms and connections, before and after where it has both."""

    saved: float = 82
    saved_target: float = 75
    hit_rate: float = 87
    hit_rate_target: float = 85
    average_ms: tuple[float, float] = (78, 18)
    connections: tuple[str, str] = ("18-25", "12-15")
    acquisition_ms: tuple[float, float] = (45, 2)
    callers: tuple[str, str] = ("25", "120+")
    connection_errors: tuple[str, str] = ("12/day", "0/day")
    exhaustions: tuple[str, str] = ("5/day", "0/day")
    buffer_hit_rate_target: float = 90


SEED = Load()
