"""Full-text search of messages."""

import asyncio
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from parlor.messaging.v1 import messaging_pb2 as pb
from services.messaging import search
from services.messaging.search_backfill_queries import backfill
from tests.load import until, waiting_for_a_lock
from tests.locks import holding
from tests.stack import PHONE, SALON, Fields, Stack, failure, fresh, message_request, rows, salon, walk, warm

LANGUAGES = {
    "de": ["Könnte ich meinen Termin verschieben?", "Was kosten Strähnen mit Föhnen?", "Danke, bis dann!"],
    "pt": ["Tem horário para sexta?", "Preciso remarcar, pode ser?", "Quanto fica corte e escova?"],
    "es": ["Quería cambiar mi cita, por favor.", "¿Cuánto cuesta el tinte mañana?", "Su peluquería está confirmada"],
    "en": ["Can I move my appointments to Friday?", "How much is a cut and colour?", "Thanks, see you then!"],
    "": ["Könnte ich meinen Termin verschieben?", "Hacemos tintes", "Thanks"],
}
HOSTILE = ["'", '"', "(", ")", ":*", "!", "&", "|", "<->", "%", "%s", "\\", "\\'", "-", "--", "a:*b", '"""', "x" * 200]
HOSTILE += [" ", "💇", "💇" * 200, "der", "a b c d e f g " * 14, "http://x.y/z?a=1&b=%00", "<b>", "or or or", "T"]


async def record_texts(stack: Stack, texts: list[str], language: str = "", **fields: Any) -> None:
    """Record messages in a language, one per second."""
    await salon(stack)
    for second, text in enumerate(texts):
        sent = {"send_time": Timestamp(seconds=1000 + second), "content": text, **fields}
        await stack.messaging.RecordMessage(message_request(f"wamid.{language}.{second}", **sent))
    with psycopg.connect(stack.database_url, autocommit=True) as conn:
        conn.execute("UPDATE messages SET language = %s", [language])


def asked(query: str, **fields: Any) -> pb.SearchMessagesRequest:
    """Return a search request."""
    return pb.SearchMessagesRequest(**{"salon_id": SALON, "query": query, **fields})


async def found(stack: Stack, query: str, **fields: Any) -> list[str]:
    """Return the texts that a query finds."""
    return [message.content for message in (await stack.messaging.SearchMessages(asked(query, **fields))).messages]


@pytest.mark.parametrize(
    ("language", "queries"),
    [
        ("de", {"termine": 0, "Strähne": 1, "strahnen": 1, "FÖHN": 1, "Termni": 0, "Temrin": 0, "Strahnne": 1}),
        ("pt", {"horário": 0, "HORARIOS": 0, "remarca": 1, "escovas": 2, "hroario": 0, "remracar": 1}),
        ("es", {"citas": 0, "manana": 1, "peluqueria": 2, "confirmado": 2, "pelqueria": 2}),
        ("en", {"appointment": 0, "moving": 0, "colours": 1, "apointment": 0, "colorr": 1}),
        ("", {"termin": 0, "konnte": 0, "tintes": 1, "tinte": 1, "verschoben": 0}),
    ],
)
async def test_inflected_words_are_found_by_the_rules_of_the_language(
    stack: Stack, language: str, queries: dict[str, int]
) -> None:
    await record_texts(stack, LANGUAGES[language], language)
    for query, place in queries.items():
        assert await found(stack, query) == [LANGUAGES[language][place]], query


async def test_messages_before_a_change_of_language_keep_their_language(stack: Stack) -> None:
    await record_texts(stack, ["Meine Termine", "Strähnen"], "de")
    await stack.messaging.RecordMessage(message_request("wamid.new", content="termin"))
    assert await found(stack, "termin") == ["termin", "Meine Termine"]
    [message] = (await stack.messaging.SearchMessages(asked("strahn"))).messages
    assert message.snippet == "<b>Strähnen</b>"


async def test_a_query_has_the_syntax_of_a_web_search(stack: Stack) -> None:
    texts = ["Ihr Termin ist am Samstag", "Samstag oder Sonntag", "Am Termin ist Sonntag geschlossen"]
    await record_texts(stack, texts)
    first, second, third = texts
    for query, expected in {
        "termin sonntag": [third],
        '"termin ist"': [third, first],
        '"ist termin"': [third, first],  # no message has the phrase, so similar words count
        "geschlossen or oder": [third, second],
        "samstag -termin": [second],
        "termin -geschlossen": [first],
    }.items():
        assert await found(stack, query) == expected, query


