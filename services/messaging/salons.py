"""What messaging knows of salons, which the booking service owns: it asks, by RPC."""

from typing import Any

import grpc
from cachetools import TTLCache

from libs.cache import Cache
from libs.server import errors
from parlor.booking.v1 import booking_pb2
from parlor.booking.v1.booking_pb2 import Salon
from services.cache_tags import CacheTags

KNOWN_SECONDS = 60
MOST_KNOWN = 100_000


class SalonUnknown(Exception):
    """A conversation would be created, and nobody has asked yet whether there is such a salon."""


class Salons:
    """Asks the booking service for salons, and remembers which there are."""

    def __init__(self, cache: Cache, booking: Any, timeout_ms: int) -> None:
        """Take a stub of the booking service, and how long to wait for it."""
        # Ids. Not for good: a salon may end, or move to where other services serve it.
        self.known: TTLCache[str, bool] = TTLCache(MOST_KNOWN, KNOWN_SECONDS)
        self._cache = cache
        self._groups = CacheTags(cache)
        self._booking = booking
        self._timeout = timeout_ms / 1000

    async def get(self, salon_id: str) -> Salon:
        """Return a salon as it is now. Raises: SALON_NOT_FOUND, BOOKING_UNAVAILABLE."""
        return await self._ask(self._booking.GetSalon, booking_pb2.GetSalonRequest(salon_id=salon_id))

    async def region_code(self, salon_id: str) -> str:
        """Return the region whose national phone notation a salon uses, "" if none. Raises: as `get`."""
        return (await self.get(salon_id)).region_code

    async def of_phone_number_id(self, phone_number_id: str) -> Salon | None:
        """Return the salon of a phone_number_id, None if there is none.

        As the booking service's own replies, it may be behind a write by the near cache's lease. That there is none is
        never taken from a cache, unless booking does not answer: it would lose the messages of a new salon.
        Raises: BOOKING_UNAVAILABLE if booking does not answer, and the cache does not know either.
        """
        key = self._groups.phone_number_id(phone_number_id).key()
        cached = self._cache.near(key) or await self._cache.peek(key)
        if cached is not None and cached.body:
            return self._known(Salon.FromString(cached.body))
        request = booking_pb2.GetSalonByPhoneNumberIdRequest(phone_number_id=phone_number_id)
        try:
            return await self._ask(self._booking.GetSalonByPhoneNumberId, request)
        except errors.RpcError as error:
            if error.code == grpc.StatusCode.NOT_FOUND or cached is not None:
                return None
            raise

    async def _ask(self, method: Any, request: Any) -> Salon:
        try:
            salon: Salon = await method(request, timeout=self._timeout)
        except grpc.aio.AioRpcError as error:
            if error.code() == grpc.StatusCode.NOT_FOUND:
                self.known.pop(getattr(request, "salon_id", ""), None)
                raise errors.not_found("salon", getattr(request, "salon_id", "")) from error
            raise errors.unavailable("BOOKING_UNAVAILABLE", "the booking service does not answer") from error
        return self._known(salon)

    def _known(self, salon: Salon) -> Salon:
        self.known[salon.salon_id] = True
        return salon
