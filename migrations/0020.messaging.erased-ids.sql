-- Owned by the messaging service: which WhatsApp message ids belonged to erased customers, without the ids.

CREATE TABLE erasure_salts (
    salon_id text NOT NULL,
    salt bytea NOT NULL,
    CONSTRAINT erasure_salts_pkey PRIMARY KEY (salon_id)
);
COMMENT ON TABLE erasure_salts IS 'A salon has a salt from its first erasure on; without one, nothing needs to be hashed.';

CREATE TABLE erased_whatsapp_ids (
    salon_id text NOT NULL,
    hash bytea NOT NULL,
    CONSTRAINT erased_whatsapp_ids_pkey PRIMARY KEY (salon_id, hash),
    CONSTRAINT erased_whatsapp_ids_salon_id_fkey FOREIGN KEY (salon_id) REFERENCES erasure_salts (salon_id)
);
COMMENT ON TABLE erased_whatsapp_ids IS
    'What WhatsApp still sends of these messages is not recorded. A wamid has many random bits besides the customer''s number, so its hash does not tell the number.';
COMMENT ON COLUMN erased_whatsapp_ids.hash IS 'SHA-256 of the salon''s salt and the id.';
COMMENT ON CONSTRAINT erased_whatsapp_ids_pkey ON erased_whatsapp_ids IS
    'Tells whether a message, a status, or what amends a message is of an erased one.';

GRANT SELECT, INSERT ON erasure_salts, erased_whatsapp_ids TO parlor_messaging;
