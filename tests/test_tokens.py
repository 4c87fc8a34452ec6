"""Bearer tokens: what makes one valid, and keys that change."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from libs.server import RpcError
from libs.server.auth import AuthSettings
from libs.server.auth import tokens as tokens_module
from libs.server.auth.tokens import KeysError, Tokens
from tests.callers import AUDIENCE, Issuer, jwt_settings


@pytest.fixture
async def tokens(tmp_path: Path, issuer: Issuer) -> Tokens:
    """A reader of the issuer's tokens."""
    made = Tokens(AuthSettings(**jwt_settings(tmp_path, issuer)), lambda: None)
    await made.refresh()
    return made


async def refusal(tokens: Tokens, token: str) -> str:
    """Return why a token is refused."""
    with pytest.raises(RpcError) as raised:
        await tokens.claims(token)
    assert raised.value.reason == "UNAUTHENTICATED"
    return raised.value.message.removeprefix("the caller is not known: ")


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
async def test_each_algorithm_is_verified(tokens: Tokens, issuer: Issuer, algorithm: str) -> None:
    token = issuer.token("bot", algorithm, salons=["salon-1"])
    claims = await tokens.claims(token)
    assert (claims.caller, claims.salons) == ("bot", frozenset(["salon-1"]))
    head, body, signature = token.split(".")
    for spoilt in (f"{head}.{body}.{signature[:-8]}AAAAAAAA", f"{head}.{body}.", f"{head}.{body}"):
        assert await refusal(tokens, spoilt) in ("the token's signature is wrong", "the token is malformed")
    other = json.dumps({"sub": "admin", "aud": AUDIENCE, "exp": 9_999_999_999, "iss": "https://issuer.test"})
    changed = base64.urlsafe_b64encode(other.encode()).rstrip(b"=").decode()
    assert await refusal(tokens, f"{head}.{changed}.{signature}") == "the token's signature is wrong"


async def test_a_claim_that_is_wrong_is_named(tokens: Tokens, issuer: Issuer) -> None:
    malformed = "the token's salons are no list of texts"
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"lives": -31}, "the token has expired"),
        ({"nbf": 9_999_999_999}, "the token is not valid yet"),
        ({"aud": "other"}, "the token is for another audience"),
        ({"aud": None}, "the token lacks a claim"),
        ({"exp": None}, "the token lacks a claim"),
        ({"sub": None}, "the token lacks a claim"),
        ({"iss": "https://other.test"}, "the token has another issuer"),
        ({"salons": 7}, malformed),
        ({"salons": ["salon-1", 7]}, malformed),
        ({"salons": {"salon-1": True}}, malformed),
    ]
    for claims, why in wrong:
        assert await refusal(tokens, issuer.token(**claims)) == why
    for valid in ({"lives": -28}, {"nbf": None}, {"aud": ["other", AUDIENCE]}, {"salons": "salon-1"}):
        await tokens.claims(issuer.token(**valid))


def claims_of_other_types() -> list[dict[str, Any]]:
    """Return claims that are signed well but have another type than they should."""
    not_times: list[Any] = ["9999999999", "soon", "", True, [], {}, 10**400, -(10**400), 1e400, -1e400, "9" * 5_000]
    not_texts: list[Any] = [7, 1.5, True, [], {}, ["admin"], {"admin": 1}, ""]
    return [
        *({name: value} for name in ("exp", "nbf", "iat") for value in not_times),
        *({"sub": value} for value in not_texts),
        *({"aud": value} for value in [*not_texts, [AUDIENCE, 7], [[AUDIENCE]]]),
        *({"iss": value} for value in not_texts),
        *({"jti": value} for value in [7, True, []]),
        *({"salons": value} for value in [7, 1.5, True, {}, [[]], [None], {"*": 1}]),
    ]


async def test_a_claim_of_another_type_is_refused(tokens: Tokens, issuer: Issuer) -> None:
    for claims in claims_of_other_types():
        assert await refusal(tokens, issuer.token(**claims)), claims
    null = jwt.encode(
        {"sub": "bot", "aud": AUDIENCE, "iss": "https://issuer.test", "exp": None},
        issuer.keys["ES256"],
        "ES256",
        headers={"kid": "ES256"},
    )
    assert await refusal(tokens, null)
    for valid in ({"exp": 9_999_999_999}, {"exp": 9_999_999_999.5}, {"exp": 1e300}, {"nbf": 1.5}, {"iat": 0}):
        await tokens.claims(issuer.token(**valid))


