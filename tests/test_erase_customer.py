"""messaging.EraseCustomer: no trace of a customer is left; counts and sums do not change."""

import asyncio
from typing import Any
from uuid import uuid4

import psycopg
import pytest
import redis

from parlor.messaging.v1 import messaging_pb2 as pb
from parlor.stats.v1 import stats_pb2
from tests.stack import PHONE, SALON, Fields, Stack, message_request, rows, salon, warm, webhook_body
from tests.test_conversations import put
from tests.test_ownership import TABLES
from tests.test_webhook import ingest, text

USER = "DE.1234567890"
NAME, TEXT, MEDIA, TITLE, TAG = "Zoë Hartmann", "meine Haare brennen", "media-77", "blocked by her", "allergic"
SECRETS = [PHONE[1:], USER, NAME, TEXT, MEDIA, TITLE, TAG, "wamid.mine"]
PERIOD: Fields = {"salon_id": SALON, "start_time": {"seconds": 0}, "end_time": {"seconds": 4_000_000_000}}
NOTHING = pb.EraseCustomerResponse()


async def customer(stack: Stack) -> str:
    """Fill every table with data of a customer; return the ID of their conversation."""
    await salon(stack, region_code="DE")
    cost: Fields = {"cost_micros": 7, "currency_code": "EUR"}
    for number, direction in enumerate((1, 2, 2)):
        request = message_request(f"wamid.mine.{number}", content=TEXT, direction=direction, **cost)
        request.request_id = str(uuid4())
        recorded = await stack.messaging.RecordMessage(request)
        status: Fields = {"salon_id": SALON, "whatsapp_id": request.whatsapp_id, "status": 4}
        await stack.messaging.RecordMessageStatus(pb.RecordMessageStatusRequest(**status))
    found = recorded.conversation_id
    put(stack, found, user_id=USER, customer_name=NAME, tags=[TAG], unread_count=1, service_window_expires_at="now")
    ai_message: Fields = {
        "salon_id": SALON,
        "conversation_id": found,
        "model": "m",
        "role": 3,
        "prompt_tokens": 5,
        **cost,
    }
    request_id = str(uuid4())
    await stack.messaging.RecordAiMessage(pb.RecordAiMessageRequest(**ai_message, content=TEXT, request_id=request_id))
    with psycopg.connect(stack.database_url, autocommit=True) as conn:
        conn.execute(
            "UPDATE messages SET media_id = %s, reply_to_whatsapp_id = 'wamid.mine.0', error_title = %s", [MEDIA, TITLE]
        )
        conn.execute("INSERT INTO raw_messages SELECT salon_id, message_id, to_json(content) FROM messages")
        for number, item in enumerate((f'{{"from": "{PHONE[1:]}"}}', f'{{"user_id": "{USER}"}}', "{}")):
            row = (SALON, bytes([number]), "OTHER", "x", item)
            conn.execute(
                "INSERT INTO webhook_failures (salon_id, digest, kind, reason, item) VALUES (%s, %s, %s, %s, %s)", row
            )
    return found


def left(stack: Stack) -> list[str]:
    """Return the rows of all tables that contain the customer."""
    dump = [str(row) for table in TABLES for row in rows(stack.database_url, f"SELECT t::text FROM {table} AS t")]
    replies = [bytes(reply) for (reply,) in rows(stack.database_url, "SELECT reply FROM messaging_requests")]
    return [
        secret
        for secret in SECRETS
        if any(secret in row for row in dump) or any(secret.encode() in reply for reply in replies)
    ]


def kept(redis_url: str) -> list[str]:
    """Return the cache entries that contain the customer."""
    with redis.Redis.from_url(redis_url) as client:
        names = client.keys("*")
        values = [client.get(name) or b"" for name in names]
    return [secret for secret in SECRETS if any(secret.encode() in text for text in (*names, *values))]


async def figures(stack: Stack) -> list[Any]:
    """Return the statistics, bypassing the cache."""
    past: Fields = {"metadata": (("cache-control", "no-cache"),)}
    replies: list[Any] = [
        await stack.stats.GetSalonStats(stats_pb2.GetSalonStatsRequest(**PERIOD), **past),
        await stack.stats.GetMessageDirectionStats(stats_pb2.GetMessageDirectionStatsRequest(**PERIOD), **past),
        await stack.stats.GetAiAnalytics(stats_pb2.GetAiAnalyticsRequest(**PERIOD), **past),
    ]
    for reply in replies:
        reply.ClearField("as_of")
    return replies


