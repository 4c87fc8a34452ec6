"""A salon with 1 million messages of a year in 50,000 conversations: German, some Japanese, Chinese and Thai."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from random import Random
from uuid import UUID

import psycopg

from ops.vocabulary import REGIONS, SURNAMES

SALON = "salon-large"
MESSAGES, CONVERSATIONS = 1_000_000, 50_000
END = datetime.now(UTC)
STEP = timedelta(days=365) / MESSAGES
LATEST = 500  # messages that are added to the complete index, as a service adds them
WORDS = 30_000  # with frequencies by Zipf's law
SPACELESS = {
    "ja": (
        "明日の",
        "予約を",
        "お願いします",
        "カットと",
        "カラーは",
        "いくらですか",
        "変更",
        "できますか",
        "髪を",
        "切りたい",
    ),
    "zh": ("我想", "预约", "明天下午", "剪头发", "可以", "取消吗", "谢谢", "染发", "多少钱", "三点"),
    "th": ("ขอ", "จอง", "คิว", "ทำผม", "พรุ่งนี้", "ราคา", "ตัดผม", "เท่าไหร่", "ยกเลิก", "ได้ไหม"),
}
INDEX = "idx_messages_salon_period_search"
COLUMNS = {
    "conversations": "salon_id conversation_id phone_number customer_name status assignee tags unread_count started_at"
    " last_message_at service_window_expires_at",
    "messages": "salon_id message_id conversation_id phone_number direction type content language status created_at",
}


def load(url: str) -> None:
    """Write the salon. Takes minutes."""
    random = Random(7)
    places = [int(CONVERSATIONS * random.random() ** 3) for _ in range(MESSAGES)]
    with psycopg.connect(url, autocommit=True) as conn:
        [definition] = conn.execute("SELECT pg_get_indexdef(%s::regclass)", [INDEX]).fetchone() or [""]
        conn.execute("ALTER TABLE messages DISABLE TRIGGER message_changes_created")
        conn.execute(f"DROP INDEX {INDEX}".encode())
        _copy(conn, "conversations", _conversations(random, dict(zip(places, range(MESSAGES), strict=True))))
        messages = _messages(random, places)
        _copy(conn, "messages", (next(messages) for _ in range(MESSAGES - LATEST)))
        conn.execute(definition.encode())
        for _ in range(LATEST):
            _copy(conn, "messages", [next(messages)])
        conn.execute("VACUUM (ANALYZE) conversations, message_words")
        conn.execute("ANALYZE messages")
        conn.execute("CHECKPOINT")


def _copy(conn: psycopg.Connection, table: str, rows: Iterator[tuple[object, ...]] | list[tuple[object, ...]]) -> None:
    columns = COLUMNS[table].replace(" ", ", ")
    with conn.cursor().copy(f"COPY {table} ({columns}) FROM STDIN".encode()) as copy:
        for row in rows:
            copy.write_row(row)


def phone(place: int) -> str:
    """Return the phone number of a conversation."""
    return f"+49151{place * 1999 % 100_000_000:08}"


def sent(place: int) -> datetime:
    """Return when a message was sent."""
    return END - STEP * (MESSAGES - place)


def conversation_id(place: int) -> UUID:
    """Return the ID of a conversation."""
    return UUID(int=place, version=4)


def message_id(place: int) -> UUID:
    """Return the ID of a message: in the order of time, as a UUIDv7 is."""
    return UUID(int=place << 80 | 0x7 << 76 | 0x8 << 60)


def _conversations(random: Random, last: dict[int, int]) -> Iterator[tuple[object, ...]]:
    """Yield the conversations; `last` is the last message of each that has one."""
    names = [name for region in REGIONS for name in region.given_names]
    for place in range(CONVERSATIONS):
        time = sent(last.get(place, 0))
        tags = random.choices([[], ["vip"], ["late", "vip"], ["complaint"]], [80, 15, 4.9, 0.1])[0]
        yield (
            SALON,
            conversation_id(place),
            phone(place),
            f"{random.choice(names)} {random.choice(SURNAMES)}",
            random.choices(["ACTIVE", "CLOSED", "ARCHIVED"], [10, 60, 30])[0],
            random.choices(["", "anna", "ben", "carla"], [70, 15, 14.9, 0.1])[0],
            tags,
            random.choices([0, 2], [97, 3])[0],
            sent(0),
            time,
            time + timedelta(days=1),
        )


def _messages(random: Random, places: list[int]) -> Iterator[tuple[object, ...]]:
    for number, place in enumerate(places):
        language, content = _text(random, number)
        direction = "INBOUND" if number % 2 else "OUTBOUND"
        identifiers = SALON, message_id(number), conversation_id(place), phone(place)
        yield *identifiers, direction, "TEXT", content, language, "DELIVERED", sent(number)


def _text(random: Random, number: int) -> tuple[str, str]:
    """Return the language and the content of a message.

    A fifth has the word `links`, another fifth `rechts`, none both; 1 of 100 has `mittelwort`, 5 have `seltenwort`.
    """
    language = random.choices(["de", *SPACELESS], [85, 7, 4, 4])[0]
    if language != "de":
        return language, "".join(random.choices(SPACELESS[language], k=5))
    region = REGIONS[0]
    words = [random.choice(region.customer_says + region.salon_says)] if random.random() < 0.5 else []
    words += [_word(int(WORDS ** random.random())) for _ in range(7)]
    words += {0: ["links"], 1: ["rechts"]}.get(number % 5, [])
    words += ["mittelwort"] if number % 100 == 7 else []
    words += ["seltenwort"] if number % (MESSAGES // 5) == 3 else []
    return language, " ".join(words)


def _word(rank: int) -> str:
    """Return a word; common ones are short."""
    syllables = "ba ke li mo nu ra se ti wo zu fe gi ho ja du pa".split()
    word = ""
    while rank:
        rank, rest = divmod(rank, len(syllables))
        word += syllables[rest]
    return word + "n"
