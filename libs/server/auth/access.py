"""Who calls, and whether they may: checked for each call before any look at data.

An identity is never remembered by the caller's address: a stranger may get the same source port. It is remembered by
the connection's certificate, or by the token.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any, TypeVar

import structlog
from google.protobuf.descriptor import MethodDescriptor

from libs.server.auth.audit import Audit
from libs.server.auth.credentials import Names, bearer_of, names_of
from libs.server.auth.methods import MethodInfo, Salons, changes_data, describe, salons_of
from libs.server.auth.policy import Caller, Policy, PolicyError
from libs.server.auth.quotas import Usage, take_all
from libs.server.auth.refusals import method_not_allowed, salon_not_allowed, unauthenticated
from libs.server.auth.settings import AccessError, AuthSettings
from libs.server.auth.tokens import REFRESH_SECONDS, KeysError, Tokens
from libs.server.errors import RpcError

K = TypeVar("K")

MOST_KNOWN = 10_000  # callers by token, and by certificate
LONGEST_SECONDS = 30 * 86_400.0  # of a timer

log = structlog.get_logger()


class Access:
    """The callers of one server. Methods are added before `open`."""

    def __init__(self, settings: AuthSettings) -> None:
        """Read nothing yet."""
        self._settings = settings
        self._tokens = Tokens(settings, self._forget_tokens) if settings.takes_tokens else None
        self._takes_certificates = settings.takes_certificates
        self._methods: list[MethodInfo] = []
        self._by_token: dict[str, Caller] = {}
        self._by_names: dict[Names, Caller] = {}
        self.streams: dict[asyncio.Task[Any], Visit] = {}
        self._refreshing: asyncio.Task[None] | None = None
        self.policy: Policy
        self.audit: Audit

    def guard(self, method: MethodDescriptor) -> "Guard":
        """Add a method; return what checks its calls."""
        info = describe(method)
        self._methods.append(info)
        return Guard(self, method, info)

    async def open(self) -> None:
        """Read the policy and the keys. Raises: AccessError; not for keys with a URL, which may come later."""
        self.policy = self._read_policy(None)
        self.audit = Audit(self._settings.audit_log)
        if self._tokens is not None:
            try:
                await self._tokens.refresh()
            except KeysError as error:
                if not self._tokens.is_remote:
                    raise
                log.warning("keys", error=str(error))
            self._refreshing = asyncio.create_task(self._refresh_keys())

    async def reload(self) -> None:
        """Read the policy and the keys again; what can't be used keeps the old, and is logged.

        Streams whose caller has lost the right to them end.
        """
        try:
            self.policy = self._read_policy(self.policy)
        except PolicyError as error:
            log.error("policy", error=str(error), kept=True)
        else:
            log.info("policy", reloaded=True)
            self._by_token.clear()
            self._by_names.clear()
            self._end_streams()
        try:
            self.audit.reopen()
        except AccessError as error:
            log.error("audit", error=str(error), kept=True)
        await self._refresh()

    async def close(self) -> None:
        """Stop reading keys, and close the audit log."""
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.wait([self._refreshing])
        self.audit.close()

    def _read_policy(self, before: Policy | None) -> Policy:
        if self._settings.auth_policy is None:
            raise PolicyError("AUTH_POLICY is not set")
        return Policy(self._settings.auth_policy, self._methods, before)

    async def _refresh_keys(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            await self._refresh()

    async def _refresh(self) -> None:
        if self._tokens is None:
            return
        try:
            await self._tokens.refresh()
        except KeysError as error:
            log.error("keys", error=str(error), kept=True)

    def _forget_tokens(self) -> None:
        """Verify each token again: its key may be gone."""
        self._by_token.clear()
        self._end_streams()

    def _end_streams(self) -> None:
        """End the streams whose callers have lost the right to them."""
        for task, visit in list(self.streams.items()):
            if (lost := visit.lost()) is not None:
                task.cancel(lost)

    def has_key(self, caller: Caller) -> bool:
        """Return whether the key of a caller's token is still valid; a caller without a token needs none."""
        return caller.key is None or self._tokens is None or self._tokens.has(caller.key)

    # Identities

    def known(self, context: Any) -> Caller | None:
        """Return the caller if it was identified before, by the same token or certificate."""
        if self._tokens is not None and (bearer := bearer_of(context)) is not None:
            caller = self._by_token.get(bearer)
            return caller if caller is not None and caller.expires > time.time() else None
        return self._by_names.get(names_of(context)) if self._takes_certificates else None

    async def identify(self, context: Any) -> Caller:
        """Return the caller. Raises: UNAUTHENTICATED."""
        if self._tokens is not None and (bearer := bearer_of(context)) is not None:
            scheme, _, token = bearer.partition(" ")
            if scheme.lower() != "bearer":
                raise unauthenticated("the authorization is no bearer token")
            claims = await self._tokens.claims(token.strip())
            caller = self.policy.caller(claims.caller).narrowed(claims.salons, claims.expires, claims.key)
            return _remember(self._by_token, bearer, caller)
        if self._takes_certificates and (names := names_of(context)):
            listed = next(filter(self.policy.knows, names), names[0])
            return _remember(self._by_names, names, self.policy.caller(listed))
        raise unauthenticated(self._wanted())

    def _wanted(self) -> str:
        wanted = {
            "mtls": "send a certificate with a spiffe:// URI or a DNS name",
            "jwt": "send a bearer token",
            "mtls,jwt": "send a bearer token, or a certificate with a spiffe:// URI or a DNS name",
        }
        return wanted[self._settings.auth_mode]