async def erase(stack: Stack, **fields: Any) -> pb.EraseCustomerResponse:
    """Erase a customer of the salon."""
    return await stack.messaging.EraseCustomer(pb.EraseCustomerRequest(**{"salon_id": SALON, **fields}))


async def read(stack: Stack) -> None:
    """Cache every reply that contains the customer."""
    named: Fields = {"salon_id": SALON, "phone_number": PHONE}
    conversation = await warm(stack.messaging.GetConversation, pb.GetConversationRequest(**named))
    await warm(stack.messaging.ListConversations, pb.ListConversationsRequest(salon_id=SALON))
    await warm(stack.messaging.ListMessages, pb.ListMessagesRequest(**named))
    await warm(stack.messaging.SearchMessages, pb.SearchMessagesRequest(salon_id=SALON, query="haare"))
    ai_message: Fields = {"salon_id": SALON, "conversation_id": conversation.conversation_id}
    await warm(stack.messaging.ListAiMessages, pb.ListAiMessagesRequest(**ai_message))


async def test_no_trace_of_an_erased_customer_is_left(stack: Stack, redis_url: str) -> None:
    found = await customer(stack)
    before = await figures(stack)
    await read(stack)
    assert left(stack) == SECRETS
    assert PHONE[1:] in kept(redis_url)
    assert await erase(stack, phone_number="0151 12345678") == pb.EraseCustomerResponse(
        conversations=1, messages=3, ai_messages=1
    )
    assert (left(stack), kept(redis_url)) == ([], [])
    assert await figures(stack) == before
    assert rows(stack.database_url, "SELECT count(*) FROM webhook_failures") == [(1,)]
    assert await erase(stack, phone_number=PHONE) == NOTHING
    named: Fields = {"salon_id": SALON, "conversation_id": found}
    conversation = await stack.messaging.GetConversation(pb.GetConversationRequest(**named))
    assert (conversation.status, conversation.unread_count) == (pb.CONVERSATION_STATUS_ARCHIVED, 0)
    assert [message.cost_micros for message in conversation.messages] == [7, 7, 7]
    assert not conversation.HasField("service_window_expires_time")


async def test_erasure_empties_stored_replies_of_request_ids(stack: Stack) -> None:
    await salon(stack)
    request = message_request(request_id=str(uuid4()))
    await stack.messaging.RecordMessage(request)
    used = str(uuid4())
    first = await erase(stack, phone_number=PHONE, request_id=used)
    assert first.messages == 1
    assert await erase(stack, phone_number=PHONE, request_id=used) == first
    assert await stack.messaging.RecordMessage(request) == pb.Message()


async def test_erasure_by_phone_number_or_user_id_covers_all_names_of_a_customer(stack: Stack) -> None:
    await salon(stack)
    numbers = [PHONE, "+4915100000001", "+4915100000002"]
    for number, names in enumerate(
        [
            {"phone_number": PHONE, "user_id": USER},
            {"phone_number": numbers[1], "user_id": USER},
            {"phone_number": numbers[2]},
            {"phone_number": "", "user_id": "DE.7"},
        ]
    ):
        await stack.messaging.RecordMessage(message_request(f"wamid.{number}", **names))
    assert await erase(stack, phone_number="+4915100000009", user_id="DE.9") == NOTHING
    assert await erase(stack, salon_id="salon-2", phone_number=PHONE) == NOTHING
    assert await erase(stack, phone_number=PHONE) == pb.EraseCustomerResponse(conversations=1, messages=2)
    assert await erase(stack, user_id=USER) == await erase(stack, phone_number=numbers[1]) == NOTHING
    assert (await erase(stack, phone_number=numbers[2], user_id="DE.7")).conversations == 2
    assert rows(stack.database_url, "SELECT (SELECT count(*) FROM customers), count(*) FROM customer_identities") == [
        (0, 0)
    ]


async def test_an_erased_customer_who_writes_again_gets_a_new_conversation(stack: Stack) -> None:
    found = await customer(stack)
    await erase(stack, user_id=USER)
    again = await stack.messaging.RecordMessage(message_request("wamid.again", content="again"))
    assert again.conversation_id != found
    conversation = await stack.messaging.GetConversation(pb.GetConversationRequest(salon_id=SALON, phone_number=PHONE))
    assert [message.content for message in conversation.messages] == ["again"]
    assert (await erase(stack, phone_number=PHONE)).messages == 1


