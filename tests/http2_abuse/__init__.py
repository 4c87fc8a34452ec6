"""Hostile clients against libs.http2: what they cost other clients and the process."""
