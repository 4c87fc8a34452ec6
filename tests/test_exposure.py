"""What a service listens on: this machine only, unless there are TLS and identities, and which port serves what."""

from __future__ import annotations  # the AsyncStubs exist in the .pyi only

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from structlog.testing import capture_logs

from libs.server import ServerSettings
from libs.server.exposure import Exposed, check_exposure, is_loopback, shows_reflection
from libs.server.secret_files import read_secret_files
from ops.dev_certs import write_certificates
from parlor.booking.v1 import booking_pb2, booking_pb2_grpc
from parlor.ops.v1 import ops_pb2, ops_pb2_grpc
from tests.stack import SALON, Stack, running
from tests.test_processes import STARTING, fail_to_start

BEYOND = ["0.0.0.0", "::", "[::]", "10.0.0.7", "2001:db8::1", "db.example.org", "127.0.0.1.example.org"]  # noqa: S104
SECRETS = ("DATABASE_URL", "REDIS_URL", "CACHE_KEY", "WHATSAPP_APP_SECRET")


@pytest.fixture
def tls(tmp_path: Path) -> dict[str, Any]:
    """The settings of a server with TLS and client certificates."""
    write_certificates(tmp_path)
    return {
        "tls_cert_file": tmp_path / "server.pem",
        "tls_key_file": tmp_path / "server.key",
        "tls_client_ca_file": tmp_path / "ca.pem",
    }


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "::1", "[::1]", "localhost", "unix:/tmp/booking"])
def test_a_loopback_address_needs_neither_tls_nor_identities(host: str) -> None:
    assert is_loopback(host)
    check_exposure(ServerSettings(host=host, ops_host=host, ops_port=0, metrics_port=0))


def test_the_default_addresses_are_loopback() -> None:
    assert is_loopback(ServerSettings().host) and is_loopback(ServerSettings().ops_host)


@pytest.mark.parametrize("host", BEYOND)
def test_an_address_beyond_this_machine_is_refused_without_tls_and_identities(host: str, tls: dict[str, Any]) -> None:
    with pytest.raises(Exposed, match="without TLS_CERT_FILE and TLS_KEY_FILE and without AUTH_MODE; set these"):
        check_exposure(ServerSettings(host=host))
    with pytest.raises(Exposed, match="without AUTH_MODE;"):
        check_exposure(ServerSettings(host=host, **tls))
    for settings in (ServerSettings(ops_host=host, ops_port=0), ServerSettings(ops_host=host, metrics_port=0)):
        with pytest.raises(Exposed, match=r"^OPS_HOST="):
            check_exposure(settings)
    check_exposure(ServerSettings(ops_host=host))  # nothing listens there


@pytest.mark.parametrize("host", BEYOND)
def test_with_tls_and_identities_any_address_will_do(host: str, tls: dict[str, Any]) -> None:
    with capture_logs() as logged:
        check_exposure(ServerSettings(host=host, **tls, auth_mode="mtls", auth_policy=Path("policy.toml")))
    assert logged == []


def test_with_allow_insecure_each_start_logs_a_warning() -> None:
    with capture_logs() as logged:
        check_exposure(ServerSettings(host="::", allow_insecure=True))
    [line] = logged
    assert line["log_level"] == "warning"
    assert "HOST=:: is reachable from other machines" in line["reason"]


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("WHATSAPP_APP_SECRET", "parlor-dev"),
        ("WHATSAPP_APP_SECRET", "d7a1e5, parlor-dev"),
        ("CACHE_KEY", "changeme"),
        ("DATABASE_URL", "postgresql://parlor_booking:parlor%2Ddev@db/parlor?sslmode=verify-full"),
        ("DATABASE_URL", "host=db user=postgres password=postgres"),
        ("DATABASE_URL", "postgresql://parlor_booking@db/parlor?sslmode=verify-full&password=parlor%2Ddev"),
        ("DATABASE_URL", "postgresql://db/parlor?pool_size=4&password=postgres&user=postgres"),
        ("DATABASE_URL", "postgresql:///parlor?host=a,b&password=postgres"),
        ("REDIS_URL", "rediss://parlor:password@redis:6379/0"),
        ("REDIS_URL", "rediss://redis:6379/0?db=1&password=password"),
        ("WHATSAPP_APP_SECRET", "a://[b, parlor-dev"),
        ("WHATSAPP_APP_SECRET", "a=b, parlor-dev"),
        ("WHATSAPP_APP_SECRET", "a://b:c@d, parlor-dev"),
    ],
)
def test_a_known_secret_is_refused_beyond_this_machine(variable: str, value: str, tls: dict[str, Any]) -> None:
    settings = ServerSettings(host="::", allow_insecure=True, **tls)
    with pytest.raises(Exposed, match=f"{variable} has a known development secret") as raised:
        check_exposure(settings, SECRETS, {variable: value})
    assert value not in str(raised.value)
    check_exposure(ServerSettings(), SECRETS, {variable: value})


@pytest.mark.parametrize("changed", [{"HOST": "0.0.0.0"}, {"OPS_HOST": "::", "OPS_PORT": "0"}])  # noqa: S104
def test_a_service_that_would_be_exposed_ends_with_one_line(changed: dict[str, str]) -> None:
    code, output = fail_to_start("booking", {**STARTING, **changed})
    assert code == 2
    assert output.startswith(f"booking: {next(iter(changed))}=")
    assert output.count("\n") == 1