@pytest.mark.patient
async def test_ai_messages_of_an_erased_customer_are_counted_without_text(stack: Stack) -> None:
    await salon(stack)
    for turn in range(8):
        message = await stack.messaging.RecordMessage(message_request(f"wamid.{turn}"))
        ai_message: Fields = {"salon_id": SALON, "conversation_id": message.conversation_id, "model": "m", "role": 3}
        requests = [pb.RecordAiMessageRequest(**ai_message, content=TEXT, prompt_tokens=5) for _ in range(12)]
        work: list[Any] = [stack.messaging.RecordAiMessage(request) for request in requests]
        work[6:6] = [erase(stack, phone_number=PHONE)]
        await asyncio.gather(*work)
    query = "SELECT count(*), sum(prompt_tokens), count(nullif(content, '')) FROM ai_messages"
    assert rows(stack.database_url, query) == [(96, 480, 0)]


@pytest.mark.patient
async def test_no_message_can_be_added_to_an_erased_conversation(stack: Stack) -> None:
    await salon(stack)
    await stack.messaging.RecordMessage(message_request())
    for turn in range(8):
        messages = [message_request(f"wamid.{turn}.{number}", content=TEXT) for number in range(12)]
        work: list[Any] = [stack.messaging.RecordMessage(request) for request in messages]
        work[4:4] = [erase(stack, phone_number=PHONE)]
        work[9:9] = [erase(stack, phone_number=PHONE)]
        await asyncio.gather(*work)
        query = """
            SELECT count(*) FROM conversations AS c JOIN messages AS m USING (salon_id, conversation_id)
            WHERE c.phone_number IS NULL AND num_nonnulls(m.phone_number, m.whatsapp_id, nullif(m.content, '')) > 0"""
        assert rows(stack.database_url, query) == [(0,)]
    await erase(stack, phone_number=PHONE)
    assert rows(stack.database_url, "SELECT count(*), count(phone_number) FROM messages") == [(97, 0)]
    assert len(rows(stack.database_url, "SELECT FROM conversations")) > 1


async def test_a_customer_whose_number_has_an_erased_one_as_prefix_is_not_erased(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    requests = []
    for phone in (PHONE[:8], PHONE):
        request = message_request(f"wamid.{phone}", phone_number=phone, user_id=f"DE.{phone[1:]}")
        request.request_id = str(uuid4())
        requests.append((request, await stack.messaging.RecordMessage(request)))
        for sender in ({"from": phone[1:]}, {"from": None, "from_user_id": f"DE.{phone[1:]}"}):
            assert await ingest(stack, webhook_body("1", messages=[text(id=None, **sender)])) == {"rejected": 1}
    assert (await erase(stack, phone_number=PHONE[:8])).messages == 1
    assert await stack.messaging.RecordMessage(requests[0][0]) == pb.Message()
    assert await stack.messaging.RecordMessage(requests[1][0]) == requests[1][1]
    items = rows(stack.database_url, "SELECT item FROM webhook_failures")
    assert len(items) == 2
    assert all(PHONE[1:] in item for (item,) in items)


async def test_erasure_empties_stored_replies_of_early_statuses(stack: Stack) -> None:
    await salon(stack)
    replies = []
    for name in ("wamid.mine", "wamid.other"):
        status: Fields = {"salon_id": SALON, "whatsapp_id": name, "status": 4, "request_id": str(uuid4())}
        request = pb.RecordMessageStatusRequest(**status)
        replies.append((request, await stack.messaging.RecordMessageStatus(request)))
    await stack.messaging.RecordMessage(message_request("wamid.mine", direction=2, type=14))
    await erase(stack, phone_number=PHONE)
    assert await stack.messaging.RecordMessageStatus(replies[0][0]) == pb.Message()
    assert await stack.messaging.RecordMessageStatus(replies[1][0]) == replies[1][1]
    assert rows(stack.database_url, "SELECT whatsapp_id FROM message_status_events") == [("wamid.other",)]


async def test_a_number_stored_with_its_trunk_prefix_is_erased(stack: Stack) -> None:
    """Releases up to 0.3 stored +490151... as it was written."""
    await salon(stack)
    found = (await stack.messaging.RecordMessage(message_request())).conversation_id
    put(stack, found, phone_number="+49015112345678")
    assert rows(stack.database_url, "UPDATE messages SET phone_number = '+49015112345678' RETURNING 1")
    erased = await stack.messaging.EraseCustomer(pb.EraseCustomerRequest(salon_id=SALON, phone_number=PHONE))
    assert (erased.conversations, erased.messages) == (1, 1)
    assert rows(stack.database_url, "SELECT phone_number FROM conversations") == [(None,)]
    assert rows(stack.database_url, "SELECT phone_number FROM messages") == [(None,)]
