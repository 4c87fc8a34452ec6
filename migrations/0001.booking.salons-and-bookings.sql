-- Owned by the booking service.

CREATE EXTENSION IF NOT EXISTS btree_gist;

CREATE TABLE salons (
    salon_id text NOT NULL,
    phone_number_id text NOT NULL,
    name text NOT NULL,
    time_zone text NOT NULL,
    region_code text NOT NULL DEFAULT '',
    opening_hours jsonb NOT NULL DEFAULT '[]',
    revision integer NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT salons_pkey PRIMARY KEY (salon_id),
    CONSTRAINT salons_phone_number_id_key UNIQUE (phone_number_id),
    -- Postgres refuses a zone that it does not know: statistics are cut by it.
    CONSTRAINT salons_time_zone_check CHECK (timezone(time_zone, timestamptz '2000-01-01 00:00:00+00') IS NOT NULL)
);
COMMENT ON COLUMN salons.opening_hours IS 'A list of parlor.booking.v1.OpeningHours, as the proto names its fields.';

CREATE TABLE bookings (
    salon_id text NOT NULL,
    booking_id uuid NOT NULL DEFAULT gen_random_uuid(),
    booking_code text NOT NULL,
    customer_phone text NOT NULL,
    customer_name text NOT NULL DEFAULT '',
    resource_id text,
    service_name text NOT NULL DEFAULT '',
    start_ts timestamptz NOT NULL,
    end_ts timestamptz NOT NULL,
    status text NOT NULL,
    notes text NOT NULL DEFAULT '',
    revision integer NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT bookings_pkey PRIMARY KEY (salon_id, booking_id),
    CONSTRAINT booking_code_salon_id UNIQUE (booking_code, salon_id),
    CONSTRAINT bookings_salon_id_fkey FOREIGN KEY (salon_id) REFERENCES salons (salon_id),
    CONSTRAINT bookings_time_check CHECK (start_ts < end_ts),
    CONSTRAINT bookings_status_check CHECK (status IN ('PENDING', 'CONFIRMED', 'CANCELLED', 'COMPLETED', 'NO_SHOW')),
    CONSTRAINT bookings_no_overlap EXCLUDE USING gist (
        salon_id WITH =, resource_id WITH =, tstzrange(start_ts, end_ts) WITH &&
    ) WHERE (resource_id IS NOT NULL AND status IN ('PENDING', 'CONFIRMED'))
);
COMMENT ON CONSTRAINT booking_code_salon_id ON bookings IS 'Serves GetBookingByCode and UpdateBookingStatus.';
COMMENT ON CONSTRAINT bookings_no_overlap ON bookings IS
    'Decides whether a resource is free. Not one of the 15: it guards, it serves no query.';

CREATE INDEX idx_bookings_salon_start ON bookings (salon_id, start_ts);
COMMENT ON INDEX idx_bookings_salon_start IS 'Serves ListBookings, and the bookings of GetSalonStats.';

CREATE INDEX idx_bookings_salon_status_start ON bookings (salon_id, status, start_ts);
COMMENT ON INDEX idx_bookings_salon_status_start IS 'Serves ListBookings by status.';

CREATE INDEX idx_bookings_customer_salon ON bookings (customer_phone, salon_id);
COMMENT ON INDEX idx_bookings_customer_salon IS 'Serves ListBookings by customer_phone.';

CREATE INDEX idx_bookings_created ON bookings (created_at);
COMMENT ON INDEX idx_bookings_created IS 'Serves ListBookingStats, and counts over all salons by day.';

CREATE TABLE booking_requests (
    salon_id text NOT NULL,
    request_id uuid NOT NULL,
    request_hash bytea NOT NULL,
    reply bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT booking_requests_pkey PRIMARY KEY (salon_id, request_id)
);
COMMENT ON TABLE booking_requests IS 'Replies given under a request_id, kept for 24 h.';
CREATE INDEX booking_requests_created ON booking_requests (created_at);
COMMENT ON INDEX booking_requests_created IS 'Finds the rows older than 24 h.';

GRANT SELECT, INSERT, UPDATE ON salons, bookings TO parlor_booking;
GRANT SELECT, INSERT, UPDATE, DELETE ON booking_requests TO parlor_booking;
GRANT SELECT ON salons, bookings TO parlor_stats;
