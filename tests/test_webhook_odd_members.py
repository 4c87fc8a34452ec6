"""Every sample body, with each of its members replaced by an odd value: none fails, and what they left can be read."""

import json
import re
from collections.abc import Iterator
from typing import Any

import grpc
import psycopg
import pytest

from parlor.messaging.v1 import messaging_pb2 as pb
from tests.kinds import message
from tests.stack import SALON, Stack, rows, salon, walk, webhook_body
from tests.test_webhook import ingest, status, text
from tests.whatsapp import CASES, PHONE_NUMBER_ID, payload

SECOND = 1_749_416_383
# Each with its JSON, if Python can't write it.
NUMBERS: list[tuple[Any, str]] = [
    *(("HUGE", "1e999999"), ("SMALL", "1e-999999"), ("NOT_A_NUMBER", "NaN"), ("INFINITE", "-Infinity")),
    *((value, "") for value in ("1e999999", "-1e999999", "NaN", "sNaN", "Infinity", "-1", "x", "9" * 400)),
    *((-1, ""), (-(2**63), ""), (2**31, ""), (2**64, ""), (10**300, ""), (0, ""), (0.5, ""), (-1.5, "")),
    *((True, ""), (None, ""), ([], ""), ({}, "")),
]
TEXTS = {"NUL": "\0", "half a surrogate pair": "\ud800", "NUL in a text": "a\0b", "too long": "x" * 65_537}
_NUMERIC = re.compile("[0-9.]{1,10}")  # a time or a price; longer ones are phone numbers and IDs


