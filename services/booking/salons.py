"""The RPCs about salons."""

from functools import cache as once
from typing import Any
from zoneinfo import available_timezones

from libs.cache import Reply
from libs.server import errors, page
from parlor.booking.v1 import booking_pb2 as pb
from services.booking import salon_queries as queries
from services.booking.rpcs import Rpcs, batch, check_dates, found


class SalonRpcs(Rpcs):
    """Salons, by id and by phone_number_id."""

    async def UpsertSalon(self, request: pb.UpsertSalonRequest, context: Any) -> pb.Salon:
        """Create or replace a salon."""
        salon, tags = request.salon, self.tags
        if salon.time_zone not in _time_zones():
            raise errors.invalid_fields([("salon.time_zone", "must be an IANA time zone, such as Europe/Berlin")])
        check_dates("salon.special_hours", salon.special_hours)
        async with self.write(
            request,
            salon.salon_id,
            tags.salon(salon.salon_id),
            tags.phone_number_id(salon.phone_number_id),
            tags.stats(salon.salon_id),
            locks=(f"salon {salon.salon_id}",),
        ) as write:
            before = await queries.lock_salon(write.conn, salon.salon_id)
            if salon.etag and (before is None or salon.etag != before.etag):
                raise errors.etag_mismatch("salon", salon.salon_id)
            if before is not None:
                write.invalidate(tags.phone_number_id(before.phone_number_id))
            after = write.reply = await queries.upsert_salon(write.conn, salon)
        return after

    async def GetSalon(self, request: pb.GetSalonRequest, context: Any) -> Reply:
        """Return a salon by its id."""
        return await self.salon(request.salon_id)

    async def BatchGetSalons(self, request: pb.BatchGetSalonsRequest, context: Any) -> Reply:
        """Return salons by their ids."""
        wanted = list(dict.fromkeys(request.salon_ids))
        keys = [self.tags.salon(salon_id).key() for salon_id in wanted]
        replies = await self.cache.get_many(keys, wanted, queries.salons_by_id)
        return batch(dict(zip(wanted, replies, strict=True)), request.salon_ids, "salon")

    async def GetSalonByPhoneNumberId(self, request: pb.GetSalonByPhoneNumberIdRequest, context: Any) -> Reply:
        """Return a salon by its WhatsApp phone_number_id."""
        key = self.tags.phone_number_id(request.phone_number_id).key()
        named = request.phone_number_id
        reply = await self.cache.get_batched(key, named, queries.salons_by_phone_number_id, repeatable=True)
        return found(reply, "salon", named)

    async def ListSalons(self, request: pb.ListSalonsRequest, context: Any) -> bytes:
        """List all salons."""
        wanted = page(request.page_size, request.page_token, uuid=False)
        async with self.database.connection() as conn:
            salons = await queries.list_salons(conn, wanted)
        return wanted.fill(pb.ListSalonsResponse, salons, "create_time", "salon_id")


@once
def _time_zones() -> frozenset[str]:
    return frozenset(available_timezones())
