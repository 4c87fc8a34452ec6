"""Webhook bodies of WhatsApp: from bytes to what is recorded."""