class Guard:
    """Checks the calls of one method."""

    def __init__(self, access: Access, method: MethodDescriptor, info: MethodInfo) -> None:
        self.access = access
        self.path = info.path
        self.is_audited = changes_data(method)
        self.salons_of: Callable[[Any], Salons] = salons_of(method.input_type)

    def admits(self, context: Any, salons: Salons) -> bool:
        """Return whether a known caller may make a call that is answered at once; it counts against the quotas.

        If not, let the call take the way of all others, which says why.
        """
        caller = self.access.known(context)
        if caller is None or self.path not in caller.methods or not caller.may_use(salons):
            return False
        of_salons = map(self.access.policy.salon_usages.of, salons)
        return take_all([usage for usage in (caller.usage, *of_salons) if usage is not None])


class Visit:
    """One call: its caller, its salons, and the quotas that it counts against until `end`."""

    __slots__ = ("_peer", "_timer", "_usages", "caller", "guard", "salons")

    def __init__(self, guard: Guard, context: Any) -> None:
        self.guard = guard
        self._peer = context.peer
        self._usages: list[Usage] = []
        self.caller: Caller | None = None
        self.salons: Salons = ()
        self._timer: asyncio.TimerHandle | None = None

    async def begin(self, context: Any) -> None:
        """Identify the caller. Raises: UNAUTHENTICATED, METHOD_NOT_ALLOWED, QUOTA_EXCEEDED."""
        self._enter(await self.guard.access.identify(context))

    def is_known(self, context: Any) -> bool:
        """Do what `begin` does if the caller was identified before. Raises: METHOD_NOT_ALLOWED, QUOTA_EXCEEDED."""
        if (caller := self.guard.access.known(context)) is None:
            return False
        self._enter(caller)
        return True

    def _enter(self, caller: Caller) -> None:
        self.caller = caller
        if self.guard.path not in caller.methods:
            raise method_not_allowed()
        if caller.usage is not None:
            self._count(caller.usage, "the caller")

    def use(self, salons: Salons) -> None:
        """Check the salons that the request names. Raises: SALON_NOT_ALLOWED, QUOTA_EXCEEDED."""
        self.salons = salons
        if self.caller is None or not self.caller.may_use(salons):
            raise salon_not_allowed(names_salons=bool(salons))
        usages = self.guard.access.policy.salon_usages
        for salon_id in salons:
            if (usage := usages.of(salon_id)) is not None:
                self._count(usage, "the salon")

    def _count(self, usage: Usage, whose: str) -> None:
        if not usage.take():
            raise usage.refusal(whose)
        usage.under_way += 1
        self._usages.append(usage)

    def watch(self, task: asyncio.Task[Any]) -> None:
        """Let the stream end when its token expires, or when its caller loses the right to it."""
        self.guard.access.streams[task] = self
        if self.caller is not None and (left := self.caller.expires - time.time()) < LONGEST_SECONDS:
            error = unauthenticated("the token has expired")
            self._timer = asyncio.get_running_loop().call_later(left, task.cancel, error)

    def unwatch(self, task: asyncio.Task[Any]) -> None:
        """Forget a stream that has ended."""
        self.guard.access.streams.pop(task, None)
        if self._timer is not None:
            self._timer.cancel()

    def lost(self) -> RpcError | None:
        """Return the error of a call that the policy and the keys of now do not allow."""
        if (before := self.caller) is None:
            return None
        if not self.guard.access.has_key(before):
            return unauthenticated("the token's key is unknown")
        now = self.guard.access.policy.caller(before.name).narrowed(before.claimed, before.expires)
        if self.guard.path not in now.methods:
            return method_not_allowed()
        return None if now.may_use(self.salons) else salon_not_allowed(names_salons=bool(self.salons))

    def end(self, code: str, reason: str, request: Any) -> None:
        """End the call; write it to the audit log if it changes data or was refused."""
        for usage in self._usages:
            usage.under_way -= 1
        is_refused = reason in REFUSALS
        if not is_refused and not self.guard.is_audited:
            return
        audit, caller = self.guard.access.audit, self.caller
        write = audit.add_limited if is_refused or caller is None else audit.add
        write(
            method=self.guard.path,
            caller="" if caller is None else caller.name,
            is_listed=caller is not None and caller.is_listed,
            peer=self._peer(),
            salons=self.salons,
            request=request,
            code=code,
            reason=reason,
        )


REFUSALS = frozenset(("UNAUTHENTICATED", "METHOD_NOT_ALLOWED", "SALON_NOT_ALLOWED", "QUOTA_EXCEEDED"))


def _remember(known: dict[K, Caller], key: K, caller: Caller) -> Caller:
    """Remember a caller in place of the oldest."""
    if len(known) >= MOST_KNOWN:
        del known[next(iter(known))]
    known[key] = caller
    return caller
