"""ListCustomers finds customers by a part of a name or the beginning of a number, by indexes."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from parlor.messaging.v1 import messaging_pb2 as pb
from services.messaging.customer_queries import customers_statement
from tests.stack import PHONE, SALON, Stack, salon
from tests.test_customers import record

# A number as it is stored, and spellings of its beginning.
BEGINNINGS = {
    "+525512345678": ["+52 1 55 12", "+521", "0052 1 55", "5215512345678", "+5255", "+5215512345678"],
    "+5511987654321": ["+55 11 876", "551187654321", "+55 11 9", "+55 (011) 98", "+55 0 11 987"],
    "+5511971234567": ["+55 11 7123", "+55 11 9712"],
    "+551132345678": ["+55 11 32", "+551132345678"],
    "+5491112345678": ["+54 11", "+54 9 11", "54111234", "+541112345678", "+54 11 15 1234-5678", "+54 (011) 1234"],
    "+4915112345678": ["+49 0151", "+49(0)151", "0049 0 151 1", "+49 (0151) 1"],
    "+390612345678": ["+39 06", "3906"],
}
MANY = 20_000  # customers of each of two salons


async def found(stack: Stack, query: str, **filters: Any) -> list[str]:
    """Return the newest numbers of the customers that a query finds."""
    request = pb.ListCustomersRequest(salon_id=SALON, query=query, **filters)
    return [one.phone_numbers[0] for one in (await stack.messaging.ListCustomers(request)).customers]


async def test_the_beginning_of_a_national_number_finds_a_customer(stack: Stack) -> None:
    await salon(stack, region_code="DE")
    await record(stack, 1, phone_number=PHONE)
    for query in (PHONE[:6], "00" + PHONE[1:6], "0" + PHONE[3:6], f"+{PHONE[1:3]} (0) {PHONE[3:6]}", PHONE[1:6]):
        assert await found(stack, query) == [PHONE], query
    for query in (PHONE[3:6], "0" + PHONE[4:8], "+", "zoe"):
        assert await found(stack, query) == [], query


@pytest.mark.parametrize("number", BEGINNINGS)
async def test_the_beginning_of_a_number_is_found_in_each_spelling(stack: Stack, number: str) -> None:
    await salon(stack)
    stored = (await record(stack, 1, phone_number=number)).phone_number
    inbox = stack.messaging.ListConversations
    for query in BEGINNINGS[number]:
        assert await found(stack, query) == [stored], query
        listed = await inbox(pb.ListConversationsRequest(salon_id=SALON, query=query))
        assert [one.phone_number for one in listed.conversations] == [stored], query


NAMED = ("idx_customers_salon_name", "idx_conversations_salon_name_part")
PLANS: dict[tuple[tuple[str, ...], str], tuple[str, ...]] = {
    (("name",), ""): NAMED,
    (("name", "number"), ""): (*NAMED, "idx_customer_identities_prefix"),
    (("opted_out", "name"), "true"): NAMED,
    (("opted_out",), "true"): ("idx_customers_salon_opted_out",),
    (("opted_out",), "false"): ("idx_customers_salon_created",),
}
FILL = f"""
    INSERT INTO customers (salon_id, contact_name) SELECT 'salon-' || salon, 'Anna ' || number
        FROM generate_series(1, 2) AS salon, generate_series(1, {MANY}) AS number;
    INSERT INTO conversations (salon_id, conversation_id, phone_number, customer_name)
        SELECT salon_id, customer_id, '+' || 491510000000 + row_number() OVER (), '~' || md5(customer_id::text)
        FROM customers;
    ANALYZE; SET plan_cache_mode = force_generic_plan"""


def test_lists_of_a_large_salon_use_their_indexes(stack: Stack) -> None:
    with psycopg.connect(stack.database_url, autocommit=True) as conn:
        conn.execute(FILL.encode())
        for (filters, opted_out), indexes in PLANS.items():
            names = ("salon_id", *filters, "rows")
            conn.execute(f"PREPARE list AS {customers_statement(names, opted_out)}".encode())
            explain = f"EXPLAIN EXECUTE list ({', '.join(['NULL'] * len(names))})"
            plan = "\n".join(row for (row,) in conn.execute(explain.encode()))
            assert [index for index in indexes if f" {index} " not in plan] == [], plan
            conn.execute("DEALLOCATE list")
