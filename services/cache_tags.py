"""The cache tags of a salon: what a write invalidates together.

query:salon:id:{salon-123}   query:salon:{phone_number_id}   query:salon:services:{salon-123}
query:booking:salon:{salon-123}
query:stats:salon:{salon-123}   query:ai:salon:{salon-123}
query:conversation:{salon-123}   query:messages:salon:{salon-123}

Reads of one booking or one conversation have sub-tags, so that their entries outlive the salon's other writes:
query:booking:salon:{salon-123}:code:B1, query:conversation:{salon-123}:id:UUID, ...:phone:DIGEST.
So have lists of the bookings that start within a day or a week:
query:booking:salon:{salon-123}:day:80420, query:booking:salon:{salon-123}:week:2872.
"""

from collections.abc import Iterable
from functools import lru_cache

from libs.cache import Cache, Tag, digest

HOUR, DAY = 3600, 86_400
# Windows of time: their kind, the time from one to the next, and their length, in s. Windows of a kind overlap, so that
# one of them contains the whole day, or week, of any time zone, also when the clocks change. A booking starts in
# length / step windows of each kind. They are counted from 1970.
WINDOWS = (("day", 6 * HOUR, 30 * HOUR), ("week", 7 * DAY, 14 * DAY))


class CacheTags:
    """Makes the tags of salons, with the TTLs of the cache's settings."""

    def __init__(self, cache: Cache) -> None:
        """Read the namespaces."""
        self._salon, self._booking, self._stats, self._ai, self._conversation, self._messages = map(
            cache.namespace, ("salon", "booking", "stats", "aiAnalytics", "conversation", "messages")
        )

    def salon(self, salon_id: str) -> Tag:
        """Return the tag of a salon read by its id."""
        return self._salon.tag(salon_id, "id:")

    def phone_number_id(self, phone_number_id: str) -> Tag:
        """Return the tag of a salon read by its phone_number_id."""
        return self._salon.tag(phone_number_id)

    def services(self, salon_id: str) -> Tag:
        """Return the tag of a salon's services. Writes to the salon itself leave it alone, and the other way round."""
        return self._salon.tag(salon_id, "services:")

    def bookings(self, salon_id: str) -> Tag:
        """Return the tag of a salon's bookings, resources and time off."""
        return self._booking.tag(salon_id, "salon:")

    def bookings_between(self, salon_id: str, start: int, end: int) -> Tag:
        """Return the tag of a list of the bookings that start between two times, in s since 1970; `end` is exclusive.

        It is the sub-tag of the first window that contains the whole time; the salon's, if none does.
        """
        tag = self.bookings(salon_id)
        for kind, step, length in WINDOWS:
            window = start // step
            if end <= window * step + length:
                return tag.sub_tag(kind, str(window))
        return tag

    def stats(self, salon_id: str) -> Tag:
        """Return the tag of a salon's statistics."""
        return self._stats.tag(salon_id, "salon:")

    def ai(self, salon_id: str) -> Tag:
        """Return the tag of a salon's AI analytics."""
        return self._ai.tag(salon_id, "salon:")

    def conversations(self, salon_id: str) -> Tag:
        """Return the tag of a salon's conversations and AI messages."""
        return self._conversation.tag(salon_id)

    def messages(self, salon_id: str) -> Tag:
        """Return the tag of a salon's messages."""
        return self._messages.tag(salon_id, "salon:")

    def of_conversations(self, salon_id: str, *conversations: tuple[str, str]) -> list[Tag]:
        """Return the tags that a write to conversations and their messages invalidates.

        They are the salon's messages and conversations, and the sub-tags of each conversation_id and phone_number.
        """
        tags = [self._messages.tag(salon_id, "salon:"), self._conversation.tag(salon_id)] if conversations else []
        for conversation_id, phone_number in set(conversations):
            for tag in tags[:2]:
                if conversation_id:
                    tags.append(conversation_tag(tag, conversation_id))
                if phone_number:
                    tags.append(conversation_tag(tag, "", phone_number))
        return tags

    def of_customers(self, salon_id: str, *customers: tuple[str, str]) -> list[Tag]:
        """Return the tags that a merge or erasure of customers invalidates, who are named as in `of_conversations`."""
        ai_messages = [self.ai_messages(salon_id, customer_id) for customer_id, _ in set(customers) if customer_id]
        return [*self.of_conversations(salon_id, *customers), *ai_messages]

    def of_facts(self, salon_id: str, customers: Iterable[tuple[str, Iterable[str]]]) -> list[Tag]:
        """Return the tags of customers with all their phone numbers whose conversations and messages did not change."""
        tag = self._conversation.tag(salon_id)
        return [
            one
            for customer_id, phone_numbers in customers
            for one in (
                tag,
                conversation_tag(tag, customer_id),
                *(conversation_tag(tag, "", phone_number) for phone_number in phone_numbers),
            )
        ]

    def booking(self, salon_id: str, booking_code: str) -> Tag:
        """Return the sub-tag of one booking."""
        return self._booking.tag(salon_id, "salon:").sub_tag("code", booking_code)

    def ai_messages(self, salon_id: str, conversation_id: str) -> Tag:
        """Return the sub-tag of the AI messages of one conversation."""
        return self._conversation.tag(salon_id).sub_tag("ai", conversation_id)

    def of_bookings(self, salon_id: str, *bookings: tuple[str, int]) -> list[Tag]:
        """Return the tags that a write to bookings invalidates: the salon's, its statistics', and sub-tags.

        A booking is given by its booking_code and its start in s since 1970; one that was moved twice, with both
        starts. The sub-tags are those of each code, and of the windows that it starts in.
        """
        tag = self._booking.tag(salon_id, "salon:")
        tags = [tag, self._stats.tag(salon_id, "salon:")]
        tags += [tag.sub_tag("code", code) for code in dict.fromkeys(code for code, _ in bookings)]
        for spans in {tuple(start // step for _, step, _ in WINDOWS): None for _, start in bookings}:
            tags += _windows(tag, spans)
        return tags

    async def of_salon(self, salon_id: str) -> list[Tag]:
        """Return all tags that are named by a salon's id."""
        tags = (
            self.salon,
            self.services,
            self.bookings,
            self.stats,
            self.ai,
            self.conversations,
            self.messages,
        )
        return [tag(salon_id) for tag in tags]


@lru_cache(1024)
def _windows(tag: Tag, last: tuple[int, ...]) -> list[Tag]:
    """Return the sub-tags of the windows that contain a time; `last` has the number of the last window of each kind.

    Bookings of the same quarter of a day share them: to make them takes longer than all else that a write registers.
    """
    return [
        tag.sub_tag(kind, str(number))
        for (kind, step, length), end in zip(WINDOWS, last, strict=True)
        for number in range(end - length // step + 1, end + 1)
    ]


def conversation_tag(tag: Tag, conversation_id: str, phone_number: str = "") -> Tag:
    """Return the sub-tag of a salon's conversations or messages for a read by conversation_id or by phone_number.

    A write to a conversation invalidates both (`CacheTags.of_conversations`). A read by anything else depends on the
    tag itself: a user_id, for example, may move from one conversation to another.
    """
    if conversation_id:
        return tag.sub_tag("id", conversation_id)
    return tag.sub_tag("phone", digest(phone_number)) if phone_number else tag
