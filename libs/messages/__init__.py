"""Rows of Postgres as the bytes of protobuf messages."""

from libs.messages.encode import encode_repeated, encode_row, encoder, length_prefix
from libs.messages.fetch import (
    NOT_STORED,
    SNAPSHOT_XMIN,
    Batch,
    Loaded,
    LoadedFor,
    fetch_batch,
    fetch_encoded,
    fetch_loaded,
    fetch_one,
    fetch_pages,
    fetch_raw,
    fetch_returned,
    fetch_rows,
    text_array,
    unnest,
    where,
)

__all__ = [
    "NOT_STORED",
    "SNAPSHOT_XMIN",
    "Batch",
    "Loaded",
    "LoadedFor",
    "encode_repeated",
    "encode_row",
    "encoder",
    "fetch_batch",
    "fetch_encoded",
    "fetch_loaded",
    "fetch_one",
    "fetch_pages",
    "fetch_raw",
    "fetch_returned",
    "fetch_rows",
    "length_prefix",
    "text_array",
    "unnest",
    "where",
]