@pytest.mark.parametrize("secret", ["a://[b", "a://[::1]b:c@d", "=", "a='", "a=b c", "%", "://", "user=\u2100://["])
def test_a_secret_of_any_form_may_be_used_beyond_this_machine(secret: str, tls: dict[str, Any]) -> None:
    settings = ServerSettings(host="::", **tls, auth_mode="mtls", auth_policy=Path("policy.toml"))
    check_exposure(settings, SECRETS, dict.fromkeys(SECRETS, secret))


@pytest.mark.parametrize("host", BEYOND)
def test_metrics_beyond_this_machine_need_client_certificates(host: str, tls: dict[str, Any]) -> None:
    identities = {"auth_policy": Path("policy.toml"), "auth_jwks": "keys.json", "auth_audience": "parlor"}
    without_ca = {name: file for name, file in tls.items() if name != "tls_client_ca_file"}
    tokens_only = {**identities, **without_ca, "auth_mode": "jwt"}
    with pytest.raises(Exposed, match="without TLS_CLIENT_CA_FILE, which METRICS_PORT needs;"):
        check_exposure(ServerSettings(ops_host=host, metrics_port=0, **tokens_only))
    check_exposure(ServerSettings(host=host, metrics_port=0, **tokens_only))
    check_exposure(ServerSettings(host=host, ops_host=host, ops_port=0, **tokens_only))
    for mode in ("jwt", "mtls", "mtls,jwt"):
        used = identities if mode != "mtls" else {"auth_policy": Path("policy.toml")}
        check_exposure(ServerSettings(ops_host=host, metrics_port=0, **used, **tls, auth_mode=mode))


async def test_only_the_ops_port_serves_ops_service(stack: Stack) -> None:
    requests = {
        "main": (stack.channel, ops_pb2_grpc.OpsServiceStub, "GetDatabaseMetrics", ops_pb2.GetDatabaseMetricsRequest()),
        "ops": (
            stack.ops_channel,
            booking_pb2_grpc.BookingServiceStub,
            "GetSalon",
            booking_pb2.GetSalonRequest(salon_id=SALON),
        ),
    }
    for channel, stub, method, request in requests.values():
        async with channel("booking") as opened:
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await getattr(stub(opened), method)(request)
            assert error.value.code() == grpc.StatusCode.UNIMPLEMENTED


async def test_without_an_ops_port_ops_service_is_not_served(database_url: str, redis_url: str) -> None:
    async with running(database_url, redis_url, server={"ops_port": None}) as stack:
        assert [server.ops_port for server in stack.servers.values()] == [0, 0, 0]


@pytest.mark.parametrize("shown", [True, False])
async def test_reflection_is_on_the_main_port_only_if_it_is_set(database_url: str, redis_url: str, shown: bool) -> None:
    def services(port: int) -> Any:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            return set(ProtoReflectionDescriptorDatabase(channel).get_services())

    async with running(database_url, redis_url, server={"reflection": shown}) as stack:
        server = stack.servers["booking"]
        assert "parlor.booking.v1.BookingService" in await asyncio.to_thread(services, server.ops_port)
        if shown:
            assert await asyncio.to_thread(services, server.port)
        else:
            with pytest.raises(grpc.RpcError) as error:
                await asyncio.to_thread(services, server.port)
            assert error.value.code() == grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize(("mode", "shown"), [("none", True), ("mtls", False), ("jwt", False), ("mtls,jwt", False)])
def test_by_default_reflection_is_for_callers_without_identity(mode: Any, shown: bool) -> None:
    assert shows_reflection(ServerSettings.model_construct(auth_mode=mode)) is shown


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_secret_may_be_in_a_file(tmp_path: Path, end: str) -> None:
    file = tmp_path / "key"
    file.write_bytes(f"of 20 characters, or so{end}".encode())
    environ = {"CACHE_KEY_FILE": str(file), "TLS_CERT_FILE": "/no/such"}
    read_secret_files(SECRETS, environ)
    assert environ == {"CACHE_KEY": "of 20 characters, or so", "TLS_CERT_FILE": "/no/such"}


@pytest.mark.parametrize(
    ("content", "more", "message"),
    [
        (None, {}, "REDIS_URL_FILE: can't read .*: No such file"),
        (b"", {}, "REDIS_URL_FILE: .* is empty"),
        (b"\n", {}, "REDIS_URL_FILE: .* is empty"),
        (b"\xff", {}, "REDIS_URL_FILE: can't read .*: it is not text"),
        (b"redis://x", {"REDIS_URL": "redis://y"}, "REDIS_URL and REDIS_URL_FILE are both set"),
    ],
)
def test_a_bad_secret_file_is_named(tmp_path: Path, content: bytes | None, more: dict[str, str], message: str) -> None:
    file = tmp_path / "url"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_secret_files(SECRETS, {"REDIS_URL_FILE": str(file), **more})


def test_a_service_reads_its_secrets_from_files(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("mysql://parlor:hush-hush@127.0.0.1/parlor\n")
    environment = {**STARTING, "DATABASE_URL": "", "DATABASE_URL_FILE": str(file)}
    code, output = fail_to_start("booking", environment)
    assert (code, output) == (2, "booking: DATABASE_URL is not a connection string of Postgres\n")
