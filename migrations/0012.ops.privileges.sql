-- Owned by the `parlor` command: revokes what no service needs.

-- The stats service only counts. It can read no phone number, name or text, and no sample of them in pg_stats.
REVOKE SELECT ON salons, resources, bookings, booking_events, conversations, messages, ai_messages FROM parlor_stats;
GRANT SELECT (salon_id, phone_number_id, time_zone) ON salons TO parlor_stats;
GRANT SELECT (salon_id, start_ts, created_at, status) ON bookings TO parlor_stats;
GRANT SELECT (salon_id, created_at, direction, currency_code, cost_micros) ON messages TO parlor_stats;
GRANT SELECT (salon_id, started_at) ON conversations TO parlor_stats;
GRANT SELECT (salon_id, created_at, model, booking_code, currency_code, cost_micros, prompt_tokens, completion_tokens,
    latency_ms) ON ai_messages TO parlor_stats;

-- Large objects and session-level advisory locks. Only a superuser can revoke EXECUTE on built-in functions.
-- Databases created by PostgreSQL 14 let every role create tables in public.
DO $$
DECLARE
    closed text;
BEGIN
    FOR closed IN
        SELECT 'FUNCTION ' || oid::regprocedure FROM pg_proc
        WHERE pronamespace = 'pg_catalog'::regnamespace AND has_function_privilege('public', oid, 'EXECUTE')
            AND proname ~ '^(lo_.+|loread|lowrite|pg_(try_)?advisory_lock(_shared)?)$'
    LOOP
        EXECUTE format('REVOKE EXECUTE ON %s FROM PUBLIC', closed);
    END LOOP;
    REVOKE CREATE ON SCHEMA public FROM PUBLIC;
EXCEPTION WHEN insufficient_privilege THEN
    RAISE NOTICE 'EXECUTE on built-in functions can only be revoked by a superuser: %', SQLERRM;
END $$;
