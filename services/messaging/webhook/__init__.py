"""Webhook bodies of WhatsApp: `ingest` records them; `parse` reads their messages and statuses."""
