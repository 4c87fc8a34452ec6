"""The policy: which caller may call which methods for which salons, and how often.

    [quotas]
    caller = { calls_per_second = 2000, calls_under_way = 200 }
    salon = { calls_per_second = 500 }

    [callers."spiffe://example.org/bot"]
    methods = ["booking:read", "booking:write", "messaging:read", "messaging:write"]
    salons = ["*"]

    [callers."dashboard"]
    methods = ["booking:*", "messaging:read", "stats:read"]
    salons = ["salon-123", "salon-7"]
    quota = { calls_per_second = 50 }

Who is not listed may do nothing.
"""

import math
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from libs.server.auth.methods import GROUPS, MethodInfo
from libs.server.auth.quotas import NO_QUOTA, Quota, SalonUsages, Usage
from libs.server.auth.settings import AccessError

ALL = "*"


class PolicyError(AccessError):
    """The policy can't be used; the message says where it is wrong."""


class _Rule(BaseModel):
    model_config = ConfigDict(extra="forbid")

    methods: list[str]
    salons: list[str] = Field(default_factory=list)
    quota: Quota | None = None


class _Quotas(BaseModel):
    model_config = ConfigDict(extra="forbid")

    caller: Quota = NO_QUOTA
    salon: Quota = NO_QUOTA


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    quotas: _Quotas = Field(default_factory=_Quotas)
    callers: dict[str, _Rule] = Field(default_factory=dict)


class Caller:
    """An identified caller, what it may do, and until when it is known.

    `methods` are paths; `salons` None means all, `claimed` None that its token names no salons. `expires` is in s since
    1970. `key` has verified its token, None without a token.
    """

    __slots__ = ("claimed", "expires", "is_listed", "key", "methods", "name", "salons", "usage")

    def __init__(
        self,
        name: str,
        methods: frozenset[str] = frozenset(),
        salons: frozenset[str] | None = frozenset(),
        usage: Usage | None = None,
        *,
        is_listed: bool = False,
    ) -> None:
        self.name = name
        self.methods = methods
        self.salons = salons
        self.usage = usage
        self.is_listed = is_listed
        self.claimed: frozenset[str] | None = None
        self.expires = math.inf
        self.key: Any = None

    def may_use(self, salons: Sequence[str]) -> bool:
        """Return whether the caller may use the salons that a request names; none means all."""
        if self.salons is None:
            return True
        return bool(salons) and self.salons.issuperset(salons)

    def narrowed(self, claimed: frozenset[str] | None, expires: float, key: Any = None) -> "Caller":
        """Return the caller as a token names it: with no more than the `claimed` salons, until the token expires."""
        salons = self.salons if claimed is None else claimed if self.salons is None else self.salons & claimed
        caller = Caller(self.name, self.methods, salons, self.usage, is_listed=self.is_listed)
        caller.claimed, caller.expires, caller.key = claimed, expires, key
        return caller


class Policy:
    """The rights of all callers."""

    def __init__(self, path: Path, methods: Sequence[MethodInfo], before: "Policy | None" = None) -> None:
        """Read the file; `methods` are those of this server. Raises: PolicyError.

        Calls that were counted against the quotas of the policy `before` count against those of this one.
        """
        file = _read(path)
        for name, rule in file.callers.items():
            for right in rule.methods:
                _check(right, methods, f"{path}: callers.{name!r}.methods: {right!r}")
        self.salon_usages: SalonUsages = before.salon_usages if before else SalonUsages()
        self.salon_usages.limit(file.quotas.salon)
        self._callers = {name: _caller(name, rule, methods) for name, rule in file.callers.items()}
        for name, rule in file.callers.items():
            quota = rule.quota or file.quotas.caller
            if quota != NO_QUOTA:
                usage = before.caller(name).usage if before else None
                self._callers[name].usage = usage.limit(quota) if usage else Usage(quota)

    def knows(self, name: str) -> bool:
        """Return whether a caller is listed."""
        return name in self._callers

    def caller(self, name: str) -> Caller:
        """Return a caller, who may do nothing unless listed."""
        return self._callers.get(name) or Caller(name)


def _read(path: Path) -> _File:
    try:
        return _File.model_validate(tomllib.loads(path.read_text()))
    except OSError as error:
        raise PolicyError(f"{path} can't be read: {error.strerror}") from error
    except ValidationError as error:
        problems = (f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise PolicyError(f"{path}: {'; '.join(problems)}") from error
    except ValueError as error:  # no TOML, or no UTF-8
        raise PolicyError(f"{path} is no valid TOML: {error}") from error


def _check(right: str, methods: Sequence[MethodInfo], where: str) -> None:
    """Refuse an entry that names nothing. Services that this process does not serve have methods it does not know."""
    service, _, what = right.rpartition(":")
    if right == ALL or (not service and what not in GROUPS):
        raise PolicyError(f"{where} is none of SERVICE:METHOD, SERVICE:GROUP, SERVICE:*, {', '.join(GROUPS)}")
    is_served = any(method.service == service for method in methods)
    if is_served and what not in (ALL, *GROUPS) and not any(method.is_named(right) for method in methods):
        raise PolicyError(f"{where}: {service} has no such method")


def _caller(name: str, rule: _Rule, methods: Sequence[MethodInfo]) -> Caller:
    granted = frozenset(method.path for method in methods if any(map(method.is_named, rule.methods)))
    return Caller(name, granted, None if ALL in rule.salons else frozenset(rule.salons), is_listed=True)
