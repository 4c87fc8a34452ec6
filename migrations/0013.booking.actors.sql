-- Owned by the booking service: an actor is an id, not a name or phone number.

-- Clear actors that are not ids, and invalidate the cached histories that show them.
WITH changed AS (
    UPDATE booking_events SET actor = CASE WHEN lower(actor) ~ '^[a-z0-9_.-]{1,64}$' THEN lower(actor) ELSE '' END
    WHERE actor !~ '^[a-z0-9_.-]{0,64}$'
    RETURNING salon_id, booking_id
)
INSERT INTO cache_pending (group_key, xact_id)
SELECT DISTINCT format('query:booking:salon:{%s}:code:%s#meta', salon_id, booking_code),
    pg_current_xact_id()::text::bigint
FROM changed JOIN bookings USING (salon_id, booking_id);

ALTER TABLE booking_events ADD CONSTRAINT booking_events_actor_check CHECK (actor ~ '^[a-z0-9_.-]{0,64}$');
