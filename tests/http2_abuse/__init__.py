"""Hostile clients against libs.http2: what they cost the others, and the process."""
