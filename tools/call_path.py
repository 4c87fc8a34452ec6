"""Count the functions of ours that one RPC runs: `python -m tools.call_path` prints a table for docs/life-of-an-rpc.md.

The services run in this process on servers of their own. Each RPC is made a few times to warm up, then a few times
under sys.setprofile. A function counts once per call, however often it runs, if every call ran it: what runs on a timer
does not. What runs behind the reply within 0.1 s counts. The HTTP/2 transport (libs/http2) has columns of its own.
"""

import argparse
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
from types import CodeType, FrameType
from typing import Any

import grpc

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


async def functions_of(call: Call) -> set[CodeType]:
    """Return the functions that each of several calls runs."""
    for number in range(WARM_UP):
        await call(number)
    runs = []
    for number in range(WARM_UP, WARM_UP + CALLS):
        await asyncio.sleep(0.3)
        seen: set[CodeType] = set()

        def note(frame: FrameType, event: str, _: Any, seen: set[CodeType] = seen) -> None:
            if event == "call" and frame.f_code.co_filename.startswith(OURS):
                seen.add(frame.f_code)

        sys.setprofile(note)
        try:
            await call(number)
            await asyncio.sleep(0.1)
        finally:
            sys.setprofile(None)
        runs.append(seen)
    return set.intersection(*runs)


def file_of(code: CodeType) -> str:
    """Return the file that a function stands in, relative to the root of the tree."""
    return code.co_filename.removeprefix(f"{ROOT}/")


def webhook(number: int) -> bytes:
    """Return a body with one message."""
    message = {
        "from": "4915112345678",
        "id": f"wamid.{number}",
        "timestamp": str(int(datetime.now(UTC).timestamp())),
        "type": "text",
        "text": {"body": "Hello"},
    }
    value = {"messaging_product": "whatsapp", "metadata": {"phone_number_id": "100"}, "messages": [message]}
    return json.dumps({"entry": [{"id": "1", "changes": [{"field": "messages", "value": value}]}]}).encode()


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
        booking: Any = booking_pb2_grpc.BookingServiceStub(
            await stack.enter_async_context(grpc.aio.insecure_channel(addresses["booking"]))
        )
        messaging: Any = messaging_pb2_grpc.MessagingServiceStub(
            await stack.enter_async_context(grpc.aio.insecure_channel(addresses["messaging"]))
        )
        yield await prepared(booking, messaging)


async def prepared(booking: Any, messaging: Any) -> dict[str, Call]:
    """Make the salon that the calls name; return the calls."""
    salon = booking_pb2.Salon(
        salon_id="s1", phone_number_id="100", name="Salon", time_zone="Europe/Berlin", region_code="DE"
    )
    await booking.UpsertSalon(booking_pb2.UpsertSalonRequest(salon=salon))
    start = datetime(2030, 1, 1, tzinfo=UTC)
    codes = []

    async def create(number: int) -> Any:
        request = booking_pb2.CreateBookingRequest(
            salon_id="s1", customer_phone="+4915112345678", customer_name="Kim", resource_id="chair-1"
        )
        request.start_time.FromDatetime(start + timedelta(hours=number))
        request.end_time.FromDatetime(start + timedelta(hours=number + 1))
        codes.append((await booking.CreateBooking(request)).booking_code)

    for number in range(100, 120):
        await create(number)

    def read(number: int, **metadata: str) -> Any:
        request = booking_pb2.GetBookingByCodeRequest(salon_id="s1", booking_code=codes[number])
        return booking.GetBookingByCode(request, metadata=tuple(metadata.items()))

    def ingest(number: int) -> Any:
        body = webhook(number)
        signature = "sha256=" + hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
        return messaging.IngestWebhook(messaging_pb2.IngestWebhookRequest(payload=body, signature=signature))

    return {
        "cached read (GetBookingByCode)": lambda number: read(0),
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
                transport = {code for code in seen if file_of(code).startswith("libs/http2/")}
                cells = [
                    str(count)
                    for codes in (seen - transport, transport)
                    for count in (len(codes), len(set(map(file_of, codes))))
                ]
                lines.append(f"| {title} | {' | '.join(cells)} |")
                if names:
                    lines += sorted(f"  {file_of(code)}:{code.co_firstlineno} {code.co_name}" for code in seen)
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", action="store_true", help="list the functions under each row")
    print(asyncio.run(table(names=parser.parse_args().names)))


if __name__ == "__main__":
    main()
