-- Owned by the booking service: services, rules, time off, customers without a number, expired holds, and the feed of
-- changes.

ALTER TABLE salons ADD COLUMN booking_rules jsonb;
COMMENT ON COLUMN salons.booking_rules IS
    'A parlor.booking.v1.BookingRules, as the proto names its fields; a Duration is {"seconds": N}. NULL: no rules.';

ALTER TABLE resources ADD COLUMN deleted_at timestamptz;
COMMENT ON COLUMN resources.deleted_at IS 'When the resource was deleted. The row stays: past bookings refer to it.';

CREATE TABLE services (
    salon_id text NOT NULL,
    service_id text NOT NULL,
    name text NOT NULL,
    duration integer NOT NULL,
    buffer_before integer,
    buffer_after integer,
    price_micros bigint NOT NULL DEFAULT 0,
    currency_code text NOT NULL DEFAULT '',
    resource_ids text[] NOT NULL DEFAULT '{}',
    active boolean NOT NULL DEFAULT true,
    revision integer NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT services_pkey PRIMARY KEY (salon_id, service_id),
    CONSTRAINT services_salon_id_fkey FOREIGN KEY (salon_id) REFERENCES salons (salon_id)
);
COMMENT ON TABLE services IS 'What a salon does for customers. Durations and buffers are in s.';
COMMENT ON CONSTRAINT services_pkey ON services IS 'Serves GetService, ListServices, CreateBooking and SearchAvailability.';

CREATE TABLE time_off (
    salon_id text NOT NULL,
    time_off_id uuid NOT NULL DEFAULT gen_random_uuid(),
    resource_id text,
    start_ts timestamptz NOT NULL,
    end_ts timestamptz NOT NULL,
    reason text NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT time_off_pkey PRIMARY KEY (salon_id, time_off_id),
    CONSTRAINT time_off_salon_id_fkey FOREIGN KEY (salon_id) REFERENCES salons (salon_id),
    CONSTRAINT time_off_resource_id_fkey FOREIGN KEY (salon_id, resource_id)
        REFERENCES resources (salon_id, resource_id),
    CONSTRAINT time_off_time_check CHECK (start_ts < end_ts)
);
COMMENT ON COLUMN time_off.resource_id IS 'NULL: the whole salon.';
CREATE INDEX idx_time_off_salon_start ON time_off (salon_id, start_ts, time_off_id);
COMMENT ON INDEX idx_time_off_salon_start IS 'Serves ListTimeOff.';
CREATE INDEX idx_time_off_salon_range ON time_off USING gist (salon_id, tstzrange(start_ts, end_ts));
COMMENT ON INDEX idx_time_off_salon_range IS 'Serves CreateBooking and SearchAvailability.';

-- Adding seconds to a time does not depend on the time zone, which Postgres cannot know of an interval.
CREATE FUNCTION blocked_range(start_ts timestamptz, end_ts timestamptz, buffer_before integer, buffer_after integer)
    RETURNS tstzrange LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN tstzrange(start_ts - buffer_before * interval '1 second', end_ts + buffer_after * interval '1 second');
COMMENT ON FUNCTION blocked_range IS 'The time of a booking with its buffers, which are in s.';

ALTER TABLE bookings
    ADD COLUMN customer_user_id text NOT NULL DEFAULT '',
    ADD COLUMN service_id text,
    ADD COLUMN price_micros bigint NOT NULL DEFAULT 0,
    ADD COLUMN currency_code text NOT NULL DEFAULT '',
    ADD COLUMN buffer_before integer NOT NULL DEFAULT 0,
    ADD COLUMN buffer_after integer NOT NULL DEFAULT 0,
    DROP CONSTRAINT bookings_status_check,
    ADD CONSTRAINT bookings_status_check
        CHECK (status IN ('PENDING', 'CONFIRMED', 'CANCELLED', 'COMPLETED', 'NO_SHOW', 'EXPIRED')),
    DROP CONSTRAINT bookings_hold_check,
    ADD CONSTRAINT bookings_hold_check CHECK (hold_expires_at IS NULL OR status IN ('PENDING', 'CANCELLED', 'EXPIRED')),
    ADD CONSTRAINT bookings_buffers_check CHECK (buffer_before >= 0 AND buffer_after >= 0),
    DROP CONSTRAINT bookings_no_overlap,
    ADD CONSTRAINT bookings_no_overlap EXCLUDE USING gist (
        salon_id WITH =, resource_id WITH =, blocked_range(start_ts, end_ts, buffer_before, buffer_after) WITH &&
    ) WHERE (resource_id IS NOT NULL AND status IN ('PENDING', 'CONFIRMED'));
