"""TLS on both transports: client certificates, what handlers see of them, and changed certificates."""

import asyncio
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from tests.http2.conftest import TRANSPORTS, Serve, Served, method

SPIFFE = "spiffe://test/ns/salon"
RELOAD_SECONDS = 5.0  # 2 s are documented; the machine may be busy


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """The CA of servers and clients."""
    return trustme.CA()


@pytest.fixture(scope="module")
def stranger() -> trustme.CA:
    """An untrusted CA."""
    return trustme.CA()


class Files:
    """The files of a server, and its settings with their paths."""

    def __init__(self, folder: Path, authority: trustme.CA, *, clients: bool = False) -> None:
        """Write the files."""
        self.cert, self.key, self.ca = folder / "cert.pem", folder / "key.pem", folder / "ca.pem"
        self.write(authority)
        authority.cert_pem.write_to_path(self.ca)
        self.settings = {"tls_cert_file": self.cert, "tls_key_file": self.key}
        if clients:
            self.settings["tls_client_ca_file"] = self.ca

    def write(self, authority: trustme.CA) -> bytes:
        """Issue a certificate, as a renewal does; return it as DER."""
        issued = authority.issue_cert("127.0.0.1", "localhost")
        issued.private_key_pem.write_to_path(self.key)
        [chain] = issued.cert_chain_pems
        chain.write_to_path(self.cert)
        return ssl.PEM_cert_to_DER_cert(chain.bytes().decode())


def credentials(authority: trustme.CA, issued: trustme.LeafCert | None = None) -> grpc.ChannelCredentials:
    """Return the credentials of a client."""
    root = authority.cert_pem.bytes()
    if issued is None:
        return grpc.ssl_channel_credentials(root)
    chain = b"".join(pem.bytes() for pem in issued.cert_chain_pems)
    return grpc.ssl_channel_credentials(root, issued.private_key_pem.bytes(), chain)


Connect = Callable[..., Any]


@pytest.fixture
def connect(authority: trustme.CA) -> Connect:
    """Return a channel to a server that is closed after the test."""

    async def channel(served: Served, issued: trustme.LeafCert | None = None, **more: Any) -> Any:
        opened = grpc.aio.secure_channel(served.address, credentials(authority, issued), **more)
        return await served.exits.enter_async_context(opened)

    return channel


