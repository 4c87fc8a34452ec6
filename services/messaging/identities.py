"""Which phone numbers and user IDs belong to one customer. Plain rules; the statements are in identity_queries.py.

A customer may have had several numbers and several user IDs. A number may pass from one person to another, a user ID
never does. So a number whose owner is known by other user IDs than the claim was given to somebody else.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import NamedTuple
from uuid import uuid4

LONG_AGO = datetime.fromtimestamp(0, UTC)  # of an identity that precedes another one, it is not known since when


class Identity(NamedTuple):
    """A phone number (kind PHONE_NUMBER) or a user ID (USER_ID) of a customer."""

    kind: str
    identity: str


class Claim(NamedTuple):
    """What a message or an event says of one person: their number and user ID, and those that they had before.

    `at` is when that was so. `whatsapp_id`: the claim counts only if no message with it is recorded yet, or was erased;
    nor does it count if the message that it `amends` was erased.
    """

    phone_number: str | None
    user_id: str | None
    at: datetime
    whatsapp_id: str | None = None
    former_phone_number: str | None = None
    former_user_id: str | None = None
    amends: str | None = None

    @property
    def number(self) -> Identity | None:
        """The number that the person has."""
        return Identity("PHONE_NUMBER", self.phone_number) if self.phone_number else None

    @property
    def user(self) -> Identity | None:
        """The user ID that the person has."""
        return Identity("USER_ID", self.user_id) if self.user_id else None

    @property
    def former(self) -> list[Identity]:
        """What the person had before."""
        names = ("PHONE_NUMBER", self.former_phone_number), ("USER_ID", self.former_user_id)
        return [Identity(kind, name) for kind, name in names if name]

    @property
    def identities(self) -> list[Identity]:
        """All of them."""
        return [*self.former, *(identity for identity in (self.user, self.number) if identity)]


class Owned(NamedTuple):
    """The customer of an identity, since when, and when their conversation began, if there is one."""

    customer_id: str
    kind: str
    identity: str
    seen_at: datetime
    started_at: datetime | None


@dataclass
class Settlement:
    """The customers that claims name, as they are in the database, and what has to change there.

    `created` are new customers, `merges` pairs of a customer that stays and one that becomes part of them, in order.
    """

    known: Iterable[Owned]
    created: list[str] = field(default_factory=list)
    merges: list[tuple[str, str]] = field(default_factory=list)
    owner: dict[Identity, str] = field(default_factory=dict)
    seen: dict[Identity, datetime] = field(default_factory=dict)
    changed: dict[Identity, None] = field(default_factory=dict)  # identities with another owner or time
    touched: set[str] = field(default_factory=set)  # customers that lose or get an identity
    _started: dict[str, datetime] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Read what is known."""
        for row in self.known:
            identity = Identity(row.kind, row.identity)
            self.owner[identity], self.seen[identity] = row.customer_id, row.seen_at
            if row.started_at:
                self._started[row.customer_id] = row.started_at

    def settle(self, claims: Sequence[Claim]) -> None:
        """Give all identities of each claim to one customer; the oldest claim first.

        A claim with a time in the future is one of now: no later claim could replace it otherwise.
        """
        now = datetime.now(UTC)
        for claim in sorted(claims, key=lambda claim: claim.at):
            self._settle(claim._replace(at=min(claim.at, now)))

    @property
    def moved_numbers(self) -> list[str]:
        """Phone numbers that have another owner now."""
        return [identity.identity for identity in self.changed if identity.kind == "PHONE_NUMBER"]

    def _settle(self, claim: Claim) -> None:
        if len(claim.identities) == 1 and claim.identities[0] in self.owner:
            return  # says nothing new
        sure = [*claim.former, *([claim.user] if claim.user else [])]
        passed_on = claim.number is not None and self._is_passed_on(claim, claim.number, sure)
        names = [*sure, *([claim.number] if claim.number and not passed_on else [])]
        customer = self._merged({self.owner[name]: None for name in names if name in self.owner})
        for name in claim.former:
            self._give(name, customer, self.seen.get(name, LONG_AGO))
        for name in names[len(claim.former) :]:
            self._give(name, customer, max(claim.at, self.seen.get(name, LONG_AGO)))
        if claim.number and passed_on and claim.at > self.seen[claim.number]:
            self._give(claim.number, customer, claim.at)

    def _is_passed_on(self, claim: Claim, number: Identity, sure: Iterable[Identity]) -> bool:
        """Return whether the claim's number is recorded for somebody else, who had it before or got it since."""
        if (owner := self.owner.get(number)) is None or not (others := self._users(owner)):
            return False
        mine = {name for name in sure if name.kind == "USER_ID"}
        if claim.user:
            return not mine & others
        # A change of number that does not tell the new user ID: the person may have written from the new number since.
        mine = mine.union(*(self._users(self.owner[name]) for name in sure if name in self.owner))
        return bool(mine) and not mine & others and self.seen[number] < claim.at

    def _users(self, customer_id: str) -> set[Identity]:
        return {name for name, owner in self.owner.items() if owner == customer_id and name.kind == "USER_ID"}

    def _merged(self, customers: Iterable[str]) -> str:
        """Return the one customer left of several, the one whose conversation began first; a new one of none."""
        never = datetime.max.replace(tzinfo=UTC)
        kept, *others = sorted(customers, key=lambda one: (self._started.get(one, never), one)) or [str(uuid4())]
        if kept not in self.owner.values():
            self.created.append(kept)
        for other in others:
            self.merges.append((kept, other))
            self.touched |= {kept, other}
            self.owner = {name: kept if owner == other else owner for name, owner in self.owner.items()}
        return kept

    def _give(self, name: Identity, customer: str, seen_at: datetime) -> None:
        before = self.owner.get(name)
        if (before, self.seen.get(name)) != (customer, seen_at):
            self.touched |= {customer, *([before] if before else [])}
            self.owner[name], self.seen[name] = customer, seen_at
            self.changed[name] = None
