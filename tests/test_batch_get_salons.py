"""BatchGetSalons: many salons by id, one MGET and one statement."""

import asyncio

import grpc

from parlor.booking.v1 import booking_pb2 as pb
from tests.stack import Stack, cached, executed, failure, quiet, running, salon, warm


def batch(*salon_ids: str) -> pb.BatchGetSalonsRequest:
    return pb.BatchGetSalonsRequest(salon_ids=salon_ids)


async def test_salons_come_in_the_order_of_the_ids_with_one_statement(database_url: str, redis_url: str) -> None:
    async with quiet(database_url, redis_url) as stack:
        names = [f"salon-{number}" for number in range(12)]
        salons = {name: await salon(stack, name) for name in names}
        await stack.booking.BatchGetSalons(batch(*names[:10]))  # creates the records of their tags
        await stack.servers["booking"].cache.settle()
        await warm(stack.booking.GetSalon, pb.GetSalonRequest(salon_id="salon-3"))
        await warm(stack.booking.BatchGetSalons, batch(*names[:5]))
        wanted = ["salon-7", "salon-3", "salon-1", "salon-7", "salon-9", "salon-3"]  # some hits, some misses
        request = pb.UpsertSalonRequest(salon=pb.Salon())
        for name in ("salon-7", "salon-9"):
            request.salon.CopyFrom(salons[name])
            request.salon.name = "New"
            request.salon.etag = ""
            salons[name] = await stack.booking.UpsertSalon(request)
        before = await executed(stack, "booking")
        reply, source = await cached(stack.booking.BatchGetSalons(batch(*wanted)))
        assert (list(reply.salons), source) == ([salons[name] for name in wanted], "miss")
        assert await executed(stack, "booking") == before + 1
        assert list((await warm(stack.booking.BatchGetSalons, batch(*wanted))).salons) == list(reply.salons)
        assert await warm(stack.booking.GetSalon, pb.GetSalonRequest(salon_id="salon-9")) == salons["salon-9"]
        assert await executed(stack, "booking") == before + 1


async def test_the_error_names_the_first_id_without_a_salon_and_its_absence_is_cached(stack: Stack) -> None:
    await salon(stack)
    request = batch("salon-1", "salon-3", "salon-2")
    for _ in range(2):
        error = await failure(stack.booking.BatchGetSalons(request))
        assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "SALON_NOT_FOUND")
        assert "salon-3" in error.message
    await salon(stack, "salon-2")
    third = await salon(stack, "salon-3")
    assert (await stack.booking.BatchGetSalons(request)).salons[1] == third


async def test_a_batch_has_1_to_100_ids(stack: Stack) -> None:
    await salon(stack)
    assert len((await stack.booking.BatchGetSalons(batch(*["salon-1"] * 100))).salons) == 100
    for salon_ids in ([], ["salon-1"] * 101):
        assert (await failure(stack.booking.BatchGetSalons(batch(*salon_ids)))).fields == ["salon_ids"]
    assert (await failure(stack.booking.BatchGetSalons(batch("a b")))).fields == ["salon_ids[0]"]


async def test_without_redis_and_with_no_cache_a_batch_is_loaded(database_url: str, redis_url: str) -> None:
    async with running(database_url, "redis://127.0.0.1:1") as stack:
        one = await salon(stack)
        assert await cached(stack.booking.BatchGetSalons(batch("salon-1"))) == (
            pb.BatchGetSalonsResponse(salons=[one]),
            "bypass",
        )
    async with running(database_url, redis_url) as stack:
        await warm(stack.booking.BatchGetSalons, batch("salon-1"))
        call = stack.booking.BatchGetSalons(batch("salon-1"), metadata=(("cache-control", "no-cache"),))
        assert (await cached(call))[1] == "bypass"


async def test_no_batch_misses_an_acknowledged_write(stack: Stack) -> None:
    """Readers of both salons repeat while a writer renames them in turn; each acknowledged name must be shown."""
    names = ["salon-1", "salon-2"]
    acknowledged = {name: (await salon(stack, name)).etag for name in names}
    salons = {name: await stack.booking.GetSalon(pb.GetSalonRequest(salon_id=name)) for name in names}
    ending = False
    sources: list[str] = []

    async def read() -> None:
        while not ending:
            before = dict(acknowledged)
            reply, source = await cached(stack.booking.BatchGetSalons(batch(*names)))
            sources.append(source)
            for shown in reply.salons:
                assert int(shown.etag) >= int(before[shown.salon_id])

    async with asyncio.TaskGroup() as tasks:
        for _ in range(3):
            tasks.create_task(read())
        for number in range(40):
            name = names[number % 2]
            salons[name].name, salons[name].etag = f"name {number}", ""
            acknowledged[name] = (await stack.booking.UpsertSalon(pb.UpsertSalonRequest(salon=salons[name]))).etag
        ending = True
    await warm(stack.booking.BatchGetSalons, batch(*names))
    assert {"miss"} <= set(sources)