async def test_a_token_that_only_looks_signed_is_refused(tokens: Tokens, issuer: Issuer) -> None:
    public = issuer.keys["RS256"].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    body = {"sub": "admin", "aud": AUDIENCE, "exp": 9_999_999_999, "iss": "https://issuer.test"}
    secret = "secret" * 6
    stranger = rsa.generate_private_key(65537, 2048)
    for token in (
        jwt.encode(body, "", "none"),
        jwt.encode(body, "", "none", headers={"kid": "RS256"}),
        jwt.encode(body, secret, "HS256", headers={"kid": "HS256"}),
        jwt.encode(body, base64.b64encode(public), "HS256", headers={"kid": "RS256"}),  # the public key as a secret
        jwt.encode(body, stranger, "RS256", headers={"kid": "RS256"}),
        jwt.encode(body, issuer.keys["RS256"], "RS512", headers={"kid": "RS256"}),
        jwt.encode(body, issuer.keys["RS256"], "RS256", headers={"kid": "ES256"}),
        jwt.encode(body, issuer.keys["RS256"], "RS256", headers={"kid": "unknown"}),
        jwt.encode(body, issuer.keys["RS256"], "RS256"),  # it does not say which key
        jwt.encode(body, issuer.keys["RS256"], "RS256", headers={"kid": "RS256", "crit": ["x"]}),
        *("", ".", "..", "a.b.c", "\x00", "é" * 100, "\ud800", "e30.e30.e30", "x" * 10_000),
    ):
        assert await refusal(tokens, token)


@contextmanager
def served(answers: list[Any]) -> Iterator[str]:
    """Serve the first answer at a URL: bytes, or an HTTP status."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = answers[0]
            self.send_response(answer if isinstance(answer, int) else 200)
            self.end_headers()
            self.wfile.write(b"" if isinstance(answer, int) else answer)

        def log_message(self, *_: Any) -> None:
            """Log nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/keys"
        server.shutdown()
        thread.join()


async def test_keys_of_a_url_are_read_again_for_an_unknown_key_and_kept_while_it_is_broken(
    tmp_path: Path, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens_module, "PAUSE_SECONDS", 0)
    answers: list[Any] = [json.dumps(issuer.jwks()).encode()]
    with served(answers) as url:
        changes: list[bool] = []
        settings = AuthSettings(**{**jwt_settings(tmp_path, issuer), "auth_jwks": url})
        tokens = Tokens(settings, lambda: changes.append(True))
        await tokens.refresh()
        assert len(changes) == 1
        await tokens.refresh()
        assert len(changes) == 1
        renewed = Issuer()
        renewed.kids = {algorithm: f"{algorithm}-2" for algorithm in renewed.keys}
        for broken in (500, b"nothing", b"{}", b'{"keys": [7, {}]}', b'{"keys": 7}', b"[]"):
            answers[0] = broken
            assert await refusal(tokens, renewed.token()) == "the token's key is unknown"
            await tokens.claims(issuer.token())
        answers[0] = json.dumps(renewed.jwks()).encode()
        await tokens.claims(renewed.token())
        assert len(changes) == 2
        assert await refusal(tokens, issuer.token()) == "the token's key is unknown"


async def test_keys_that_cannot_be_read_at_the_start_are_an_error(tmp_path: Path, issuer: Issuer) -> None:
    settings = jwt_settings(tmp_path, issuer)
    for text in ("", "{}", json.dumps({"keys": [{"kty": "oct", "k": "c2VjcmV0", "alg": "HS256"}]})):
        (tmp_path / "jwks.json").write_text(text)
        with pytest.raises(KeysError):
            await Tokens(AuthSettings(**settings), lambda: None).refresh()
    (tmp_path / "jwks.json").unlink()
    with pytest.raises(KeysError):
        await Tokens(AuthSettings(**settings), lambda: None).refresh()


def test_settings_that_do_not_fit_are_refused(tmp_path: Path, issuer: Issuer) -> None:
    settings = jwt_settings(tmp_path, issuer)
    for change, text in (
        ({"auth_policy": None}, "AUTH_MODE and AUTH_POLICY belong together"),
        ({"auth_mode": "none"}, "AUTH_MODE and AUTH_POLICY belong together"),
        ({"auth_jwks": None}, "needs AUTH_JWKS and AUTH_AUDIENCE"),
        ({"auth_audience": None}, "needs AUTH_JWKS and AUTH_AUDIENCE"),
        ({"auth_jwks": "http://example.org/keys"}, "read by https"),
    ):
        with pytest.raises(ValueError, match=text):
            AuthSettings(**{**settings, **change})
