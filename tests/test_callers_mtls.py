"""Callers with client certificates, on both transports; and those with a certificate or a token."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme

from parlor.booking.v1 import booking_pb2 as pb
from parlor.booking.v1 import booking_pb2_grpc
from tests.callers import Issuer, bearer, client_certificate, credentials, jwt_settings
from tests.stack import SALON, Stack, failure, message_request, running, salon

BOT = "spiffe://test/bot"
POLICY = f"""
[callers."spiffe://test/admin"]
methods = ["booking:*", "messaging:*", "stats:*", "ops:*"]
salons = ["*"]
[callers."{BOT}"]
methods = ["booking:GetSalon"]
salons = ["{SALON}"]
[callers."dashboard.test"]
methods = ["booking:read"]
salons = ["{SALON}"]
[callers."second.test"]
methods = ["booking:read"]
salons = ["{SALON}"]
[callers.owner]
methods = ["booking:*"]
salons = ["{SALON}"]
"""
GET = pb.GetSalonRequest(salon_id=SALON)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """The CA of servers and clients."""
    return trustme.CA()


def tls_settings(folder: Path, authority: trustme.CA) -> dict[str, Any]:
    """Write the files of a server that takes certificates; return its settings."""
    issued = authority.issue_cert("127.0.0.1", "localhost")
    issued.private_key_pem.write_to_path(folder / "key.pem")
    issued.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    (folder / "policy.toml").write_text(POLICY)
    return {
        "auth_mode": "mtls",
        "auth_policy": folder / "policy.toml",
        "audit_log": folder / "audit.log",
        "tls_cert_file": folder / "cert.pem",
        "tls_key_file": folder / "key.pem",
        "tls_client_ca_file": folder / "ca.pem",
    }


def identity(folder: Path, issued: trustme.LeafCert) -> dict[str, Any]:
    """Write a certificate for messaging; return its settings."""
    issued.private_key_pem.write_to_path(folder / "own-key.pem")
    issued.cert_chain_pems[0].write_to_path(folder / "own-cert.pem")
    return {
        "booking_tls_ca_file": folder / "ca.pem",
        "booking_tls_cert_file": folder / "own-cert.pem",
        "booking_tls_key_file": folder / "own-key.pem",
    }


def secure(given: grpc.ChannelCredentials) -> Callable[[str], grpc.aio.Channel]:
    """Return a function that opens a channel with credentials."""
    return lambda address: grpc.aio.secure_channel(address, given)


async def reason(stack: Stack, connect: Callable[[str], grpc.aio.Channel], salon_id: str = SALON) -> str:
    """Return the reason for which GetSalon fails, "OK" if it does not."""
    async with connect(f"127.0.0.1:{stack.servers['booking'].port}") as channel:
        booking = booking_pb2_grpc.BookingServiceStub(channel)
        call = booking.GetSalon(pb.GetSalonRequest(salon_id=salon_id), timeout=20)
        try:
            await call
        except grpc.aio.AioRpcError as error:
            return "UNAVAILABLE" if error.code() == grpc.StatusCode.UNAVAILABLE else (await failure(call)).reason
        return "OK"


async def test_a_certificate_identifies_its_caller(
    database_url: str, redis_url: str, tmp_path: Path, authority: trustme.CA
) -> None:
    admin = client_certificate(authority, "spiffe://test/admin")
    settings = tls_settings(tmp_path, authority)
    async with running(
        database_url,
        redis_url,
        server=settings,
        messaging=identity(tmp_path, admin),
        connect=secure(credentials(authority, admin)),
    ) as stack:
        await salon(stack)
        await stack.messaging.RecordMessage(message_request())  # messaging asks booking for the salon
        found = {
            names: await reason(stack, secure(credentials(authority, client_certificate(authority, *names))))
            for names in (
                (BOT,),
                ("dashboard.test",),
                ("other.test", "second.test"),
                (BOT, "dashboard.test"),
                (BOT, "https://test/bot"),
                ("spiffe://test/nobody", "dashboard.test"),
                ("https://test/bot",),
                (BOT, "spiffe://test/admin"),
                ("nobody.test",),
                ("spiffe", "test"),
                (),
            )
        }
        assert found == {
            (BOT,): "OK",
            ("dashboard.test",): "OK",
            ("other.test", "second.test"): "OK",
            (BOT, "dashboard.test"): "OK",
            (BOT, "https://test/bot"): "OK",
            ("spiffe://test/nobody", "dashboard.test"): "METHOD_NOT_ALLOWED",  # the URI counts, not the DNS name
            ("https://test/bot",): "UNAUTHENTICATED",
            (BOT, "spiffe://test/admin"): "UNAUTHENTICATED",
            ("nobody.test",): "METHOD_NOT_ALLOWED",
            ("spiffe", "test"): "METHOD_NOT_ALLOWED",
            (): "UNAUTHENTICATED",  # its common name, admin, is no identity
        }
        bot = secure(credentials(authority, client_certificate(authority, BOT)))
        assert await reason(stack, bot, "salon-2") == "SALON_NOT_ALLOWED"
        stranger = trustme.CA()
        assert await reason(stack, secure(credentials(authority, client_certificate(stranger, BOT)))) == "UNAVAILABLE"
        assert await reason(stack, secure(credentials(authority))) == "UNAVAILABLE"
        assert await reason(stack, grpc.aio.insecure_channel) == "UNAVAILABLE"


async def test_a_caller_has_a_token_or_a_certificate_and_the_token_counts(
    database_url: str, redis_url: str, tmp_path: Path, authority: trustme.CA
) -> None:
    issuer, admin = Issuer(), client_certificate(authority, "spiffe://test/admin")
    settings = {**jwt_settings(tmp_path, issuer), **tls_settings(tmp_path, authority), "auth_mode": "mtls,jwt"}
    with_admin = credentials(authority, admin)
    async with running(
        database_url, redis_url, server=settings, messaging=identity(tmp_path, admin), connect=secure(with_admin)
    ) as stack:
        await salon(stack)
        assert await reason(stack, bearer(issuer.token("owner"), with_admin)) == "OK"
        assert await reason(stack, bearer(issuer.token("owner"), with_admin), "salon-2") == "SALON_NOT_ALLOWED"
        assert await reason(stack, bearer(issuer.token("nobody"), with_admin)) == "METHOD_NOT_ALLOWED"
        assert await reason(stack, bearer("nonsense", with_admin)) == "UNAUTHENTICATED"
        if os.environ.get("SERVER_TRANSPORT") != "grpcio":  # which asks every client for a certificate
            without = credentials(authority)
            assert await reason(stack, bearer(issuer.token("owner"), without)) == "OK"
            assert await reason(stack, secure(without)) == "UNAUTHENTICATED"
