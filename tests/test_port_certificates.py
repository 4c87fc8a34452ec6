"""TLS on every port of a service: versions, ciphers, renewed certificates; and to the booking service."""

from __future__ import annotations  # the AsyncStubs exist in the .pyi only

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import pytest
import trustme
from google.protobuf.descriptor import ServiceDescriptor
from pydantic import SecretStr

from libs.cache import Cache, CacheSettings
from libs.db import Database, DatabaseSettings
from libs.server import Server, ServerSettings, serve
from ops.dev_certs import CLIENTS, FolderInUse, write_certificates
from ops.doctor.metrics import read_metrics
from ops.health import credentials, is_serving
from ops.migrate import service_url
from ops.process import free_port
from parlor.booking.v1 import booking_pb2, booking_pb2_grpc
from services.booking.service import build
from services.namespaces import NAMESPACES
from tests.load import until
from tests.locks import SALONS, holding, waiting
from tests.stack import SALON, booking_request

BOOKING: ServiceDescriptor = booking_pb2.DESCRIPTOR.services_by_name["BookingService"]
GET = booking_pb2.GetSalonRequest(salon_id=SALON)
OLD_CIPHERS = ("ECDHE-ECDSA-AES128-SHA256", "ECDHE-ECDSA-AES256-SHA", "AES128-GCM-SHA256")
PORTS = ("main", "ops", "metrics")
# What a client sends first, and what an answer contains. On HTTP/2: the preface and SETTINGS, and their ACK.
SCRAPE = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", b"200 OK"
GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0", b"\0\0\0\4\1\0\0\0\0"

Pair: TypeAlias = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Secured:
    """A booking service with TLS and client certificates on all its ports."""

    def __init__(self, server: Server, metrics_port: int, folder: Path) -> None:
        """Keep where everything is."""
        self.server, self.folder = server, folder
        self.ports = {"main": server.port, "ops": server.ops_port, "metrics": metrics_port}

    def context(self, name: str, client: str | None = "bot") -> ssl.SSLContext:
        """Return how a client speaks TLS to a port."""
        return client_context(self.folder, "http/1.1" if name == "metrics" else "h2", client)

    async def shown(self, name: str, context: ssl.SSLContext | None = None) -> bytes:
        """Return the certificate that a port shows. Raises: OSError."""
        context = context or self.context(name)
        _, writer = await asyncio.open_connection("localhost", self.ports[name], ssl=context)
        certificate: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.transport.abort()
        return certificate

    def channel(self, client: str = "bot") -> Any:
        """Return a channel to the main port."""
        files = [self.folder / f"{client}.{end}" for end in ("pem", "key")]
        return grpc.aio.secure_channel(f"localhost:{self.server.port}", credentials(self.folder / "ca.pem", *files))


def client_context(folder: Path, protocol: str, client: str | None = "bot") -> ssl.SSLContext:
    """Return how a client speaks TLS, with a certificate of a folder or none; `protocol` is that of ALPN."""
    context = ssl.create_default_context(cafile=folder / "ca.pem")
    if client:
        context.load_cert_chain(folder / f"{client}.pem", folder / f"{client}.key")
    context.set_alpn_protocols([protocol])
    return context


@asynccontextmanager
async def secured(folder: Path, database_url: str, redis_url: str) -> AsyncIterator[Secured]:
    """Run the booking service with certificates of a folder."""
    write_certificates(folder)
    metrics_port = free_port()
    files: dict[str, Any] = {
        "tls_cert_file": "server.pem",
        "tls_key_file": "server.key",
        "tls_client_ca_file": "ca.pem",
    }
    settings = ServerSettings(
        ops_port=0, metrics_port=metrics_port, **{name: folder / file for name, file in files.items()}
    )
    url = SecretStr(service_url(database_url, "parlor_booking"))
    pool = Database(DatabaseSettings(url=url, lock_timeout=20_000), "test-booking")  # a call waits for a lock
    cache = Cache(CacheSettings(url=redis_url), pool.connection, bytes, NAMESPACES)
    async with serve(settings, pool, cache, build(cache, pool)) as server:
        yield Secured(server, metrics_port, folder)


