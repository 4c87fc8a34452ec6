-- Owned by the messaging service: what messages cost, without reading the table.

CREATE INDEX idx_messages_salon_priced ON messages (salon_id, created_at) INCLUDE (currency_code, cost_micros)
    WHERE cost_micros > 0;
COMMENT ON INDEX idx_messages_salon_priced IS 'Serves the costs of GetSalonStats, together with idx_messages_salon_created.';

-- An index alone answers for the pages that vacuum has seen since their last change: let it come for each 2 % of new
-- messages, not 20 %.
ALTER TABLE messages SET (autovacuum_vacuum_insert_scale_factor = 0.02, autovacuum_vacuum_scale_factor = 0.05);
