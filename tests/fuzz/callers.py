"""Callers of limited rights, and what their calls must never be answered with.

The rights are stated twice: for the services as a policy, and here as functions. Salons that some callers may not see
have texts with MARK, which nothing else contains.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from parlor.booking.v1 import booking_pb2 as booking
from tests.callers import Issuer, jwt_settings, named_salons
from tests.fuzz.words import MARK
from tests.hostile import DAYS, TIMES
from tests.stack import SALON, Stack, booking_request, message_request, salon

LIVES = 86_400.0  # of a token, in s
SALONS = ("salon-2", "salon-3")
# Callers without a right learn nothing but that; a request may also be too large, or its own deadline too short.
REFUSED = {"UNAUTHENTICATED", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"}
POLICY = f"""
[callers.admin]
methods = ["booking:*", "messaging:*", "stats:*", "ops:*"]
salons = ["*"]
[callers.owner]
methods = ["booking:*", "messaging:*", "stats:*"]
salons = ["{SALON}"]
[callers.reader]
methods = ["read"]
salons = ["{SALON}", "salon-2"]
quota = {{ calls_per_second = 20 }}
[callers.clerk]
methods = ["booking:write", "messaging:write", "booking:GetBookingByCode"]
salons = ["salon-2"]
[callers.operator]
methods = ["ops"]
salons = ["*"]
[callers.nothing]
methods = []
salons = ["*"]
"""


class Caller(NamedTuple):
    """A caller: what it sends with each call, which methods it may call, and its salons; None are all."""

    name: str
    metadata: tuple[tuple[str, str], ...]
    may_call: Callable[[str, MethodDescriptor], bool]
    salons: tuple[str, ...] | None


class Callers:
    """The callers. `answered` counts the answers by caller, `marked` those with MARK."""

    def __init__(self, issuer: Issuer, random: Random) -> None:
        """Make their tokens."""
        self._random = random
        self._callers = list(_callers(issuer))
        self._admin = self._callers[0]
        self.answered: Counter[str] = Counter()
        self.marked: Counter[str] = Counter()

    def any(self) -> Caller:
        """Return a caller: one of three calls is by the one who may do everything, so that there are data."""
        return self._admin if self._random.random() < 0.33 else self._random.choice(self._callers)

    def wrong(self, caller: Caller, method: MethodDescriptor, data: bytes, code: str, reply: bytes) -> str:
        """Return what is wrong with an answer to a caller, "" if nothing is. Of an error `reply` is its texts."""
        package = method.containing_service.file.package
        if not package.startswith("parlor."):
            return ""  # health and reflection need no identity
        may_call = caller.may_call(package.split(".")[1], method)
        may_use = may_call and _may_use(caller, method, data)
        self.marked[caller.name] += MARK.encode() in reply
        if code == "OK":
            self.answered[caller.name] += 1
            return _wrong_reply(caller, method, reply) if may_use else f"{caller.name} was answered without a right"
        allowed = REFUSED if not may_call else REFUSED | {"INVALID_ARGUMENT"}
        if not may_use and code not in allowed:
            return f"{caller.name} learned {code} without a right"
        return _shown(caller, _marks(reply))


def settings(folder: Path, issuer: Issuer) -> dict[str, str]:
    """Write the files of services that take these callers; return the environment."""
    (folder / "token").write_text(issuer.token("admin", lives=LIVES))
    own = {name.upper(): str(value) for name, value in jwt_settings(folder, issuer, POLICY).items()}
    return own | {"BOOKING_TOKEN_FILE": str(folder / "token"), "REFLECTION": "true"}


async def plant(stack: Stack) -> None:
    """Fill the other salons with texts that contain MARK and the salon."""
    for salon_id in SALONS:
        text, phone = f"{MARK}{salon_id}", f"+4915198765{salon_id[-1]}00"
        mine: dict[str, Any] = {"salon_id": salon_id}
        await salon(stack, salon_id, name=text, opening_hours=DAYS)
        await stack.booking.UpsertResource(booking.UpsertResourceRequest(**mine, resource_id="anna", name=text))
        hour = {"seconds": 3600}
        service = booking.UpsertServiceRequest(**mine, service_id="cut", name=text, duration=hour)  # type: ignore[arg-type]
        await stack.booking.UpsertService(service)
        await stack.booking.CreateTimeOff(booking.CreateTimeOffRequest(**mine, **TIMES, reason=text))  # type: ignore[arg-type]
        texts = {"customer_name": text, "service_name": text, "notes": text, "customer_phone": phone}
        for start in range(5):
            await stack.booking.CreateBooking(booking_request(1_700_000_000 + start * 3600, **mine, **texts))
        for number in range(5):
            whatsapp_id = f"wamid.marked-{salon_id}-{number}"
            await stack.messaging.RecordMessage(message_request(whatsapp_id, **mine, phone_number=phone, content=text))


def _callers(issuer: Issuer) -> Iterator[Caller]:
    def sends(token: str) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {token}"),)

    def token(name: str, **claims: Any) -> tuple[tuple[str, str], ...]:
        return sends(issuer.token(name, lives=LIVES, **claims))

    def reads(service: str, method: MethodDescriptor) -> bool:
        return service != "ops" and method.GetOptions().idempotency_level == method.GetOptions().NO_SIDE_EFFECTS

    def writes(service: str, method: MethodDescriptor) -> bool:
        changes = not reads(service, method) and not method.name.startswith("Erase")
        return service in ("booking", "messaging") and (changes or method.name == "GetBookingByCode")

    def all_but_ops(service: str, method: MethodDescriptor) -> bool:
        return service != "ops"

    def ops(service: str, method: MethodDescriptor) -> bool:
        return service == "ops"

    yield Caller("admin", token("admin"), lambda service, method: True, None)
    yield Caller("owner", token("owner", salons=["*"]), all_but_ops, (SALON,))
    yield Caller("reader", token("reader"), reads, (SALON, "salon-2"))
    yield Caller("clerk", token("clerk"), writes, ("salon-2",))
    yield Caller("operator", token("operator"), ops, None)
    yield Caller(
        "admin of a salon", token("admin", salons=[SALON, "nobody"]), lambda service, method: True, (SALON, "nobody")
    )
    yield Caller("admin of none", token("admin", salons=[]), lambda service, method: True, ())
    yield Caller("owner of another", token("owner", salons=["salon-3"]), all_but_ops, ())
    other = Issuer().token("admin", lives=LIVES)  # signed with another key
    whole = issuer.token("admin", lives=LIVES)
    strangers = {
        "nothing": token("nothing"),
        "not in the policy": token("*"),
        "without identity": (),
        "with another's signature": sends(other),
        "with a damaged token": sends(whole[:-20]),
        "with an old token": sends(issuer.token("admin", lives=-60)),
        "with a password": (("authorization", "Basic YWRtaW46YWRtaW4="),),
    }
    for name, metadata in strangers.items():
        yield Caller(name, metadata, lambda service, method: False, ())


def _may_use(caller: Caller, method: MethodDescriptor, data: bytes) -> bool:
    """Return whether a caller may use the salons of a request; one that can't be read is about none of them."""
    if caller.salons is None:
        return True
    try:
        request = GetMessageClass(method.input_type).FromString(data)
    except DecodeError:
        return False
    named = {each for message, name in named_salons(request) for each in _values(getattr(message, name))}
    return bool(named) and named <= set(caller.salons)


def _wrong_reply(caller: Caller, method: MethodDescriptor, data: bytes) -> str:
    return _shown(caller, {*_marks(data), *_salons(GetMessageClass(method.output_type).FromString(data))})


def _marks(data: bytes) -> set[str]:
    """Return the salons whose texts an answer contains."""
    return {salon_id for salon_id in SALONS if f"{MARK}{salon_id}".encode() in data}


def _shown(caller: Caller, salons: set[str]) -> str:
    foreign = set() if caller.salons is None else salons - {"", *caller.salons}
    return f"{caller.name} was shown {', '.join(sorted(foreign))}" if foreign else ""


def _salons(message: Message) -> Iterator[str]:
    """Yield the salons that a reply names."""
    for field, value in message.ListFields():
        if field.name in ("salon_id", "salon_ids"):
            yield from _values(value)
        elif field.message_type is not None and not field.message_type.GetOptions().map_entry:
            for part in value if field.is_repeated else [value]:
                yield from _salons(part)


def _values(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)
