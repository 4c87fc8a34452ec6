"""Rows of Postgres as the bytes of protobuf messages."""
