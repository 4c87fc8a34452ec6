"""Callers with identities: tokens and the keys they are signed with, certificates, and policies."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import jwt
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from libs.server.auth.methods import SALON_FIELDS
from tests.hostile import Rpc, rpcs
from tests.stack import SALON, Connect, Failure, Stack, read_failure, running

AUDIENCE = "parlor-test"
ISSUER = "https://issuer.test"
# Callers of a policy that lets `admin` do everything, and others something.
POLICY = f"""
[callers.admin]
methods = ["booking:*", "messaging:*", "stats:*", "ops:*"]
salons = ["*"]
[callers.nothing]
methods = []
salons = ["*"]
[callers.elsewhere]
methods = ["booking:*", "messaging:*", "stats:*", "ops:*"]
salons = ["salon-9"]
[callers.owner]
methods = ["booking:*", "messaging:*", "stats:*", "ops:*"]
salons = ["{SALON}", "salon-2"]
[callers.reader]
methods = ["read"]
salons = ["*"]
"""


class Issuer:
    """Signs tokens; `jwks` are the public keys."""

    def __init__(self) -> None:
        """Make a key for each algorithm."""
        self.keys: dict[str, Any] = {
            "RS256": rsa.generate_private_key(65537, 2048),
            "ES256": ec.generate_private_key(ec.SECP256R1()),
            "EdDSA": ed25519.Ed25519PrivateKey.generate(),
        }
        self.kids = {algorithm: algorithm for algorithm in self.keys}

    def jwks(self) -> dict[str, Any]:
        """Return the JWKS of the keys, and of one that is for no signature of ours."""
        secret = {"kty": "oct", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA", "alg": "HS256", "kid": "HS256"}
        return {"keys": [secret, *(self._public(algorithm) for algorithm in self.keys)]}

    def _public(self, algorithm: str) -> dict[str, Any]:
        kind = jwt.get_algorithm_by_name(algorithm)
        public: Any = kind.to_jwk(self.keys[algorithm].public_key(), as_dict=True)
        return {**public, "alg": algorithm, "use": "sig", "kid": self.kids[algorithm]}

    def token(self, caller: str = "admin", algorithm: str = "ES256", lives: float = 600, **claims: Any) -> str:
        """Return a token; a claim of None is left out."""
        now = time.time()
        made = {"sub": caller, "aud": AUDIENCE, "iss": ISSUER, "exp": now + lives, "nbf": now - 5, **claims}
        made = {name: value for name, value in made.items() if value is not None}
        headers = {"kid": self.kids[algorithm]}
        # Not jwt.encode, which refuses some claims.
        return jwt.PyJWS().encode(json.dumps(made).encode(), self.keys[algorithm], algorithm, headers)


def jwt_settings(folder: Path, issuer: Issuer, policy: str = POLICY) -> dict[str, Any]:
    """Write the files of a server that takes tokens; return its settings."""
    (folder / "policy.toml").write_text(policy)
    (folder / "jwks.json").write_text(json.dumps(issuer.jwks()))
    return {
        "auth_mode": "jwt",
        "auth_policy": folder / "policy.toml",
        "auth_jwks": str(folder / "jwks.json"),
        "auth_audience": AUDIENCE,
        "auth_issuer": ISSUER,
        "audit_log": folder / "audit.log",
    }


class _AddMetadata:
    def __init__(self, *metadata: tuple[str, str]) -> None:
        self._metadata = metadata

    def _with(self, details: Any) -> Any:
        return details._replace(metadata=grpc.aio.Metadata(*(details.metadata or ()), *self._metadata))


class _AddToUnary(_AddMetadata, grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(
        self, continuation: Callable[[Any, Any], Awaitable[Any]], client_call_details: Any, request: Any
    ) -> Any:
        return await continuation(self._with(client_call_details), request)


class _AddToStream(_AddMetadata, grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(
        self, continuation: Callable[[Any, Any], Any], client_call_details: Any, request: Any
    ) -> Any:
        return await continuation(self._with(client_call_details), request)


def bearer(token: str, credentials: grpc.ChannelCredentials | None = None) -> Connect:
    """Return a function that opens a channel whose calls carry a token."""
    metadata = ("authorization", f"Bearer {token}")
    interceptors: list[Any] = [_AddToUnary(metadata), _AddToStream(metadata)]
    if credentials is None:
        return lambda address: grpc.aio.insecure_channel(address, interceptors=interceptors)
    return lambda address: grpc.aio.secure_channel(address, credentials, interceptors=interceptors)


def client_certificate(authority: trustme.CA, *names: str) -> trustme.LeafCert:
    """Issue a certificate for names: URIs contain `://`, others are DNS names. trustme makes none with URIs."""
    issued = authority.issue_cert("client.test", common_name="admin")
    before = x509.load_pem_x509_certificate(issued.cert_chain_pems[0].bytes())
    builder = x509.CertificateBuilder(before.issuer, before.subject, before.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(before.not_valid_before_utc).not_valid_after(before.not_valid_after_utc)
    if names:
        listed = [x509.UniformResourceIdentifier(name) if "://" in name else x509.DNSName(name) for name in names]
        builder = builder.add_extension(x509.SubjectAlternativeName(listed), critical=False)
    key: Any = load_pem_private_key(authority.private_key_pem.bytes(), None)
    made = builder.sign(key, SHA256()).public_bytes(Encoding.PEM)
    return trustme.LeafCert(issued.private_key_pem.bytes(), made, [])


def credentials(authority: trustme.CA, issued: trustme.LeafCert | None = None) -> grpc.ChannelCredentials:
    """Return the credentials of a client, with a certificate or without."""
    root = authority.cert_pem.bytes()
    if issued is None:
        return grpc.ssl_channel_credentials(root)
    chain = b"".join(pem.bytes() for pem in issued.cert_chain_pems)
    return grpc.ssl_channel_credentials(root, issued.private_key_pem.bytes(), chain)


def named_salons(request: Message) -> list[tuple[Message, str]]:
    """Return the fields of a request that name salons, also nested ones that are set: their message and name."""
    found = []
    for field in request.DESCRIPTOR.fields:
        value: Any = getattr(request, field.name)
        if field.name in SALON_FIELDS:
            found.append((request, field.name))
        elif field.message_type is not None:
            for part in value if field.is_repeated else [value] if request.HasField(field.name) else []:
                found += named_salons(part)
    return found


def rename(request: Message, salon_id: str) -> bool:
    """Put another salon in place of one that a request names; return False if it names none."""
    fields = named_salons(request)
    for message, name in fields[-1:]:
        if message.DESCRIPTOR.fields_by_name[name].is_repeated:
            getattr(message, name).append(salon_id)
        else:
            setattr(message, name, salon_id)
    return bool(fields)


def fields_of(kind: Descriptor, within: Mapping[str, Descriptor] | None = None) -> list[Any]:
    """Return all fields of a message and of its messages."""
    within = {**(within or {}), kind.full_name: kind}
    found = []
    for field in kind.fields:
        found.append(field)
        if field.message_type is not None and field.message_type.full_name not in within:
            found += fields_of(field.message_type, within)
    return found


@asynccontextmanager
async def with_tokens(
    database_url: str, redis_url: str, folder: Path, issuer: Issuer, policy: str = POLICY, messaging: str = "admin"
) -> AsyncIterator[Stack]:
    """Run the services for callers with tokens; the stubs are `admin`, and booking knows messaging as `messaging`."""
    (folder / "token").write_text(issuer.token(messaging))
    async with running(
        database_url,
        redis_url,
        server=jwt_settings(folder, issuer, policy),
        messaging={"booking_token_file": folder / "token"},
        connect=bearer(issuer.token("admin")),
    ) as stack:
        yield stack


class Callers:
    """The RPCs of a service as each caller calls them: one channel each."""

    def __init__(self, stack: Stack, issuer: Issuer, name: str) -> None:
        """Open no channel yet."""
        self._stack, self._issuer, self._name = stack, issuer, name
        self._exits = AsyncExitStack()
        self._rpcs: dict[str, dict[str, Rpc]] = {}

    async def __aenter__(self) -> Callers:
        """Begin."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the channels."""
        await self._exits.aclose()

    async def outcome(self, caller: str, method: str, request: Message) -> Failure | None:
        """Return the error of a call, None if it was answered. The caller "" has no identity."""
        if caller not in self._rpcs:
            server = self._stack.servers[self._name]
            connect = bearer(self._issuer.token(caller)) if caller else grpc.aio.insecure_channel
            channel, ops = [
                await self._exits.enter_async_context(connect(f"127.0.0.1:{port}"))
                for port in (server.port, server.ops_port)
            ]
            self._rpcs[caller] = {rpc.method.full_name: rpc for rpc in rpcs(self._name, channel, ops)}
        async with asyncio.timeout(30):
            while True:
                try:
                    await self._rpcs[caller][method].call(request.SerializeToString())
                except grpc.aio.AioRpcError as error:
                    if error.code() == grpc.StatusCode.UNAVAILABLE:
                        continue  # on a busy machine Redis may time out
                    return read_failure(error)
                return None