async def code(channel: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await method(channel, "Echo")(b"hi", timeout=20)
    return raised.value.code()


async def seen(served: Served, channel: Any) -> tuple[Mapping[str, Any], Any, Any]:
    """Return the handler's view of its client: auth_context, identities, and the key of those."""
    found: list[Any] = []

    async def behavior(request: bytes, context: Any) -> bytes:
        identities = context.peer_identities()
        found.append((context.auth_context(), identities and list(identities), context.peer_identity_key()))
        return request

    served.servicer.behavior = behavior
    await method(channel, "Run")(b"", timeout=20)
    return found[0]  # type: ignore[no-any-return]


async def shown(served: Served) -> bytes:
    """Return the certificate that the server shows to a new connection, as DER."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    _, writer = await asyncio.open_connection("127.0.0.1", served.port, ssl=context)
    certificate: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == "h2"
    writer.transport.abort()
    return certificate


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_client_that_trusts_the_authority_is_served(
    serve: Serve, tmp_path: Path, authority: trustme.CA, connect: Connect, transport: str
) -> None:
    served = await serve(transport, **Files(tmp_path, authority).settings)
    channel = await connect(served)
    assert await method(channel, "Echo")(b"hi", timeout=20) == b"hi"
    large = bytes(3_000_000)
    assert await method(channel, "Echo")(large, timeout=20) == large
    assert [len(each) async for each in method(channel, "Stream")(b"100 10000", timeout=20)] == [10_000] * 100
    context, identities, key = await seen(served, channel)
    assert context["transport_security_type"] == [b"ssl"]
    assert (identities, key) == (None, None)
    plain = await served.channel()
    assert await code(plain) == grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_client_without_a_certificate_of_the_authority_is_unavailable(
    serve: Serve, tmp_path: Path, authority: trustme.CA, stranger: trustme.CA, connect: Connect, transport: str
) -> None:
    served = await serve(transport, **Files(tmp_path, authority, clients=True).settings)
    assert await code(await connect(served)) == grpc.StatusCode.UNAVAILABLE
    assert await code(await connect(served, stranger.issue_cert("client"))) == grpc.StatusCode.UNAVAILABLE
    known = await connect(served, authority.issue_cert("client"))
    assert await method(known, "Echo")(b"hi", timeout=20) == b"hi"


@pytest.mark.parametrize("names", [["client.test"], ["client.test", "10.0.0.1", "a@b.test"], [SPIFFE, "client.test"]])
@pytest.mark.parametrize("common_name", [None, "the client"])
async def test_a_handler_sees_the_client_as_with_grpcio(
    serve: Serve, tmp_path: Path, authority: trustme.CA, connect: Connect, names: list[str], common_name: str | None
) -> None:
    found = {}
    issued = issue(authority, names, common_name)
    for transport in TRANSPORTS:
        folder = tmp_path / transport
        folder.mkdir()
        served = await serve(transport, **Files(folder, authority, clients=True).settings)
        found[transport] = await seen(served, await connect(served, issued))
    (ours, *who), (theirs, *also) = found["http2"], found["grpcio"]
    assert ours.keys() <= theirs.keys()
    assert {name: list(values) for name, values in ours.items()} == {name: theirs[name] for name in ours}
    assert who == also
    assert {"x509_pem_cert", "x509_subject_alternative_name"} <= ours.keys()
    assert ("x509_common_name" in ours) == (common_name is not None)
    assert ("peer_spiffe_id" in ours) == (SPIFFE in names)


def issue(authority: trustme.CA, names: list[str], common_name: str | None) -> trustme.LeafCert:
    """Issue a certificate; one with a URI is made without trustme, which does not support that."""
    issued = authority.issue_cert(*(name for name in names if name != SPIFFE), common_name=common_name)
    if SPIFFE not in names:
        return issued
    before = x509.load_pem_x509_certificate(issued.cert_chain_pems[0].bytes())
    builder = x509.CertificateBuilder(before.issuer, before.subject, before.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(before.not_valid_before_utc).not_valid_after(before.not_valid_after_utc)
    alternative = [x509.UniformResourceIdentifier(SPIFFE), x509.DNSName("client.test")]
    builder = builder.add_extension(x509.SubjectAlternativeName(alternative), critical=True)
    for kind in (x509.AuthorityKeyIdentifier, x509.KeyUsage, x509.ExtendedKeyUsage):
        extension = before.extensions.get_extension_for_class(kind)
        builder = builder.add_extension(extension.value, extension.critical)
    key: Any = load_pem_private_key(authority.private_key_pem.bytes(), None)
    made = builder.sign(key, SHA256()).public_bytes(Encoding.PEM)
    return trustme.LeafCert(issued.private_key_pem.bytes(), made, [])


async def is_shown(served: Served, certificate: bytes) -> bool:
    """Wait until a certificate is shown; return False if it takes too long."""
    for _ in range(int(RELOAD_SECONDS * 10)):
        if await shown(served) == certificate:
            return True
        await asyncio.sleep(0.1)
    return False


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_renewed_certificate_is_shown_to_new_connections_and_old_ones_stay_open(
    serve: Serve, tmp_path: Path, authority: trustme.CA, connect: Connect, transport: str
) -> None:
    files = Files(tmp_path, authority)
    first = ssl.PEM_cert_to_DER_cert(files.cert.read_text())
    served = await serve(transport, **files.settings)
    assert await shown(served) == first
    channel = await connect(served)
    call = method(channel, "Slow")(b"hi", timeout=60)
    await served.servicer.begun.wait()
    second = files.write(authority)
    assert second != first
    assert await is_shown(served, second)
    assert await method(channel, "Echo")(b"hi", timeout=20) == b"hi"
    served.servicer.proceed.set()
    assert await call == b"hi"
    assert await method(await connect(served), "Echo")(b"hi", timeout=20) == b"hi"


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_an_unreadable_certificate_leaves_the_previous_one_in_use(
    serve: Serve, tmp_path: Path, authority: trustme.CA, connect: Connect, transport: str
) -> None:
    files = Files(tmp_path, authority)
    first = ssl.PEM_cert_to_DER_cert(files.cert.read_text())
    served = await serve(transport, **files.settings)
    for spoil in (lambda: files.cert.write_text("nothing"), files.cert.unlink):
        spoil()
        await asyncio.sleep(1.5)  # longer than between two checks
        assert await shown(served) == first
        assert await method(await connect(served), "Echo")(b"hi", timeout=20) == b"hi"
    second = files.write(authority)
    assert await is_shown(served, second)


async def test_a_client_without_alpn_is_not_served(serve: Serve, tmp_path: Path, authority: trustme.CA) -> None:
    served = await serve("http2", **Files(tmp_path, authority).settings)
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port, ssl=context)
    async with asyncio.timeout(10):
        with pytest.raises(ConnectionError):
            while await reader.read(100):
                pass
            raise ConnectionResetError
    writer.transport.abort()
    assert served.server.counters.connections == 0
