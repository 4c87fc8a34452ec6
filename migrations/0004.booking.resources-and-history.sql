-- Owned by the booking service: who works in a salon and when, holds, and what happened to a booking.

ALTER TABLE salons
    ADD COLUMN special_hours jsonb NOT NULL DEFAULT '[]',
    ADD COLUMN language_code text NOT NULL DEFAULT '';
COMMENT ON COLUMN salons.special_hours IS 'A list of parlor.booking.v1.SpecialHours, as the proto names its fields.';

CREATE TABLE resources (
    salon_id text NOT NULL,
    resource_id text NOT NULL,
    name text NOT NULL,
    active boolean NOT NULL DEFAULT true,
    working_hours jsonb NOT NULL DEFAULT '[]',
    special_hours jsonb NOT NULL DEFAULT '[]',
    revision integer NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT resources_pkey PRIMARY KEY (salon_id, resource_id),
    CONSTRAINT resources_salon_id_fkey FOREIGN KEY (salon_id) REFERENCES salons (salon_id)
);
COMMENT ON CONSTRAINT resources_pkey ON resources IS 'Serves ListResources and SearchAvailability.';
COMMENT ON COLUMN resources.working_hours IS 'A list of parlor.booking.v1.OpeningHours, as the proto names its fields.';
COMMENT ON COLUMN resources.special_hours IS 'A list of parlor.booking.v1.SpecialHours, as the proto names its fields.';

INSERT INTO resources (salon_id, resource_id, name)
SELECT DISTINCT salon_id, resource_id, resource_id FROM bookings WHERE resource_id IS NOT NULL;

ALTER TABLE bookings
    ADD COLUMN hold_expires_at timestamptz,
    ADD CONSTRAINT bookings_resource_id_fkey FOREIGN KEY (salon_id, resource_id)
        REFERENCES resources (salon_id, resource_id),
    ADD CONSTRAINT bookings_hold_check CHECK (hold_expires_at IS NULL OR status IN ('PENDING', 'CANCELLED'));
COMMENT ON COLUMN bookings.hold_expires_at IS
    'From when on a PENDING booking blocks nothing. now() can''t stand in bookings_no_overlap, so whoever takes the time cancels it.';
COMMENT ON CONSTRAINT bookings_no_overlap ON bookings IS
    'Decides whether a resource is free. Not one of the 15: it guards, and serves SearchAvailability.';
COMMENT ON CONSTRAINT booking_code_salon_id ON bookings IS
    'Serves GetBookingByCode, BatchGetBookings, UpdateBookingStatus, RescheduleBooking and ListBookingEvents.';
COMMENT ON INDEX idx_bookings_customer_salon IS 'Serves ListBookings by customer_phone, and EraseCustomer.';

CREATE TABLE booking_events (
    salon_id text NOT NULL,
    booking_id uuid NOT NULL,
    revision integer NOT NULL,
    type text NOT NULL,
    actor text NOT NULL DEFAULT '',
    reason text NOT NULL DEFAULT '',
    from_status text,
    to_status text NOT NULL,
    from_start_ts timestamptz,
    from_end_ts timestamptz,
    to_start_ts timestamptz NOT NULL,
    to_end_ts timestamptz NOT NULL,
    from_resource_id text,
    to_resource_id text,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT booking_events_pkey PRIMARY KEY (salon_id, booking_id, revision),
    CONSTRAINT booking_events_booking_id_fkey FOREIGN KEY (salon_id, booking_id)
        REFERENCES bookings (salon_id, booking_id),
    CONSTRAINT booking_events_type_check CHECK (type IN ('CREATED', 'STATUS_CHANGED', 'RESCHEDULED'))
);
COMMENT ON CONSTRAINT booking_events_pkey ON booking_events IS 'Serves ListBookingEvents.';

GRANT SELECT, INSERT, UPDATE ON resources TO parlor_booking;
-- UPDATE only of what EraseCustomer empties: history is written once.
GRANT SELECT, INSERT, UPDATE (actor, reason) ON booking_events TO parlor_booking;
GRANT SELECT ON resources, booking_events TO parlor_stats;