COMMENT ON COLUMN bookings.hold_expires_at IS
    'From when on a PENDING booking blocks nothing. now() can''t stand in bookings_no_overlap, so the next writer of the time, or a background step, sets EXPIRED.';
COMMENT ON COLUMN bookings.buffer_before IS 'In s.';
COMMENT ON COLUMN bookings.buffer_after IS 'In s.';
COMMENT ON CONSTRAINT bookings_no_overlap ON bookings IS
    'Decides whether a resource is free. Not one of the 15: it guards, and serves SearchAvailability.';

CREATE INDEX idx_bookings_user_salon ON bookings (customer_user_id, salon_id) WHERE customer_user_id <> '';
COMMENT ON INDEX idx_bookings_user_salon IS 'Serves ListBookings by customer_user_id, and EraseCustomer.';
CREATE INDEX idx_bookings_salon_resource_start ON bookings (salon_id, resource_id, start_ts);
COMMENT ON INDEX idx_bookings_salon_resource_start IS 'Serves ListBookings by resource_ids.';
CREATE INDEX idx_bookings_salon_range ON bookings USING gist (salon_id, tstzrange(start_ts, end_ts));
COMMENT ON INDEX idx_bookings_salon_range IS 'Serves ListBookings by an overlapping time, and CreateTimeOff.';
CREATE INDEX idx_bookings_salon_updated ON bookings (salon_id, updated_at, booking_id);
COMMENT ON INDEX idx_bookings_salon_updated IS 'Serves ListBookings by update_time.';
CREATE INDEX idx_bookings_holds ON bookings (hold_expires_at) WHERE status = 'PENDING' AND hold_expires_at IS NOT NULL;
COMMENT ON INDEX idx_bookings_holds IS 'Finds the holds that have expired.';

ALTER TABLE booking_events
    DROP CONSTRAINT booking_events_type_check,
    ADD CONSTRAINT booking_events_type_check CHECK (type IN ('CREATED', 'STATUS_CHANGED', 'RESCHEDULED', 'UPDATED'));

CREATE TABLE booking_changes (
    xact_id xid8 NOT NULL DEFAULT pg_current_xact_id(),
    seq bigint GENERATED ALWAYS AS IDENTITY,
    salon_id text NOT NULL,
    type text NOT NULL,
    booking_code text,
    revision integer NOT NULL DEFAULT 0,
    resource_id text,
    service_id text,
    time_off_id uuid,
    created_at timestamptz NOT NULL DEFAULT statement_timestamp(),
    CONSTRAINT booking_changes_pkey PRIMARY KEY (xact_id, seq),
    CONSTRAINT booking_changes_type_check CHECK (
        type IN ('CREATED', 'STATUS_CHANGED', 'RESCHEDULED', 'UPDATED', 'SERVICE', 'RESOURCE', 'SALON', 'TIME_OFF'))
);
COMMENT ON TABLE booking_changes IS
    'Each change, written by its transaction. Read in the order (xact_id, seq), and only what no transaction can precede any more.';
COMMENT ON CONSTRAINT booking_changes_pkey ON booking_changes IS 'Serves ListBookingChanges of all salons, and WatchBookings.';
CREATE INDEX idx_booking_changes_salon ON booking_changes (salon_id, xact_id, seq);
COMMENT ON INDEX idx_booking_changes_salon IS 'Serves ListBookingChanges of one salon, and booking_changes_in_order.';
CREATE INDEX idx_booking_changes_created ON booking_changes (created_at);
COMMENT ON INDEX idx_booking_changes_created IS 'Finds the changes older than 7 days.';

-- A transaction that has its ID, waits for a lock, and then changes a booking may follow one with a higher ID. Its row
-- goes behind those of its salon that it can see. That loses nothing: until it ends no row from its own ID on can be read.
-- Nothing precedes the row of a new booking, so it needs no look: CreateBooking takes 0.1 ms less.
CREATE FUNCTION booking_changes_in_order() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    last xid8;
BEGIN
    SELECT xact_id INTO last FROM booking_changes
        WHERE salon_id = NEW.salon_id AND xact_id > NEW.xact_id ORDER BY xact_id DESC LIMIT 1;
    NEW.xact_id := coalesce(last, NEW.xact_id);
    RETURN NEW;
END $$;
CREATE TRIGGER booking_changes_in_order BEFORE INSERT ON booking_changes
    FOR EACH ROW WHEN (NEW.type <> 'CREATED') EXECUTE FUNCTION booking_changes_in_order();

GRANT SELECT, INSERT, UPDATE, DELETE ON services TO parlor_booking;
GRANT SELECT, INSERT, DELETE ON time_off, booking_changes TO parlor_booking;