def spoilt(value: Any, odd: Any, *, numbers: bool) -> Iterator[Any]:
    """Yield copies of a JSON value, each with another member replaced; `numbers`: only numbers, also those in texts."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield from ({**value, name: one} for one in spoilt(part, odd, numbers=numbers))
    elif isinstance(value, list):
        for place, part in enumerate(value):
            yield from ([*value[:place], one, *value[place + 1 :]] for one in spoilt(part, odd, numbers=numbers))
    elif isinstance(value, str) and (not numbers or _NUMERIC.fullmatch(value)):
        yield odd
    elif isinstance(value, int | float) and numbers:
        yield odd


def spoilt_bodies(odd: Any, raw: str = "", *, numbers: bool = False) -> Iterator[tuple[str, bytes]]:
    """Yield each sample with the entries of all its spoilt copies, whose messages have different IDs."""
    for name in CASES:
        entries = json.loads(payload(name))["entry"]
        copies = [
            json.loads(re.sub(r"\b(wamid|wacid)\.", rf"\1.{place}.", json.dumps(copy)))
            for place, copy in enumerate(spoilt(entries, odd, numbers=numbers))
        ]
        body = json.dumps({"entry": [entry for copy in copies for entry in copy]}).encode()
        yield name, body.replace(f'"{odd}"'.encode(), raw.encode()) if raw else body


async def assert_answered(stack: Stack, bodies: Iterator[tuple[str, bytes]]) -> None:
    """Ingest bodies, and read what they left."""
    for name, body in bodies:
        try:
            await ingest(stack, body)
        except grpc.aio.AioRpcError as error:
            raise AssertionError(f"{name}: {error.code()} {error.details()}") from error
    assert rows(stack.database_url, "SELECT kind, item FROM webhook_failures WHERE reason ~ 'database'") == []
    messaging = stack.messaging
    request = pb.ListMessagesRequest(salon_id=SALON, page_size=200)
    types: set[int] = set()
    while not types or request.page_token:  # pages of large messages have fewer of them
        listed = await messaging.ListMessages(request)
        types |= {one.type for one in listed.messages}
        request.page_token = listed.next_page_token
    assert len(types) >= 10
    assert (
        len(await walk(messaging.ListConversations, pb.ListConversationsRequest(salon_id=SALON), 200)) >= 8
    )  # of 7 customers and a group
    assert len(await walk(messaging.ListCustomers, pb.ListCustomersRequest(salon_id=SALON), 200)) >= 7
    assert (await messaging.ListWebhookFailures(pb.ListWebhookFailuresRequest(salon_id=SALON))).webhook_failures


@pytest.mark.parametrize("odd", TEXTS.values(), ids=TEXTS)
async def test_no_text_in_any_place_fails_a_body(stack: Stack, odd: str) -> None:
    await salon(stack, phone_number_id=PHONE_NUMBER_ID)
    await assert_answered(stack, spoilt_bodies(odd))


async def test_no_number_in_any_place_fails_a_body(stack: Stack) -> None:
    await salon(stack, phone_number_id=PHONE_NUMBER_ID)
    bodies = (body for odd, raw in NUMBERS for body in spoilt_bodies(odd, raw, numbers=True))
    await assert_answered(stack, bodies)


@pytest.mark.parametrize("price", ["1e999999", "-1e999999", "1e-999999", "NaN", "sNaN", "Infinity", "9" * 5_000, True])
async def test_a_price_that_is_not_a_price_is_left_out(stack: Stack, price: Any) -> None:
    await salon(stack, phone_number_id="1")
    product = {"product_retailer_id": "wax", "quantity": True, "item_price": price, "currency": "EUR"}
    order = message("wamid.1", "order", SECOND, {"catalog_id": "1", "product_items": [product]})
    prices: list[Any] = [{"amount": price}, {"amount": {"value": 1, "offset": price}}, {"amount_micros": price}]
    statuses = [status(place, pricing={"currency": "EUR", **fields}) for place, fields in enumerate(prices, 10)]
    assert await ingest(stack, webhook_body("1", messages=[order, text(2)], statuses=statuses)) == {
        "messages": 2,
        "statuses": 3,
    }
    found = await stack.messaging.GetMessage(pb.GetMessageRequest(salon_id=SALON, whatsapp_id="wamid.1"))
    assert list(found.order.items) == [pb.OrderItem(product_retailer_id="wax")]
    assert rows(stack.database_url, "SELECT DISTINCT cost_micros, currency_code FROM message_status_events") == [
        (None, None)
    ]


def execute(stack: Stack, query: str) -> None:
    """Run a statement as the owner of the database."""
    with psycopg.connect(stack.database_url, autocommit=True) as conn:
        conn.execute(query.encode())


REFUSE = """
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION 'refused' USING ERRCODE = '{code}';
    END $$;
    CREATE TRIGGER refuse BEFORE INSERT ON {table} FOR EACH ROW
    WHEN (NEW.whatsapp_id LIKE 'wamid.refused%') EXECUTE FUNCTION refuse()"""
REFUSED = [("22P05", "messages"), ("54000", "messages"), ("22P05", "message_status_events")]


@pytest.mark.parametrize(("code", "table"), REFUSED)
async def test_an_item_that_the_database_refuses_is_kept_and_loses_no_neighbor(
    stack: Stack, code: str, table: str
) -> None:
    """A net for what the checks of an item have not foreseen; a trigger refuses here."""
    await salon(stack, phone_number_id="1")
    execute(stack, REFUSE.format(code=code, table=table))
    body = webhook_body(
        "1",
        messages=[text(1), text("refused.1"), text(2), {}],
        statuses=[status(8), {**status(), "id": "wamid.refused.2"}, status(9)],
    )
    of_messages = table == "messages"
    counts = {"messages": 2 if of_messages else 3, "statuses": 3 if of_messages else 2, "rejected": 2}
    assert await ingest(stack, body) == counts
    assert await ingest(stack, body) == {"duplicates": 7}
    kept = "SELECT kind, reason FROM webhook_failures WHERE item ~ 'refused'"
    kind = "MESSAGE" if of_messages else "STATUS"
    assert rows(stack.database_url, kept) == [(kind, "the database can't store it")]
    replay = pb.ReplayWebhookFailuresRequest(salon_id=SALON)
    assert (await stack.messaging.ReplayWebhookFailures(replay)).failures == 2
    execute(stack, f"DROP TRIGGER refuse ON {table}")
    replayed = await stack.messaging.ReplayWebhookFailures(replay)
    assert (replayed.messages, replayed.statuses, replayed.failures) == (of_messages, not of_messages, 1)