async def test_results_are_sorted_by_relevance_then_by_time(stack: Stack) -> None:
    texts = ["ein termin", "rot", "termin um termin", "termin weit weg von allem was rot ist", "termin rot", "termin"]
    await record_texts(stack, texts)
    assert await found(stack, "termin") == [texts[2], texts[5], texts[4], texts[3], texts[0]]
    assert await found(stack, "termin rot") == [texts[4], texts[3]]
    assert (await found(stack, "rot or termin"))[0] == texts[4]


@pytest.mark.parametrize(
    ("text", "query", "snippet"),
    [
        (
            "Mein Termin & <b>dein</b> Termin",
            "termin",
            "Mein <b>Termin</b> &amp; &lt;b&gt;dein&lt;/b&gt; <b>Termin</b>",
        ),
        ("<script>alert(1)</script> Termin", "termin", "&lt;script&gt;alert(1)&lt;/script&gt; <b>Termin</b>"),
        ("a<b Termin c>d &lt;b&gt;", "termin", "a&lt;b <b>Termin</b> c&gt;d &amp;lt;b&amp;gt;"),
        ("Ihr Termin", "Termni", "Ihr <b>Termin</b>"),
        ("1 < Termin > 2", "termin", "1 &lt; <b>Termin</b> &gt; 2"),
        ("Grüße von Zoë", "zoe", "Grüße von <b>Zoë</b>"),
    ],
)
async def test_a_snippet_is_html_with_matches_in_bold(stack: Stack, text: str, query: str, snippet: str) -> None:
    await record_texts(stack, [text])
    [message] = (await stack.messaging.SearchMessages(asked(query))).messages
    assert (message.content, message.snippet) == (text, snippet)


async def test_a_snippet_of_a_long_text_is_an_excerpt(stack: Stack) -> None:
    await record_texts(stack, ["vor " * 5000 + "Termin" + " nach" * 5000])
    [message] = (await stack.messaging.SearchMessages(asked("termin"))).messages
    assert "<b>Termin</b>" in message.snippet
    assert len(message.snippet) < 500
    assert (await stack.messaging.ListMessages(pb.ListMessagesRequest(salon_id=SALON))).messages[0].snippet == ""


@pytest.mark.parametrize("query", ["termin", "Termni"])
async def test_pages_of_results_have_every_message_once(stack: Stack, query: str) -> None:
    texts = [f"termin {'termin ' * (number % 3)}{number}" for number in range(23)] + ["other"]
    await record_texts(stack, texts)
    with psycopg.connect(stack.database_url, autocommit=True) as conn:
        conn.execute("UPDATE messages SET created_at = date_trunc('minute', created_at)")
    everything = (await stack.messaging.SearchMessages(asked(query))).messages
    assert sorted(message.content for message in everything) == sorted(texts[:-1])
    assert [message.content.count("termin") for message in everything] == [3] * 7 + [2] * 8 + [1] * 8
    for page_size in (1, 4, 23):
        assert await walk(stack.messaging.SearchMessages, asked(query), page_size) == list(everything)


async def test_a_page_token_is_valid_only_for_its_query_and_salon(stack: Stack) -> None:
    await record_texts(stack, ["termin", "termin"])
    token = (await stack.messaging.SearchMessages(asked("termin", page_size=1))).next_page_token
    others: list[Fields] = [{"query": "termine"}, {"salon_id": "salon-2"}]
    for other in others:
        request = asked(**{"query": "termin", "page_token": token, **other})
        assert (await failure(stack.messaging.SearchMessages(request))).fields == ["page_token"]


async def test_a_page_of_large_messages_ends_sooner(stack: Stack) -> None:
    await record_texts(stack, ["💇" * 60_000 + f" termin {number}" for number in range(15)])
    first = await stack.messaging.SearchMessages(asked("termin"))
    second = await stack.messaging.SearchMessages(asked("termin", page_token=first.next_page_token))
    assert len(first.messages) > 5
    assert len({message.message_id for message in (*first.messages, *second.messages)}) == 15


async def test_a_new_message_is_in_the_next_reply(stack: Stack) -> None:
    await record_texts(stack, ["termin"])
    assert len((await warm(stack.messaging.SearchMessages, asked("termin"))).messages) == 1
    nothing = asked("samstag")
    assert not (await warm(stack.messaging.SearchMessages, nothing)).messages
    await stack.messaging.RecordMessage(message_request("wamid.new", content="Termin am Samstag"))
    assert len((await fresh(stack.messaging.SearchMessages, asked("termin"))).messages) == 2
    assert len((await fresh(stack.messaging.SearchMessages, nothing)).messages) == 1


