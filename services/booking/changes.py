"""The feed of booking changes. A row names no customer, so EraseCustomer leaves it as it is."""

from libs.db import Database
from libs.server import ChangeFeed, ChangeTable
from parlor.booking.v1.booking_pb2 import BookingChange

CHANGE = (
    "salon_id, booking_code, revision, 'BOOKING_CHANGE_TYPE_' || type AS type, resource_id, service_id,"
    " time_off_id::text, created_at AS create_time"
)


def booking_changes(database: Database) -> ChangeFeed:
    """Return the feed of the table booking_changes.

    Source: indexes booking_changes_pkey, idx_booking_changes_salon, idx_booking_changes_created.
    """
    return ChangeFeed(database, ChangeTable("booking_changes", BookingChange, CHANGE))
