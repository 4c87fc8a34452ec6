"""Salons, which the booking service owns: read by RPC."""

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
    """A conversation would be created for a salon that has not been read yet."""


class Salons:
    """Reads salons from the booking service, and remembers which ones exist."""

    def __init__(self, cache: Cache, booking: Any, timeout_ms: int) -> None:
        """Prepare; `booking` is a stub of the booking service."""
        # Ids of salons that exist. They expire: a salon may be deleted, or move to another deployment.
        self.known: TTLCache[str, bool] = TTLCache(MOST_KNOWN, KNOWN_SECONDS)
        self._cache = cache
        self._tags = CacheTags(cache)
        self._booking = booking
        self._timeout = timeout_ms / 1000

    async def get(self, salon_id: str) -> Salon:
        """Return a salon, not cached by this service. Raises: SALON_NOT_FOUND, BOOKING_UNAVAILABLE."""
        return await self._call(self._booking.GetSalon, booking_pb2.GetSalonRequest(salon_id=salon_id))

    async def region_code(self, salon_id: str) -> str:
        """Return the region of a salon's national phone numbers, "" if it has none. Raises: as `get`."""
        return (await self.get(salon_id)).region_code

    async def of_phone_number_id(self, phone_number_id: str) -> Salon | None:
        """Return the salon of a phone_number_id, None if there is none.

        A salon may come from the cache and be as stale as the booking service's own replies. That there is none is read
        from the cache only if booking does not answer: otherwise the messages of a new salon would be lost.
        Raises: BOOKING_UNAVAILABLE if booking does not answer and the cache has no entry.
        """
        key = self._tags.phone_number_id(phone_number_id).key()
        cached = self._cache.near(key) or await self._cache.peek(key)
        if cached is not None and cached.body:
            salon = Salon.FromString(cached.body)
            self.known[salon.salon_id] = True
            return salon
        request = booking_pb2.GetSalonByPhoneNumberIdRequest(phone_number_id=phone_number_id)
        try:
            return await self._call(self._booking.GetSalonByPhoneNumberId, request)
        except errors.RpcError as error:
            if error.code == grpc.StatusCode.NOT_FOUND or cached is not None:
                return None
            raise

    async def _call(self, method: Any, request: Any) -> Salon:
        try:
            salon: Salon = await method(request, timeout=self._timeout)
        except grpc.aio.AioRpcError as error:
            if error.code() == grpc.StatusCode.NOT_FOUND:
                self.known.pop(getattr(request, "salon_id", ""), None)
                raise errors.not_found("salon", getattr(request, "salon_id", "")) from error
            raise errors.unavailable("BOOKING_UNAVAILABLE", "the booking service does not answer") from error
        self.known[salon.salon_id] = True
        return salon
