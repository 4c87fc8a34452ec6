"""Count the functions of ours that one RPC runs: `python -m tools.call_path` prints a table for docs/life-of-an-rpc.md.

The services run in this process. Each RPC is called a few times to warm up, then a few times under sys.setprofile. A
function counts once, however often it runs, if each of these calls runs it. So functions that run on a timer don't
count, but those that run within 0.1 s after the reply do. The HTTP/2 transport (libs/http2) is counted separately.
"""

import asyncio
import hashlib
import hmac
import json
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import grpc
import typer

from libs.cache import Cache, CacheSettings
from libs.db import Database, DatabaseSettings
from libs.server import ServerSettings, serve
from ops.migrate import migrate, service_url
from ops.servers import Postgres, Valkey
from parlor.booking.v1 import booking_pb2, booking_pb2_grpc
from parlor.messaging.v1 import messaging_pb2, messaging_pb2_grpc
from services.booking.service import build as build_booking
from services.messaging.service import build as build_messaging
from services.messaging.settings import MessagingSettings
from services.namespaces import NAMESPACES

ROOT = Path(__file__).parents[1]
OURS = tuple(f"{ROOT / name}/" for name in ("libs", "services"))
SECRET = "s" * 32
WARM_UP = 5
CALLS = 5

Call = Callable[[int], Awaitable[Any]]
Function = tuple[str, int, str]  # file, line, name


async def functions_of(call: Call) -> set[Function]:
    """Return the functions that each of several calls runs."""
    seen: set[Function] = set()

    def note(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(OURS):
            seen.add((code.co_filename.removeprefix(f"{ROOT}/"), code.co_firstlineno, code.co_name))

    runs = []
    for number in range(WARM_UP + CALLS):
        await asyncio.sleep(0.3)
        seen.clear()
        sys.setprofile(note)
        try:
            await call(number)
            await asyncio.sleep(0.1)
        finally:
            sys.setprofile(None)
        runs.append(seen.copy())
    return set.intersection(*runs[WARM_UP:])


@asynccontextmanager
async def calls(folder: Path) -> AsyncIterator[dict[str, Call]]:
    """Serve booking and messaging until the block ends; yield a call of each kind."""
    async with AsyncExitStack() as stack:
        postgres = stack.enter_context(Postgres(folder / "postgres"))
        valkey = stack.enter_context(Valkey(data=folder / "valkey"))
        migrate(postgres.dsn)
        settings = ServerSettings(host="127.0.0.1", port=0, metrics_port=None, _cli_parse_args=False)
        addresses: dict[str, str] = {}
        for name in ("booking", "messaging"):
            database = Database(DatabaseSettings(url=service_url(postgres.dsn, f"parlor_{name}")), f"parlor-{name}")
            cache = Cache(CacheSettings(url=valkey.url), database.connection, bytes, NAMESPACES)
            if name == "booking":
                service = build_booking(cache, database)
            else:
                own = MessagingSettings(whatsapp_app_secret=SECRET, booking_address=addresses["booking"])
                service = build_messaging(cache, database, own)
            server = await stack.enter_async_context(serve(settings, database, cache, service))
            addresses[name] = f"127.0.0.1:{server.port}"
        channels = [
            await stack.enter_async_context(grpc.aio.insecure_channel(address)) for address in addresses.values()
        ]
        yield await prepared(
            booking_pb2_grpc.BookingServiceStub(channels[0]), messaging_pb2_grpc.MessagingServiceStub(channels[1])
        )


async def prepared(booking: Any, messaging: Any) -> dict[str, Call]:
    """Create the salon and the bookings that the calls name; return the calls."""
    salon = booking_pb2.Salon(
        salon_id="s1", phone_number_id="100", name="Salon", time_zone="Europe/Berlin", region_code="DE"
    )
    for day in range(1, 8):
        salon.opening_hours.add(day_of_week=day, open_time={}, close_time={"hours": 24})
    await booking.UpsertSalon(booking_pb2.UpsertSalonRequest(salon=salon))
    chair: dict[str, Any] = {"salon_id": "s1", "resource_id": "chair-1", "name": "Chair"}
    await booking.UpsertResource(booking_pb2.UpsertResourceRequest(**chair))
    tomorrow = datetime.now(UTC) + timedelta(days=1)

    def create(number: int) -> Any:
        start = tomorrow + timedelta(hours=number)
        fields: dict[str, Any] = {"customer_name": "Kim", "start_time": start, "end_time": start + timedelta(hours=1)}
        fields |= {"salon_id": "s1", "resource_id": "chair-1", "customer_phone": "+4915112345678"}
        return booking.CreateBooking(booking_pb2.CreateBookingRequest(**fields))

    codes = [(await create(100 + number)).booking_code for number in range(WARM_UP + CALLS)]

    def read(number: int) -> Any:
        return booking.GetBookingByCode(booking_pb2.GetBookingByCodeRequest(salon_id="s1", booking_code=codes[number]))

    def ingest(number: int) -> Any:
        now = str(int(datetime.now(UTC).timestamp()))
        text = {"type": "text", "text": {"body": "Hello"}}
        message = {"from": "4915112345678", "id": f"wamid.{number}", "timestamp": now, **text}
        value = {"messaging_product": "whatsapp", "metadata": {"phone_number_id": "100"}, "messages": [message]}
        body = json.dumps({"entry": [{"id": "1", "changes": [{"field": "messages", "value": value}]}]}).encode()
        signature = "sha256=" + hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
        return messaging.IngestWebhook(messaging_pb2.IngestWebhookRequest(payload=body, signature=signature))

    return {
        "cached read (GetBookingByCode)": lambda _: read(0),
        "cold read (GetBookingByCode)": read,
        "CreateBooking": create,
        "webhook body of one message (IngestWebhook)": ingest,
    }


async def table(*, names: bool) -> str:
    """Return the table, with the names of the functions if they are wanted."""
    lines = ["| RPC | functions | files | transport's functions | files |", "|---|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        async with calls(Path(folder)) as found:
            for title, call in found.items():
                seen = await functions_of(call)
                transport = {(file, line, name) for file, line, name in seen if file.startswith("libs/http2/")}
                groups = seen - transport, transport
                cells = [count for group in groups for count in (len(group), len({file for file, *_ in group}))]
                lines.append(f"| {title} | {' | '.join(map(str, cells))} |")
                if names:
                    lines += [f"  {file}:{line} {name}" for file, line, name in sorted(seen)]
    return "\n".join(lines)


def main(names: Annotated[bool, typer.Option("--names", help="List the functions under each row.")] = False) -> None:
    """Print the table."""
    print(asyncio.run(table(names=names)))


if __name__ == "__main__":
    typer.run(main)
