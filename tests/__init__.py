"""Tests: through the stubs, on a real Postgres and a real Valkey."""
