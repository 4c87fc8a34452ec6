"""The RPCs about resources, and when they are free."""

from typing import Any

from libs.cache import Reply, digest
from libs.server import Page, errors, names_given, page
from parlor.booking.v1 import booking_pb2 as pb
from services.booking import availability
from services.booking import resource_queries as queries
from services.booking.availability import Wanted
from services.booking.resource_queries import ResourceFilters
from services.booking.rpcs import Rpcs, check_dates, resource_lock

MOST_SLOTS = 10_000


class ResourceRpcs(Rpcs):
    """Resources, and their free slots."""

    async def UpsertResource(self, request: pb.UpsertResourceRequest, context: Any) -> pb.Resource:
        """Create or replace a resource."""
        salon_id, resource_id = request.salon_id, request.resource_id
        check_dates("special_hours", request.special_hours)
        lock = resource_lock(salon_id, resource_id)
        async with self.write(request, salon_id, self.tags.bookings(salon_id), locks=(lock,)) as write:
            before = await queries.lock_resource(write.conn, salon_id, resource_id)
            if request.etag and (before is None or request.etag != before.etag):
                raise errors.etag_mismatch("resource", f"{salon_id}/{resource_id}")
            after = write.reply = await queries.upsert_resource(write.conn, request)
        return after

    async def ListResources(self, request: pb.ListResourcesRequest, context: Any) -> Reply:
        """List a salon's resources."""
        salon_id, active_only = request.salon_id, request.active_only
        wanted = page(request.page_size, request.page_token, "ListResources", salon_id, active_only, uuid=False)
        key = self.tags.bookings(salon_id).key("resources", digest(wanted))
        return await self.cache.get_batched(
            key,
            (ResourceFilters(salon_id, active_only), wanted),
            queries.list_resources,
            batch=names_given,
            rows=wanted.rows,
            repeatable=True,
        )

    async def SearchAvailability(self, request: pb.SearchAvailabilityRequest, context: Any) -> bytes:
        """Return the free slots of a salon's resources in a period."""
        want = availability.wanted(request, self.now())
        filters = pb.SearchAvailabilityRequest()
        filters.CopyFrom(request)
        filters.ClearField("page_size")
        filters.ClearField("page_token")
        asked = page(
            0, request.page_token, "SearchAvailability", filters.SerializeToString(deterministic=True), uuid=False
        )
        asked = asked._replace(size=min(request.page_size or MOST_SLOTS, MOST_SLOTS))
        if asked.after_micros is not None:
            want = want._replace(first=max(want.first, asked.after_micros // 1_000_000))
        async with self.searches.connection(request.salon_id) as conn:
            return await self._search(conn, request, want, asked)

    async def _search(self, conn: Any, request: pb.SearchAvailabilityRequest, want: Wanted, asked: Page) -> bytes:
        resource_ids = request.resource_ids
        rows = await queries.availability(conn, request.salon_id, resource_ids, want.busy_from, want.busy_until)
        if not any(row[0] is None for row in rows):
            raise errors.not_found("salon", request.salon_id)
        most = asked.size + len(rows) + len(resource_ids)  # besides those of the page before at the same moment
        async for response in self.slices.each(availability.search(rows, resource_ids, want, asked, most)):
            return response
        raise AssertionError  # it ends with the response