@pytest.fixture
async def service(database_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[Secured]:
    """That service; its salon exists."""
    async with secured(tmp_path / "certs", database_url, redis_url) as running, running.channel() as channel:
        salon = booking_pb2.Salon(salon_id=SALON, phone_number_id="1", name="Hair", time_zone="Europe/Berlin")
        stub: Any = booking_pb2_grpc.BookingServiceStub(channel)
        await stub.UpsertSalon(booking_pb2.UpsertSalonRequest(salon=salon))
        yield running


async def answered(service: Secured, name: str, *context: ssl.SSLContext | None) -> bool:
    """Return whether a port answers a client, by default one with a certificate."""
    chosen = context[0] if context else service.context(name)
    request, reply = SCRAPE if name == "metrics" else GREETING
    try:
        reader, writer = await asyncio.open_connection("localhost", service.ports[name], ssl=chosen)
        writer.write(request)
        try:
            await asyncio.wait_for(reader.readuntil(reply), 10)  # with TLS 1.3 a refusal follows the handshake
        finally:
            writer.transport.abort()
    except (OSError, EOFError):
        return False
    return True


async def hello(service: Secured, name: str, sent: int) -> Pair:
    """Open a connection to a port, and send that many bytes of a handshake."""
    outgoing = ssl.MemoryBIO()
    client = service.context(name).wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    reader, writer = await asyncio.open_connection("localhost", service.ports[name])
    writer.write(outgoing.read()[:sent])
    return reader, writer


async def disconnected(pairs: list[Pair], seconds: float) -> None:
    """Wait until the server has ended all connections."""
    try:
        async with asyncio.timeout(seconds):
            for reader, _ in pairs:
                with suppress(ConnectionError):
                    await reader.read()
    finally:
        for _, writer in pairs:
            writer.transport.abort()


@pytest.mark.parametrize("name", PORTS)
async def test_a_client_that_stalls_in_the_handshake_is_disconnected(service: Secured, name: str) -> None:
    await disconnected([await hello(service, name, sent) for sent in (0, 1, 5, 100, 10_000) for _ in range(40)], 20)
    assert await answered(service, name)


async def test_a_client_that_asks_for_no_metrics_is_disconnected(service: Secured) -> None:
    port, context = service.ports["metrics"], service.context("metrics")
    await disconnected([await asyncio.open_connection("localhost", port, ssl=context) for _ in range(40)], 20)
    assert await answered(service, "metrics")


async def test_a_certificate_that_cannot_be_read_is_logged_once_and_the_last_one_stays_in_use(
    service: Secured, caplog: pytest.LogCaptureFixture
) -> None:
    count = 1 if os.environ.get("SERVER_TRANSPORT") == "grpcio" else len(PORTS)  # grpcio logs nothing
    file = service.folder / "server.pem"
    before, used = {name: await service.shown(name) for name in PORTS}, file.read_bytes()
    for content in (None, b"", (service.folder / "bot.pem").read_bytes()):
        caplog.clear()
        file.unlink() if content is None else file.write_bytes(content)
        await until(lambda: len(unread(caplog)) == count)
        await asyncio.sleep(2.5)  # it is tried again every second
        assert len(unread(caplog)) == count
        assert {name: await service.shown(name) for name in PORTS} == before
    caplog.set_level("INFO")
    file.write_bytes(used)
    await until(lambda: caplog.text.count("the certificate was read again") == count)


def unread(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the lines of certificates that can't be read."""
    return [line for line in caplog.messages if line.startswith("the certificate can't be read")]


async def another(service: Secured, name: str, before: bytes) -> None:
    """Wait until a port shows another certificate."""
    async with asyncio.timeout(20):
        while await service.shown(name) == before:
            pass


@pytest.mark.parametrize("name", PORTS)
async def test_a_port_speaks_tls_to_clients_with_a_certificate_only(service: Secured, name: str) -> None:
    assert await answered(service, name)
    stranger = service.context(name, None)
    other_ca = trustme.CA().issue_cert("bot")
    with other_ca.private_key_and_cert_chain_pem.tempfile() as file:
        forged = service.context(name, None)
        forged.load_cert_chain(file)
    for context in (None, stranger, forged):
        assert not await answered(service, name, context)


@pytest.mark.parametrize("name", PORTS)
async def test_old_versions_and_ciphers_are_refused(service: Secured, name: str) -> None:
    def limited(change: Callable[[ssl.SSLContext], None]) -> ssl.SSLContext:
        context = service.context(name)
        change(context)
        return context

    def old_cipher(cipher: str) -> Callable[[ssl.SSLContext], None]:
        def change(context: ssl.SSLContext) -> None:
            context.maximum_version = ssl.TLSVersion.TLSv1_2
            context.set_ciphers(f"{cipher}:@SECLEVEL=0")

        return change

    assert await service.shown(name, limited(old_cipher("ECDHE-ECDSA-AES128-GCM-SHA256")))
    for cipher in OLD_CIPHERS:
        with pytest.raises(OSError):
            await service.shown(name, limited(old_cipher(cipher)))
    old_version = service.context(name)
    old_version.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning):
        old_version.minimum_version = old_version.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(OSError):
        await service.shown(name, old_version)


async def test_a_renewed_certificate_is_shown_on_every_port_without_a_dropped_call(service: Secured) -> None:
    before = {name: await service.shown(name) for name in PORTS}
    url = service.server.database.settings.url.get_secret_value().replace("parlor_booking@", "postgres@")
    async with service.channel() as channel, holding(url, SALONS) as other:
        stub: Any = booking_pb2_grpc.BookingServiceStub(channel)
        call = stub.CreateBooking(booking_request())
        await waiting(other)
        write_certificates(service.folder)
        for name in PORTS:
            await another(service, name, before[name])
        assert len({await service.shown(name) for name in PORTS}) == 1
        await stub.GetSalon(GET)
        await other.rollback()
        assert (await call).salon_id == SALON


async def test_metrics_and_health_answer_over_tls(service: Secured) -> None:
    url = f"https://localhost:{service.ports['metrics']}/metrics"
    assert (await asyncio.to_thread(read_metrics, url, service.context("metrics")))["parlor_db_available"] == 1
    address, ca = f"localhost:{service.server.port}", service.folder / "ca.pem"
    own = credentials(ca, service.folder / "booking.pem", service.folder / "booking.key")
    assert await asyncio.to_thread(is_serving, address, BOOKING.full_name, 2.0, own)
    assert not await asyncio.to_thread(is_serving, address, BOOKING.full_name, 2.0, credentials(ca))
    assert not await asyncio.to_thread(is_serving, address, BOOKING.full_name)


def test_dev_certs_keeps_its_ca_and_protects_keys(tmp_path: Path) -> None:
    written = write_certificates(tmp_path)
    assert [file.stem for file in written] == ["ca", "server", *CLIENTS]
    assert {file.stat().st_mode & 0o777 for file in tmp_path.glob("*.key")} == {0o600}
    before = {file: file.read_bytes() for file in written}
    write_certificates(tmp_path)
    assert [file.stem for file, old in before.items() if file.read_bytes() == old] == ["ca"]


def test_dev_certs_overwrites_no_certificates_of_others(tmp_path: Path) -> None:
    (tmp_path / "server.pem").write_text("mine")
    with pytest.raises(FolderInUse):
        write_certificates(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["server.pem"]