async def test_messages_of_other_salons_are_not_found(stack: Stack) -> None:
    await salon(stack, "salon-2")
    await record_texts(stack, ["termin"])
    assert await found(stack, "termin", salon_id="salon-2") == []
    assert await found(stack, "Termni", salon_id="salon-2") == []
    assert await found(stack, "termin", salon_id="nowhere") == []


async def test_no_query_text_is_an_error(stack: Stack) -> None:
    await record_texts(stack, ["Ein 'Termin' \\ um 10:30 % 💇", "\\'it''s \\ o'clock\\"], "de")
    for query in HOSTILE:
        await stack.messaging.SearchMessages(asked(query))
    for query in ("-T", "!-T", "-'", '-"'):
        with suppress(grpc.aio.AioRpcError):
            await stack.messaging.SearchMessages(asked(query))
    for query in ("", "a\0b", "x" * 201):
        assert (await failure(stack.messaging.SearchMessages(asked(query)))).fields == ["query"]


@pytest.mark.parametrize("query", ["-a -b", "-termin", '-"am samstag"', "termin or -samstag", "-a or -b", "--samstag"])
async def test_a_query_needs_a_word_that_is_not_excluded(stack: Stack, query: str) -> None:
    await record_texts(stack, ["Ihr Termin ist am Samstag", "Sonntag"], "de")
    for page_size in (0, 1):
        error = await failure(stack.messaging.SearchMessages(asked(query, page_size=page_size)))
        assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
        assert error.fields == ["query"]
        assert "word to look for" in error.message


@pytest.mark.parametrize("query", ["termin -sonntag", "-sonntag termin", '"am samstag" -sonntag', "samstag or termin"])
async def test_a_query_with_a_word_may_exclude_others(stack: Stack, query: str) -> None:
    await record_texts(stack, ["Ihr Termin ist am Samstag", "Termin am Sonntag"], "de")
    assert "Ihr Termin ist am Samstag" in await found(stack, query)


async def test_stop_words_count_in_a_query_that_only_excludes_other_words(stack: Stack) -> None:
    await record_texts(stack, ["die und das", "Das ist am Samstag die Frage", "Das Haus"], "de")
    assert await found(stack, "-samstag die das") == ["die und das"]


# Texts in a language, and queries with the places of the texts that they find.
WORDS = json.loads((Path(__file__).parent / "data/search_words.json").read_text())


@pytest.mark.parametrize("code", WORDS)
async def test_words_of_each_language_are_found(stack: Stack, code: str) -> None:
    texts = WORDS[code]["texts"]
    await record_texts(stack, texts, code[:2])
    for query, places in WORDS[code]["queries"].items():
        reply = await stack.messaging.SearchMessages(asked(query))
        exact = {message.content for message in reply.messages if not message.similar}
        assert exact == {texts[place] for place in places}, query


async def test_a_hit_by_similar_words_says_so(stack: Stack) -> None:
    await record_texts(stack, ["Ihr Termin", "Samstag", "明日の予約をお願いします"])
    for query, similar in (("termin", False), ("temrin", True), ("samstagg", True), ("予約", False), ("予約表", True)):
        [message] = (await stack.messaging.SearchMessages(asked(query))).messages
        assert message.similar == similar, query


@pytest.mark.parametrize(
    ("text", "query", "snippet"),
    [
        ("明日の予約をお願いします", "予約", "明日の<b>予約</b>をお願いします"),
        ("<b>予約</b> & 予約する", "予約", "&lt;b&gt;<b>予約</b>&lt;/b&gt; &amp; <b>予約</b>する"),
        ("明日の予約をお願いします", "予約表", "明日の<b>予約</b>をお願いします"),
        ("ขอจองคิวทำผม", "จอง", "ขอ<b>จอง</b>คิวทำผม"),
        ("LINEで予約", "line 予約", "<b>LINE</b>で<b>予約</b>"),
        ("OnlineのLINE2とLINE予約", "line 予約", "OnlineのLINE2と<b>LINE予約</b>"),
        ("3時と13時と3月", "3 時", "<b>3時</b>と13<b>時</b>と<b>3</b>月"),
        ("あ" * 500 + "予約" + "い" * 500, "予約", "あ" * 60 + "<b>予約</b>" + "い" * 118),
    ],
)
async def test_a_snippet_without_spaces_has_matches_in_bold(stack: Stack, text: str, query: str, snippet: str) -> None:
    await record_texts(stack, [text])
    [message] = (await stack.messaging.SearchMessages(asked(query))).messages
    assert message.snippet == snippet


