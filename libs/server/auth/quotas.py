"""Quotas of callers and salons: calls under way, and calls per second. Each process counts its own calls."""

import itertools
import math
import time
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

from libs.server.auth.refusals import quota_exceeded
from libs.server.errors import RETRY_MS, RpcError

MOST_SALONS = 10_000
MOST_CHECKED = 100  # salons with calls under way, in search of one that can be forgotten


class Quota(BaseModel):
    """A limit of one caller or salon; None is no limit.

    `calls_per_second` is an average: one second's calls may come at once.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    calls_per_second: float | None = Field(None, gt=0, allow_inf_nan=False)
    calls_under_way: int | None = Field(None, ge=1)


NO_QUOTA = Quota()


class Usage:
    """The calls of one caller or salon: a token bucket, and the number of calls under way."""

    __slots__ = ("_filled", "_most", "_quota", "_rate", "_size", "_tokens", "under_way")

    def __init__(self, quota: Quota) -> None:
        self.under_way = 0
        self._limit(quota)

    def limit(self, quota: Quota) -> "Usage":
        """Count the same calls against a quota; return this usage. Another quota than before begins unused."""
        if quota != self._quota:
            self._limit(quota)
        return self

    def _limit(self, quota: Quota) -> None:
        self._quota = quota
        self._rate = quota.calls_per_second
        self._most = quota.calls_under_way or math.inf
        self._tokens = self._size = max(1.0, self._rate or 0)
        self._filled = time.monotonic()

    def take(self) -> bool:
        """Take a token for a call; return False if there is none, or too many calls are under way."""
        if self.under_way >= self._most:
            return False
        if self._rate is None:
            return True
        now = time.monotonic()
        tokens = self._tokens + (now - self._filled) * self._rate
        self._filled = now
        self._tokens = tokens = tokens if tokens < self._size else self._size
        if tokens < 1:
            return False
        self._tokens = tokens - 1
        return True

    def give_back(self) -> None:
        """Undo `take`."""
        self._tokens += 1

    def refusal(self, whose: str) -> RpcError:
        """Return the error of a call for which `take` has returned False; `whose` is the subject of its message."""
        if self._rate is None or self.under_way >= self._most:
            return quota_exceeded(whose, "under way")
        wait_ms = math.ceil((1 - self._tokens) / self._rate * 1000)
        return quota_exceeded(whose, "per second", max(RETRY_MS, wait_ms))


def take_all(usages: Sequence[Usage]) -> bool:
    """Take a token of each; return False, and take none, if one has none."""
    for number, usage in enumerate(usages):
        if not usage.take():
            for taken in usages[:number]:
                taken.give_back()
            return False
    return True


class SalonUsages:
    """The usages of salons; with too many, that of the first one without calls under way is forgotten."""

    def __init__(self) -> None:
        """Limit nothing yet."""
        self._quota = NO_QUOTA
        self._is_unlimited = True
        self._usages: dict[str, Usage] = {}

    def limit(self, quota: Quota) -> None:
        """Count the calls of each salon against a quota, from now on."""
        self._quota, self._is_unlimited = quota, quota == NO_QUOTA
        for usage in self._usages.values():
            usage.limit(quota)

    def of(self, salon_id: str) -> Usage | None:
        """Return the usage of a salon, None without a quota."""
        if self._is_unlimited:
            return None
        if (usage := self._usages.get(salon_id)) is None:
            if len(self._usages) >= MOST_SALONS:
                self._forget_one()
            usage = self._usages[salon_id] = Usage(self._quota)
        return usage

    def _forget_one(self) -> None:
        """Forget the first salon without calls under way; those before it become the last."""
        for salon_id in list(itertools.islice(self._usages, MOST_CHECKED)):
            usage = self._usages.pop(salon_id)
            if not usage.under_way:
                return
            self._usages[salon_id] = usage
