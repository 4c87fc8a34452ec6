"""The RPCs of the stats service, in the proto's order."""

from datetime import datetime
from typing import Any

from libs.cache import Cache, LoadMany, Reply, Tag
from libs.db import Database
from libs.server import Service, period
from parlor.stats.v1 import stats_pb2 as pb
from parlor.stats.v1 import stats_pb2_grpc
from services.cache_tags import CacheTags
from services.stats import queries
from services.stats.ai_queries import ai_analytics
from services.stats.queries import Buckets, Period


class StatsService(stats_pb2_grpc.StatsServiceServicer):
    """Figures of a salon's bookings, conversations, messages and AI messages."""

    def __init__(self, cache: Cache) -> None:
        """Prepare."""
        self.cache = cache
        self.tags = CacheTags(cache)

    async def GetSalonStats(self, request: pb.GetSalonStatsRequest, context: Any) -> Reply:
        """Count a period."""
        return await self._counted(self.tags.stats(request.salon_id), "salon", request, queries.salon_stats)

    async def ListBookingStats(self, request: pb.ListBookingStatsRequest, context: Any) -> Reply:
        """Count the bookings created in each bucket of a period."""
        return await self._in_buckets(self.tags.stats(request.salon_id), "bookings", request, queries.booking_stats)

    async def ListConversationStats(self, request: pb.ListConversationStatsRequest, context: Any) -> Reply:
        """Count the conversations started in each bucket of a period."""
        tag = self.tags.stats(request.salon_id)
        return await self._in_buckets(tag, "conversations", request, queries.conversation_stats)

    async def GetMessageDirectionStats(self, request: pb.GetMessageDirectionStatsRequest, context: Any) -> Reply:
        """Count the messages of a period by direction."""
        tag = self.tags.stats(request.salon_id)
        return await self._counted(tag, "directions", request, queries.message_direction_stats)

    async def GetAiAnalytics(self, request: pb.GetAiAnalyticsRequest, context: Any) -> Reply:
        """Count the AI messages of a period by model, and by bucket."""
        return await self._in_buckets(self.tags.ai(request.salon_id), "models", request, ai_analytics)

    async def _counted(self, tag: Tag, name: str, request: Any, load: LoadMany) -> Reply:
        """Return a period's figures, cached under `name` and the period."""
        start, end = period(request)
        key = tag.key(name, _compact(start), _compact(end))
        return await self.cache.get_batched(
            key, Period(request.salon_id, start, end), load, rows=_rows(start, end), repeatable=True, replica=True
        )

    async def _in_buckets(self, tag: Tag, name: str, request: Any, load: LoadMany) -> Reply:
        """Return a period's figures by bucket, cached under `name`, the bucket and the period."""
        start, end = period(request)
        bucket = pb.TimeBucket.Name(request.bucket or pb.TIME_BUCKET_DAY).removeprefix("TIME_BUCKET_").lower()
        key = tag.key(name, bucket, _compact(start), _compact(end))
        buckets = Buckets(request.salon_id, start, end, bucket)
        return await self.cache.get_batched(key, buckets, load, rows=_rows(start, end), repeatable=True, replica=True)


def build(cache: Cache, database: Database) -> Service:
    """Return the service for a server."""
    stats = StatsService(cache)
    return Service(
        descriptor=pb.DESCRIPTOR.services_by_name["StatsService"],
        servicer=stats,
        add=stats_pb2_grpc.add_StatsServiceServicer_to_server,
        salon_tags=stats.tags.of_salon,
    )


def _rows(start: datetime, end: datetime) -> int:
    """Return the weight of a period in a batch, in rows: a month takes a sixteenth of a statement, a year all of it."""
    return 2 + (end - start).days


def _compact(time: datetime) -> str:
    """Return a time without colons, which separate the parts of a key."""
    return time.strftime("%Y%m%dT%H%M%S.%f")