async def test_pages_lead_through_blocks_of_matches(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "CANDIDATES", 4)
    texts = [f"termin {'termin ' * (number % 3)}{number}" for number in range(11)]
    await record_texts(stack, texts)
    with psycopg.connect(stack.database_url, autocommit=True) as conn:
        conn.execute("UPDATE messages SET created_at = created_at + interval '5 years' WHERE content > 'termin 5'")
    for query, page_size in (("termin", 3), ("termin", 200), ("termni", 1)):
        request, found = asked(query, page_size=page_size), []
        while True:
            reply = await stack.messaging.SearchMessages(request)
            found += list(reply.messages)
            if not reply.next_page_token:
                break
            request.page_token = reply.next_page_token
        assert sorted(message.content for message in found) == sorted(texts)
        newest = sorted(found, key=lambda message: (message.create_time.seconds, message.message_id), reverse=True)
        for first in range(0, 11, 4):
            assert {one.message_id for one in found[first : first + 4]} == {
                one.message_id for one in newest[first : first + 4]
            }


async def test_similar_words_are_those_of_texts_that_are_still_there(stack: Stack) -> None:
    await record_texts(stack, ["Ihr Termin"])
    assert await found(stack, "temrin") == ["Ihr Termin"]
    erase = pb.EraseCustomerRequest(salon_id=SALON, phone_number=PHONE)
    await stack.messaging.EraseCustomer(erase)
    assert await found(stack, "temrin") == []
    assert rows(stack.database_url, "SELECT word FROM message_words") == []


async def test_messages_of_before_are_found_once_their_words_are_made(stack: Stack) -> None:
    texts = ["明日の予約をお願いします", "Waschen und schneiden", *(f"Termin {number}" for number in range(3))]
    with psycopg.connect(stack.database_url, autocommit=True) as conn:
        define = "CREATE OR REPLACE FUNCTION message_vector(language text, content text) RETURNS tsvector LANGUAGE sql"
        [present] = conn.execute("SELECT pg_get_functiondef('message_vector'::regproc)").fetchone() or [""]
        conn.execute(f"{define} IMMUTABLE RETURN to_tsvector('messages_de', content)".encode())
        conn.execute("ALTER TABLE messages DISABLE TRIGGER messages_words")
        await record_texts(stack, texts)
        conn.execute("UPDATE messages SET language = 'de'")
        conn.execute("DELETE FROM message_words")
        conn.execute(present.encode())
        conn.execute("INSERT INTO search_backfill VALUES ('', '00000000-0000-0000-0000-000000000000')")
    for query in ("予約", "und", "temrin"):
        assert not (await warm(stack.messaging.SearchMessages, asked(query))).messages
    messaging = stack.servers["messaging"]
    changes = rows(stack.database_url, "SELECT count(*) FROM message_changes")
    await backfill(messaging.cache, messaging.database)
    assert rows(stack.database_url, "SELECT count(*) FROM message_changes") == changes
    for query, expected in (("予約", texts[:1]), ("und", texts[1:2]), ("temrin", texts[:1:-1])):
        reply = await fresh(stack.messaging.SearchMessages, asked(query))
        assert [message.content for message in reply.messages] == expected
    assert rows(stack.database_url, "SELECT FROM search_backfill") == []


async def test_searches_wait_only_for_others_of_their_salon(stack: Stack) -> None:
    """Two searches of a salon have connections; its others wait, those of other salons do not."""
    await record_texts(stack, ["termin"])
    await salon(stack, "salon-2")
    await stack.messaging.RecordMessage(message_request("wamid.2", salon_id="salon-2"))
    async with holding(stack.database_url, "LOCK TABLE message_words"):  # searches for similar words read it
        searches = [asyncio.ensure_future(found(stack, f"temrin or qqq{n}")) for n in range(32)]
        await until(lambda: waiting_for_a_lock(stack.database_url, 2))
        for _ in range(20):
            listed = pb.ListConversationsRequest(salon_id="salon-2", page_size=7)
            await stack.messaging.ListConversations(listed, metadata=(("cache-control", "no-cache"),), timeout=2)
        assert await waiting_for_a_lock(stack.database_url, 2)
    ends = await asyncio.gather(*searches, return_exceptions=True)
    assert ends.count(["termin"]) > 20  # the others may have exceeded the lock timeout
