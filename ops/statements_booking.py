"""The statements of the booking service's RPCs whose plans are not obvious.

Salons, times and ids are those of the seed's data set, the same at every scale. ListResources is not among
them: at scale 1 all resources stand on one page, which is rightly read whole; at scale 20 it uses resources_pkey.
"""

from ops.statements import Statement

BOOKING = (
    Statement(
        "BatchGetBookings",
        ("booking_code_salon_id",),
        """
        SELECT booking_id, booking_code, customer_phone, resource_id, start_ts, end_ts, status
        FROM unnest(ARRAY['salon-123', 'salon-123'], ARRAY['83KMAT', 'ABCDEF'])
          WITH ORDINALITY AS wanted (salon, code, place)
        LEFT JOIN bookings ON booking_code = wanted.code AND salon_id = wanted.salon
        ORDER BY place
        """,
    ),
    Statement(
        "SearchAvailability of a week: what blocks the resources of a salon",
        ("bookings_no_overlap",),
        """
        SELECT resource_id, array_agg(start_ts ORDER BY start_ts), array_agg(end_ts ORDER BY start_ts)
        FROM bookings
        WHERE salon_id = 'salon-123' AND resource_id IS NOT NULL AND status IN ('PENDING', 'CONFIRMED')
          AND tstzrange(start_ts, end_ts) && tstzrange('2025-01-20 00:00+00', '2025-01-27 00:00+00')
          AND (hold_expires_at IS NULL OR hold_expires_at > now())
        GROUP BY resource_id
        """,
    ),
    Statement(
        "CreateBooking, RescheduleBooking: expired holds in the way",
        ("bookings_no_overlap",),
        """
        SELECT booking_id
        FROM bookings
        WHERE salon_id = 'salon-123' AND resource_id = 'chair-1' AND status IN ('PENDING', 'CONFIRMED')
          AND tstzrange(start_ts, end_ts) && tstzrange('2025-01-20 10:00+00', '2025-01-20 11:00+00')
          AND hold_expires_at <= now()
        """,
    ),
    Statement(
        "Warming at start: the busiest salons of the last hours",
        ("idx_bookings_created",),
        """
        SELECT salon_id, count(*) AS made
        FROM bookings
        WHERE created_at > timestamptz '2025-01-17 18:00+00'
        GROUP BY salon_id
        ORDER BY made DESC
        LIMIT 20
        """,
    ),
    Statement(
        "EraseCustomer",
        ("idx_bookings_customer_salon",),
        """
        SELECT booking_id, status, resource_id
        FROM bookings
        WHERE customer_phone = '+4915128747135' AND salon_id = 'salon-123'
        ORDER BY booking_id
        FOR UPDATE
        """,
    ),
)
