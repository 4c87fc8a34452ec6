"""Bearer tokens: JWTs, verified with the keys of a JWKS file or URL. All cryptography is PyJWT's."""

import asyncio
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jwt
import structlog

from libs.server.auth.refusals import unauthenticated
from libs.server.auth.settings import AccessError, AuthSettings

ALGORITHMS = ("RS256", "ES256", "EdDSA")
LEEWAY_SECONDS = 30
FETCH_SECONDS = 5
REFRESH_SECONDS = 600
PAUSE_SECONDS = 10  # between two reads of the keys because of tokens with an unknown key

log = structlog.get_logger()

_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (jwt.ExpiredSignatureError, "the token has expired"),
    (jwt.ImmatureSignatureError, "the token is not valid yet"),
    (jwt.InvalidAudienceError, "the token is for another audience"),
    (jwt.InvalidIssuerError, "the token has another issuer"),
    (jwt.MissingRequiredClaimError, "the token lacks a claim"),
    (jwt.InvalidSignatureError, "the token's signature is wrong"),
    (jwt.InvalidAlgorithmError, f"the token's algorithm is none of {', '.join(ALGORITHMS)}, or not its key's"),
)


class KeysError(AccessError):
    """The keys can't be read."""


class Claims(NamedTuple):
    """What a valid token says: the caller, its salons (None: does not say), and until when, in s since 1970.

    `key` has verified it.
    """

    caller: str
    salons: frozenset[str] | None
    expires: float
    key: Any


class Tokens:
    """Verifies tokens."""

    def __init__(self, settings: AuthSettings, on_change: Callable[[], None]) -> None:
        """Read no keys yet. `on_change` is called after each read that brought other keys."""
        self._on_change = on_change
        self._source = settings.auth_jwks or ""
        self._audience = settings.auth_audience
        self._issuer = settings.auth_issuer
        self._caller_claim = settings.auth_caller_claim
        self._salons_claim = settings.auth_salons_claim
        self._keys: dict[str | None, jwt.PyJWK] = {}
        self._read = 0.0
        self._reading: asyncio.Task[None] | None = None
        self.is_remote = self._source.startswith(("https://", "http://"))

    async def refresh(self) -> None:
        """Read the keys. A concurrent call shares the read. Raises: KeysError."""
        if self._reading is None:
            self._reading = asyncio.create_task(self._refresh())
            self._reading.add_done_callback(self._end_reading)
        await asyncio.shield(self._reading)

    def _end_reading(self, task: "asyncio.Task[None]") -> None:
        self._reading = None
        if not task.cancelled():
            task.exception()  # the callers have it

    async def _refresh(self) -> None:
        self._read = time.monotonic()
        keys = _usable(await asyncio.to_thread(self._load))
        before = {kid: key.key for kid, key in self._keys.items()}
        self._keys = keys
        if before != {kid: key.key for kid, key in keys.items()}:
            self._on_change()

    def has(self, key: Any) -> bool:
        """Return whether a key that has verified a token is still one of the keys."""
        return any(each.key == key for each in self._keys.values())

    def _load(self) -> Any:
        try:
            if self.is_remote:
                return jwt.PyJWKClient(self._source, cache_jwk_set=False, timeout=FETCH_SECONDS).fetch_data()
            return json.loads(Path(self._source).read_text())
        except (OSError, ValueError, jwt.PyJWTError) as error:
            raise KeysError(f"the keys of AUTH_JWKS can't be read: {type(error).__name__}") from error

    async def claims(self, token: str) -> Claims:
        """Return what a token says. Raises: UNAUTHENTICATED."""
        key = await self._key(token)
        options: Any = {"require": ["exp", "aud", self._caller_claim]}
        try:
            found = jwt.decode(
                token,
                key,
                algorithms=ALGORITHMS,
                audience=self._audience,
                issuer=self._issuer,
                leeway=LEEWAY_SECONDS,
                options=options,
            )
        except (jwt.PyJWTError, ValueError, TypeError) as error:
            reason = next((text for kind, text in _REASONS if isinstance(error, kind)), "the token is malformed")
            raise unauthenticated(reason) from error
        for name in ("nbf", "iat"):
            _time(found.get(name, 0))
        salons, expires = _salons(found.get(self._salons_claim)), _time(found["exp"]) + LEEWAY_SECONDS
        return Claims(_name(found[self._caller_claim]), salons, expires, key.key)

    async def _key(self, token: str) -> jwt.PyJWK:
        """Return the key that a token names; if it is unknown, read the keys again, at most every 10 s."""
        try:
            kid = jwt.get_unverified_header(token).get("kid")
        except (jwt.PyJWTError, ValueError) as error:
            raise unauthenticated("the token is malformed") from error
        if (key := self._find(kid)) is None and time.monotonic() - self._read > PAUSE_SECONDS:
            try:
                await self.refresh()
            except KeysError as error:
                log.warning("keys", error=str(error))
            key = self._find(kid)
        if key is None:
            raise unauthenticated("the token's key is unknown")
        return key

    def _find(self, kid: str | None) -> jwt.PyJWK | None:
        if kid is None and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        return self._keys.get(kid)


def _usable(data: Any) -> dict[str | None, jwt.PyJWK]:
    """Return the public keys of a JWKS for our algorithms. Raises: KeysError if there is none."""
    found: dict[str | None, jwt.PyJWK] = {}
    listed = data.get("keys") if isinstance(data, dict) else None
    for each in listed if isinstance(listed, list) else ():
        try:
            key = jwt.PyJWK.from_dict(each)
        except (jwt.PyJWTError, ValueError, TypeError, AttributeError, KeyError):
            continue  # of a kind that is not for us
        if key.algorithm_name in ALGORITHMS and key.public_key_use in (None, "sig"):
            found[key.key_id] = key
    if not found:
        raise KeysError(f"AUTH_JWKS has no key for {', '.join(ALGORITHMS)}")
    return found


def _time(value: Any) -> float:
    """Return a time of a token. PyJWT also takes texts, true, and numbers that no float can hold."""
    try:
        seconds = math.nan if isinstance(value, bool | str) else float(value)
    except (TypeError, OverflowError):
        seconds = math.nan
    if not math.isfinite(seconds):
        raise unauthenticated("a time of the token is no number")
    return seconds


def _name(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise unauthenticated("the token names no caller")
    return value


def _salons(value: Any) -> frozenset[str] | None:
    """Return the salons of the claim; None if it is missing or contains `*`."""
    if value is None:
        return None
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(each, str) for each in values):
        raise unauthenticated("the token's salons are no list of texts")
    return None if "*" in values else frozenset(values)
