"""The cache tags of a salon: what a write invalidates, named as the report names them.

query:salon:id:{salon-123}   query:salon:{phone_number_id}   query:booking:salon:{salon-123}:...
query:stats:salon:{salon-123}:...   query:ai:salon:{salon-123}:...
query:conversation:{salon-123}:...   query:messages:salon:{salon-123}:...

A look-up of one booking or one conversation has a part of these of its own, so that it outlives the salon's other
writes: query:booking:salon:{salon-123}:code:B1, query:conversation:{salon-123}:id:UUID, ...:phone:DIGEST.
"""

from collections.abc import Iterable, Iterator

from libs.cache import Cache, Tag, digest


class CacheTags:
    """Makes the tags, with the TTLs in force."""

    def __init__(self, cache: Cache) -> None:
        """Read the namespaces."""
        self._salon, self._booking, self._stats, self._ai, self._conversation, self._messages = map(
            cache.namespace, ("salon", "booking", "stats", "aiAnalytics", "conversation", "messages")
        )

    def salon(self, salon_id: str) -> Tag:
        """Return the tag of a salon looked up by its id."""
        return self._salon.tag(salon_id, "id:")

    def phone_number_id(self, phone_number_id: str) -> Tag:
        """Return the tag of a salon looked up by its phone_number_id."""
        return self._salon.tag(phone_number_id)

    def bookings(self, salon_id: str) -> Tag:
        """Return the tag of a salon's bookings."""
        return self._booking.tag(salon_id, "salon:")

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
        tags = [self._messages.tag(salon_id, "salon:"), self._conversation.tag(salon_id)]
        for conversation_id, phone_number in set(conversations):
            for tag in tags[:2]:
                tags.append(of_name(tag, conversation_id))
                if phone_number:
                    tags.append(of_name(tag, "", phone_number))
        return tags

    def booking(self, salon_id: str, booking_code: str) -> Tag:
        """Return the tag of one booking."""
        return self.bookings(salon_id).sub_tag("code", booking_code)

    def ai_messages(self, salon_id: str, conversation_id: str) -> Tag:
        """Return the tag of the AI messages of one conversation."""
        return self.conversations(salon_id).sub_tag("ai", conversation_id)

    async def of_salon(self, salon_id: str) -> list[Tag]:
        """Return all that a salon's id names."""
        makers = (self.salon, self.bookings, self.stats, self.ai, self.conversations, self.messages)
        return [make(salon_id) for make in makers]


def of_name(tag: Tag, conversation_id: str, phone_number: str = "") -> Tag:
    """Return the part of a salon's conversations or messages that a look-up by these names depends on.

    Whoever writes to a conversation invalidates the parts `of_names`. A look-up by anything else, such as a user_id,
    which a conversation may change for another, depends on the whole.
    """
    if conversation_id:
        return tag.sub_tag("id", conversation_id)
    return tag.sub_tag("phone", digest(phone_number)) if phone_number else tag


def of_names(tag: Tag, conversation_ids: Iterable[str], phone_numbers: Iterable[str]) -> Iterator[Tag]:
    """Yield a salon's conversations or messages, and the parts of it that look-ups by these names depend on."""
    yield tag
    for conversation_id in conversation_ids:
        yield of_name(tag, conversation_id)
    for phone_number in phone_numbers:
        yield of_name(tag, "", phone_number)
