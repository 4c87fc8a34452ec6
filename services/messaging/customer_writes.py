"""The transactions of the messaging service: which of them may run beside each other, and what makes customers one.

All writes of a salon share a lock, which those that merge or erase customers take alone. So any other write finds each
number and ID with one customer from its first statement to its commit (decision 0050).
"""

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from libs.cache import Tag
from libs.db import Statement
from libs.server import IdempotentWrites, Write
from services.cache_tags import CacheTags
from services.messaging.identities import Claim, Settlement
from services.messaging.identity_queries import new_claims, owned_identities, unsettled, write_settlement


class _Unsettled(Exception):
    """A claim changes who a customer is."""


class CustomerWrites:
    """The writes of the messaging service."""

    def __init__(self, writes: IdempotentWrites, tags: CacheTags) -> None:
        """Prepare."""
        self._writes = writes
        self._tags = tags

    def __call__(
        self,
        request: Any,
        salon_id: str,
        *,
        invalidates: Sequence[Tag] = (),
        locks: Iterable[str] = (),
        first: Sequence[Statement[Any]] = (),
    ) -> AbstractAsyncContextManager[Write]:
        """Begin a write beside others of the salon; see IdempotentWrites."""
        shared = [_lock(salon_id)]
        return self._writes(request, salon_id, invalidates=invalidates, locks=locks, shared=shared, first=first)

    def alone(self, request: Any, salon_id: str) -> AbstractAsyncContextManager[Write]:
        """Begin a write that no other one of the salon runs beside."""
        return self._writes(request, salon_id, locks=[_lock(salon_id)])

    @asynccontextmanager
    async def of_customers(
        self,
        request: Any,
        salon_id: str,
        claims: Sequence[Claim],
        *,
        locks: Iterable[str],
        first: Sequence[Statement[Any]],
        alone: bool = False,
    ) -> AsyncIterator[Write]:
        """Begin a write whose messages and events claim who a customer is; the statements `first` follow from that.

        Claims that change nothing cost one statement in the first round trip, none if there are none. Others are
        settled in this transaction, alone: customers are merged, get identities or lose them, and all replies about
        them are invalidated. `alone`: also a claim of one identity that nobody has makes a customer.
        """
        if not alone and not any(claim.former for claim in claims):
            checks = [unsettled(salon_id, claims)] if claims else []
            try:
                async with self(request, salon_id, locks=locks, first=[*checks, *first]) as write:
                    if any(write.first[: len(checks)]):
                        raise _Unsettled
                    del write.first[: len(checks)]
                    yield write
                    return
            except _Unsettled:
                pass
        async with self.alone(request, salon_id) as write:
            await self.settle(write, salon_id, claims)
            write.first = await write.conn.run(*first) if first else []
            yield write

    async def settle(self, write: Write, salon_id: str, claims: Sequence[Claim]) -> None:
        """Write what new claims change, in a write that runs alone, and invalidate what shows the customers."""
        new = await new_claims(write.conn, salon_id, claims)
        names = list(dict.fromkeys(identity for claim in new for identity in claim.identities))
        settlement = Settlement(await owned_identities(write.conn, salon_id, names))
        settlement.settle(new)
        if not settlement.touched:
            return
        numbers = {
            name.identity
            for name, customer in settlement.owner.items()
            if name.kind == "PHONE_NUMBER" and customer in settlement.touched
        }
        customers = [*((customer, "") for customer in settlement.touched), *(("", number) for number in numbers)]
        if settlement.merges:
            write.invalidate(*self._tags.of_customers(salon_id, *customers), self._tags.stats(salon_id))
        else:
            write.invalidate(*self._tags.of_conversations(salon_id, *customers))
        await write.conn.run(*write_settlement(salon_id, settlement))


def _lock(salon_id: str) -> str:
    """Return the name of the lock that all writes of a salon share; it sorts before those of messages and requests."""
    return f"! customers {salon_id}"
