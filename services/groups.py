"""The cache groups of a salon: what a write invalidates, named as the report names them.

query:salon:id:{salon-123}   query:salon:{phone_number_id}   query:booking:salon:{salon-123}:...
query:stats:salon:{salon-123}:...   query:ai:salon:{salon-123}:...
query:conversation:{salon-123}:...   query:messages:salon:{salon-123}:...
"""

from libs.cache import Cache, Group


class Groups:
    """Makes the groups, with the TTLs in force."""

    def __init__(self, cache: Cache) -> None:
        """Read the namespaces."""
        self._salon, self._booking, self._stats, self._ai, self._conversation, self._messages = map(
            cache.namespace, ("salon", "booking", "stats", "aiAnalytics", "conversation", "messages")
        )

    def salon(self, salon_id: str) -> Group:
        """Return the group of a salon looked up by its id."""
        return self._salon.group(salon_id, "id:")

    def phone_number_id(self, phone_number_id: str) -> Group:
        """Return the group of a salon looked up by its phone_number_id."""
        return self._salon.group(phone_number_id)

    def bookings(self, salon_id: str) -> Group:
        """Return the group of a salon's bookings."""
        return self._booking.group(salon_id, "salon:")

    def stats(self, salon_id: str) -> Group:
        """Return the group of a salon's statistics."""
        return self._stats.group(salon_id, "salon:")

    def ai(self, salon_id: str) -> Group:
        """Return the group of a salon's AI analytics."""
        return self._ai.group(salon_id, "salon:")

    def conversations(self, salon_id: str) -> Group:
        """Return the group of a salon's conversations and AI messages."""
        return self._conversation.group(salon_id)

    def messages(self, salon_id: str) -> Group:
        """Return the group of a salon's messages."""
        return self._messages.group(salon_id, "salon:")

    async def of_salon(self, salon_id: str) -> list[Group]:
        """Return all that a salon's id names."""
        makers = (self.salon, self.bookings, self.stats, self.ai, self.conversations, self.messages)
        return [make(salon_id) for make in makers]
