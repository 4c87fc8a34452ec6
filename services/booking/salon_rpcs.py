"""The RPCs about what a salon sets: salons, resources, services, time off. service.py continues this class."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import cache as once
from typing import Any
from zoneinfo import available_timezones

from google.protobuf.empty_pb2 import Empty

from libs.cache import Cache, Reply, digest
from libs.db import Database, Statement, for_searches
from libs.messages import encode_repeated
from libs.server import (
    IdempotentWrites,
    Slices,
    Write,
    errors,
    moment,
    names_given,
    page,
    period,
    whole_seconds,
)
from parlor.booking.v1 import booking_pb2 as pb
from parlor.booking.v1 import booking_pb2_grpc
from services.booking import (
    resource_queries,
    salon_queries,
    service_queries,
    time_off_queries,
)
from services.booking.booking_write_queries import (
    resource_lock,
    salon_time_lock,
)
from services.booking.changes import booking_changes
from services.booking.opening_hours import check_special_hours
from services.booking.resource_queries import ResourceFilters
from services.booking.service_queries import ServiceFilters, service_lock
from services.booking.time_off_queries import TimeOffFilters
from services.cache_tags import CacheTags
from services.phones import e164


class SalonRpcs(booking_pb2_grpc.BookingServiceServicer):
    """Salons with their resources, services and time off."""

    def __init__(self, cache: Cache, database: Database, now: Callable[[], datetime]) -> None:
        """Prepare; `now` decides which slots lie in the past."""
        self.cache = cache
        self.database = database
        self.now = now
        self.tags = CacheTags(cache)
        self.searches = for_searches(database)
        self.slices = Slices()
        self.write = IdempotentWrites(cache, database, "booking_requests")
        database.canary = "booking_requests"
        self.changes = booking_changes(database)

    async def UpsertSalon(self, request: pb.UpsertSalonRequest, context: Any) -> pb.Salon:
        """Create or replace a salon; invalidate its cache entries under the old and the new phone_number_id."""
        salon, salon_id, tags = request.salon, request.salon.salon_id, self.tags
        if salon.time_zone not in _time_zones():
            raise errors.invalid_fields([("salon.time_zone", "must be an IANA time zone, such as Europe/Berlin")])
        check_special_hours("salon.special_hours", salon.special_hours)
        for field in ("min_notice", "max_advance", "min_cancel_notice", "buffer_before", "buffer_after"):
            whole_seconds(salon.booking_rules, field, "salon.booking_rules.")
        async with self.write(
            request,
            salon_id,
            invalidates=[tags.salon(salon_id), tags.phone_number_id(salon.phone_number_id), tags.stats(salon_id)],
            locks=(f"salon {salon_id}",),
        ) as write:
            before = await salon_queries.lock_salon(write.conn, salon_id)
            if salon.etag and (before is None or salon.etag != before.etag):
                raise errors.etag_mismatch("salon", salon_id)
            if before is not None:
                write.invalidate(tags.phone_number_id(before.phone_number_id))
            after = write.reply = await salon_queries.upsert_salon(write.conn, salon)
        return after

    async def GetSalon(self, request: pb.GetSalonRequest, context: Any) -> Reply:
        """Return a salon by its id."""
        salon_id = request.salon_id
        key = self.tags.salon(salon_id).key()
        reply = await self.cache.get_batched(key, salon_id, salon_queries.salons_by_id, repeatable=True)
        if reply.body is None:
            raise errors.not_found("salon", salon_id)
        return reply

    async def GetSalonByPhoneNumberId(self, request: pb.GetSalonByPhoneNumberIdRequest, context: Any) -> Reply:
        """Return a salon by its WhatsApp phone_number_id."""
        phone_number_id = request.phone_number_id
        key = self.tags.phone_number_id(phone_number_id).key()
        load = salon_queries.salons_by_phone_number_id
        reply = await self.cache.get_batched(key, phone_number_id, load, repeatable=True)
        if reply.body is None:
            raise errors.not_found("salon", phone_number_id)
        return reply

    async def BatchGetSalons(self, request: pb.BatchGetSalonsRequest, context: Any) -> Reply:
        """Return salons by their ids."""
        ids = list(dict.fromkeys(request.salon_ids))
        keys = [self.tags.salon(salon_id).key() for salon_id in ids]
        replies = await self.cache.get_many(keys, ids, salon_queries.salons_by_id)
        return batch_reply(dict(zip(ids, replies, strict=True)), request.salon_ids, "salon")

    async def ListSalons(self, request: pb.ListSalonsRequest, context: Any) -> bytes:
        """List all salons."""
        list_page = page(request.page_size, request.page_token, "ListSalons", uuid=False)
        async with self.database.connection() as conn:
            salons = await salon_queries.list_salons(conn, list_page)
        return list_page.fill(pb.ListSalonsResponse, salons, "create_time", "salon_id")

    async def UpsertResource(self, request: pb.UpsertResourceRequest, context: Any) -> pb.Resource:
        """Create or replace a resource."""
        salon_id, resource_id = request.salon_id, request.resource_id
        check_special_hours("special_hours", request.special_hours)
        lock = resource_lock(salon_id, resource_id)
        async with self.write(request, salon_id, invalidates=[self.tags.bookings(salon_id)], locks=(lock,)) as write:
            before = await resource_queries.lock_resource(write.conn, salon_id, resource_id)
            if request.etag and (before is None or request.etag != before.etag):
                raise errors.etag_mismatch("resource", f"{salon_id}/{resource_id}")
            after = write.reply = await resource_queries.upsert_resource(write.conn, request)
        return after

    async def ListResources(self, request: pb.ListResourcesRequest, context: Any) -> Reply:
        """List a salon's resources."""
        salon_id, active_only = request.salon_id, request.active_only
        list_page = page(request.page_size, request.page_token, "ListResources", salon_id, active_only, uuid=False)
        return await self.cache.get_batched(
            self.tags.bookings(salon_id).key("resources", digest(list_page)),
            (ResourceFilters(salon_id, active_only), list_page),
            resource_queries.list_resources,
            batch=names_given,
            rows=list_page.rows,
            repeatable=True,
        )

    async def DeleteResource(self, request: pb.DeleteResourceRequest, context: Any) -> Empty:
        """Delete a resource that has no bookings to come."""
        salon_id, resource_id = request.salon_id, request.resource_id
        name = f"{salon_id}/{resource_id}"
        lock = resource_lock(salon_id, resource_id)
        async with self.write(request, salon_id, invalidates=[self.tags.bookings(salon_id)], locks=(lock,)) as write:
            before = await resource_queries.lock_resource(write.conn, salon_id, resource_id)
            if before is None:
                raise errors.not_found("resource", name)
            if request.etag and request.etag != before.etag:
                raise errors.etag_mismatch("resource", name)
            code = await resource_queries.next_booking(write.conn, salon_id, resource_id)
            if code is not None:
                message = f"{resource_id} has bookings to come, the first one is {code}: move or cancel them before"
                raise errors.failed_precondition("RESOURCE_IN_USE", f"resource/{name}", message, booking_code=code)
            await resource_queries.delete_resource(write.conn, salon_id, resource_id)
            reply = write.reply = Empty()
        return reply

    async def UpsertService(self, request: pb.UpsertServiceRequest, context: Any) -> pb.Service:
        """Create or replace a service."""
        salon_id, service_id = request.salon_id, request.service_id
        for field in ("duration", "buffer_before", "buffer_after"):
            whole_seconds(request, field)
        first: list[Statement[Any]] = [
            service_queries.read_service(salon_id, service_id),
            resource_queries.missing_resources(salon_id, request.resource_ids),
        ]
        tag, lock = self.tags.services(salon_id), service_lock(salon_id, service_id)
        async with self.write(request, salon_id, invalidates=[tag], locks=[lock], first=first) as write:
            before, missing = write.first
            if missing:
                raise await _resource_not_found(write, salon_id, missing[0])
            if request.etag and (before is None or request.etag != before.etag):
                raise errors.etag_mismatch("service", f"{salon_id}/{service_id}")
            after = write.reply = await service_queries.upsert_service(write.conn, request)
        return after

    async def GetService(self, request: pb.GetServiceRequest, context: Any) -> Reply:
        """Return a service by its id."""
        salon_id, service_id = request.salon_id, request.service_id
        key = self.tags.services(salon_id).key("id", service_id)
        reply = await self.cache.get_batched(
            key, (salon_id, service_id), service_queries.services_by_id, repeatable=True
        )
        if reply.body is None:
            raise errors.not_found("service", f"{salon_id}/{service_id}")
        return reply

    async def ListServices(self, request: pb.ListServicesRequest, context: Any) -> Reply:
        """List a salon's services."""
        salon_id, active_only = request.salon_id, request.active_only
        list_page = page(request.page_size, request.page_token, "ListServices", salon_id, active_only, uuid=False)
        return await self.cache.get_batched(
            self.tags.services(salon_id).key("list", digest(list_page)),
            (ServiceFilters(salon_id, active_only), list_page),
            service_queries.list_services,
            batch=names_given,
            rows=list_page.rows,
            repeatable=True,
        )

    async def DeleteService(self, request: pb.DeleteServiceRequest, context: Any) -> Empty:
        """Delete a service."""
        salon_id, service_id = request.salon_id, request.service_id
        tag, lock = self.tags.services(salon_id), service_lock(salon_id, service_id)
        first = [service_queries.read_service(salon_id, service_id)]
        async with self.write(request, salon_id, invalidates=[tag], locks=[lock], first=first) as write:
            [before] = write.first
            name = f"{salon_id}/{service_id}"
            if before is None:
                raise errors.not_found("service", name)
            if request.etag and request.etag != before.etag:
                raise errors.etag_mismatch("service", name)
            await service_queries.delete_service(write.conn, salon_id, service_id)
            reply = write.reply = Empty()
        return reply

    async def CreateTimeOff(self, request: pb.CreateTimeOffRequest, context: Any) -> bytes:
        """Block a time of a resource or of the salon. Nobody books meanwhile: the reply misses no booking."""
        salon_id, resource_id = request.salon_id, request.resource_id
        start, end = period(request)
        first: list[Statement[Any]] = [
            time_off_queries.insert_time_off(request, start, end),
            time_off_queries.bookings_in(salon_id, resource_id, start, end),
        ]
        tag, lock = self.tags.bookings(salon_id), salon_time_lock(salon_id)
        async with self.write(request, salon_id, invalidates=[tag], locks=[lock], first=first) as write:
            time_off, bookings = write.first
            if time_off is None:
                raise await _resource_not_found(write, salon_id, resource_id)
            reply: bytes = encode_repeated([time_off], 1) + encode_repeated(bookings, 2)
            write.reply = reply
        return reply

    async def ListTimeOff(self, request: pb.ListTimeOffRequest, context: Any) -> Reply:
        """List a salon's time off."""
        salon_id = request.salon_id
        filters = TimeOffFilters(
            salon_id, request.resource_id, moment(request, "start_time"), moment(request, "end_time")
        )
        list_page = page(request.page_size, request.page_token, "ListTimeOff", *filters)
        return await self.cache.get_batched(
            self.tags.bookings(salon_id).key("time_off", digest(list_page)),
            (filters, list_page),
            time_off_queries.list_time_off,
            batch=names_given,
            rows=list_page.rows,
            repeatable=True,
        )

    async def DeleteTimeOff(self, request: pb.DeleteTimeOffRequest, context: Any) -> Empty:
        """Delete a time off."""
        salon_id, time_off_id = request.salon_id, request.time_off_id
        first = [time_off_queries.delete_time_off(salon_id, time_off_id)]
        tag, lock = self.tags.bookings(salon_id), salon_time_lock(salon_id)
        async with self.write(request, salon_id, invalidates=[tag], locks=[lock], first=first) as write:
            if write.first == [False]:
                raise errors.not_found("time_off", f"{salon_id}/{time_off_id}")
            reply = write.reply = Empty()
        return reply

    async def _region_code(self, salon_id: str) -> str:
        """Return a salon's region_code. Raises: SALON_NOT_FOUND."""
        reply = await self.GetSalon(pb.GetSalonRequest(salon_id=salon_id), None)
        return pb.Salon.FromString(reply.body or b"").region_code

    async def _phone(self, field: str, number: str, salon_id: str) -> str:
        """Return a phone number as E.164, "" for none. Raises: INVALID_FIELD; SALON_NOT_FOUND."""
        return await e164(field, number, lambda: self._region_code(salon_id)) if number else ""


async def _resource_not_found(write: Write, salon_id: str, resource_id: str) -> errors.RpcError:
    """Return the error of an unknown resource; SALON_NOT_FOUND if the salon is unknown, too."""
    [salon] = await salon_queries.salons_by_id(write.conn, [salon_id])
    if salon.value is None:
        return errors.not_found("salon", salon_id)
    return errors.not_found("resource", f"{salon_id}/{resource_id}")


def batch_reply(replies: Mapping[str, Reply], names: Sequence[str], kind: str, parent: str = "") -> Reply:
    """Return the reply to a batch, in the order of `names`; it counts as old as its oldest part.

    Raises: `<KIND>_NOT_FOUND` for the first that does not exist, named with its `parent`.
    """
    for name, reply in replies.items():
        if reply.body is None:
            raise errors.not_found(kind, parent + name)
    source = max((reply.source for reply in replies.values()), key=("hit", "miss", "bypass").index)
    return Reply(
        encode_repeated([replies[name].body or b"" for name in names]),
        source,
        max(reply.age_ms for reply in replies.values()),
    )


@once
def _time_zones() -> frozenset[str]:
    return frozenset(available_timezones())
