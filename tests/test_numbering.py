"""The canary: a database whose transaction ids are not those of its rows is refused."""

import psycopg
import pytest
from pydantic import SecretStr

from libs.db import Database, DatabaseSettings, OtherNumbering

TABLES = ["booking_requests", "messaging_requests"]
# A function of the same name, first in the search_path, as a router would answer from another node.
OTHER_NODE = """
CREATE SCHEMA other_node;
CREATE FUNCTION other_node.pg_current_xact_id() RETURNS xid8 LANGUAGE sql
    AS $$ SELECT (pg_catalog.pg_current_xact_id()::text::bigint + 1000)::text::xid8 $$;
"""


async def begin(url: str, table: str) -> None:
    """Open a pool as a service does."""
    database = Database(DatabaseSettings(url=SecretStr(url)), "test")
    database.canary = table
    try:
        await database.open()
        assert database.available
    finally:
        await database.close()


@pytest.mark.parametrize("table", TABLES)
async def test_a_database_of_another_numbering_is_refused_in_one_line(database_url: str, table: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as conn:
        conn.execute(OTHER_NODE.encode())
    with pytest.raises(OtherNumbering, match="does not number all transactions alike") as refusal:
        await begin(f"{database_url}?options=-csearch_path%3Dother_node,pg_catalog,public", table)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("table", TABLES)
async def test_a_postgres_is_taken_and_the_canary_leaves_no_row(database_url: str, table: str) -> None:
    await begin(database_url, table)
    with psycopg.connect(database_url) as conn:
        assert conn.execute(f"SELECT count(*) FROM {table}".encode()).fetchall() == [(0,)]
