"""System messages that a customer has another number or user ID: one customer, one conversation, in any order."""

from __future__ import annotations

import asyncio
from itertools import permutations
from typing import Any

import pytest

from parlor.messaging.v1 import messaging_pb2 as pb
from tests import kinds
from tests.stack import SALON, Fields, Stack, rows, salon, webhook_body
from tests.test_customers import conversation, customer, ids
from tests.test_webhook import ingest, text

OLD, NEW, OTHER = "4915100000001", "4915100000002", "4915100000003"
USER, USER_2, USER_3 = "DE.1", "DE.2", "DE.3"
WROTE = "wamid.old"


def wrote(name: str, second: int, number: str | None, user: str | None = None) -> bytes:
    """Return a body with a message of a number, a user ID or both."""
    sender: Fields = {"from": number, "from_user_id": user}
    return webhook_body("1", messages=[text(name, **sender, timestamp=str(second))])


def changed(kind: str, second: int, number: str | None, user: str | None = None, **notice: Any) -> bytes:
    """Return a body with a system message in the name that the customer had."""
    sender: Fields = {"from": number, "from_user_id": user}
    message = kinds.system("wamid.changed", second, f"user_changed_{kind}", **notice) | sender
    return webhook_body("1", messages=[{name: value for name, value in message.items() if value is not None}])


# What each change is, the bodies in the order of their times, and the numbers and user IDs that the customer has then.
CHANGES: dict[str, tuple[list[bytes], list[str], list[str]]] = {
    "number": (
        [wrote("old", 1, OLD), changed("number", 2, OLD, wa_id=NEW), wrote("new", 3, NEW)],
        [f"+{NEW}", f"+{OLD}"],
        [],
    ),
    "number, as older bodies say it": (
        [wrote("old", 1, OLD), changed("number", 2, OLD, new_wa_id=NEW), wrote("new", 3, NEW)],
        [f"+{NEW}", f"+{OLD}"],
        [],
    ),
    "number of a customer with a user ID": (
        [wrote("old", 1, OLD, USER), changed("number", 2, OLD, wa_id=NEW, user_id=USER), wrote("new", 3, NEW, USER)],
        [f"+{NEW}", f"+{OLD}"],
        [USER],
    ),
    "number and user ID": (
        [
            wrote("old", 1, OLD, USER),
            changed("number", 2, OLD, USER, wa_id=NEW, user_id=USER_2),
            wrote("new", 3, None, USER_2),
        ],
        [f"+{NEW}", f"+{OLD}"],
        [USER_2, USER],
    ),
    "user ID": (
        [
            wrote("old", 1, None, USER),
            changed("user_id", 2, None, USER_2, user_id=USER_2, previous_user_id=USER),
            wrote("new", 3, None, USER_2),
        ],
        [],
        [USER_2, USER],
    ),
    "user ID of a customer with a number": (
        [
            wrote("old", 1, OLD, USER),
            changed("user_id", 2, OLD, user_id=USER_2, previous_user_id=USER),
            wrote("new", 3, OLD, USER_2),
        ],
        [f"+{OLD}"],
        [USER_2, USER],
    ),
}


async def assert_one(stack: Stack, numbers: list[str], users: list[str], messages: int = 3) -> None:
    """Check that there is one customer with these identities, whom each of them finds with all messages."""
    names: list[Fields] = [{"phone_number": number} for number in numbers] + [{"user_id": user} for user in users]
    for name in names:
        found = await customer(stack, **name)
        assert (list(found.phone_numbers), list(found.user_ids)) == (numbers, users)
        assert len(ids(await conversation(stack, **name))) == messages
    assert len((await stack.messaging.ListCustomers(pb.ListCustomersRequest(salon_id=SALON))).customers) == 1


@pytest.mark.parametrize("order", list(permutations(range(3))))
@pytest.mark.parametrize("change", CHANGES)
async def test_a_change_makes_one_customer_in_any_order(stack: Stack, change: str, order: Any) -> None:
    bodies, numbers, users = CHANGES[change]
    await salon(stack, phone_number_id="1")
    for place in order:
        assert await ingest(stack, bodies[place]) == {"messages": 1}
    await assert_one(stack, numbers, users)
    for body in bodies:
        assert await ingest(stack, body) == {"duplicates": 1}
    await assert_one(stack, numbers, users)


@pytest.mark.patient
@pytest.mark.parametrize("change", CHANGES)
async def test_a_change_among_concurrent_bodies_makes_one_customer(stack: Stack, change: str) -> None:
    bodies, numbers, users = CHANGES[change]
    await salon(stack, phone_number_id="1")
    await asyncio.gather(*(ingest(stack, body) for body in bodies * 3))
    await assert_one(stack, numbers, users)


async def test_the_old_number_of_a_customer_may_pass_to_another_one(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    for body in (wrote("1", 1, OLD, USER), changed("number", 2, OLD, USER, wa_id=NEW), wrote("2", 3, OLD, USER_2)):
        await ingest(stack, body)
    assert ids(await conversation(stack, phone_number=f"+{NEW}")) == ["wamid.1", "wamid.changed"]
    assert ids(await conversation(stack, phone_number=f"+{OLD}")) == ["wamid.2"]
    assert (await customer(stack, user_id=USER)).phone_numbers == [f"+{NEW}"]
    assert (await customer(stack, user_id=USER_2)).phone_numbers == [f"+{OLD}"]


async def test_a_change_to_a_number_of_somebody_else_takes_it_and_merges_nobody(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    for body in (wrote("1", 1, OLD, USER), wrote("2", 2, NEW, USER_2), changed("number", 3, OLD, USER, wa_id=NEW)):
        await ingest(stack, body)
    assert (await customer(stack, user_id=USER)).phone_numbers == [f"+{NEW}", f"+{OLD}"]
    assert (await customer(stack, user_id=USER_2)).phone_numbers == []
    assert ids(await conversation(stack, user_id=USER_2)) == ["wamid.2"]


async def test_changes_one_after_another_end_at_one_customer(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    second = changed("number", 4, NEW, wa_id=OTHER).replace(b"wamid.changed", b"wamid.again")
    bodies = [
        wrote("1", 1, OLD),
        changed("number", 2, OLD, wa_id=NEW),
        wrote("2", 3, NEW),
        second,
        wrote("3", 5, OTHER),
    ]
    for body in reversed(bodies):
        await ingest(stack, body)
    await assert_one(stack, [f"+{OTHER}", f"+{NEW}", f"+{OLD}"], [], 5)
    assert rows(stack.database_url, "SELECT count(*) FROM conversations") == [(1,)]
