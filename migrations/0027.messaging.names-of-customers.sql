-- transactional: false
-- Owned by the messaging service: ListCustomers finds customers by a part of the name of their WhatsApp profile. This file
-- may be run again after a failure: a build that failed leaves an invalid index, which is dropped first.

DROP INDEX CONCURRENTLY IF EXISTS idx_conversations_salon_name_part;
CREATE INDEX CONCURRENTLY idx_conversations_salon_name_part ON conversations
    USING gin (salon_id, customer_name gin_trgm_ops) WHERE customer_name <> '';
COMMENT ON INDEX idx_conversations_salon_name_part IS 'Serves ListCustomers by the query, as a part of a name.';
