"""What the policy needs to know of a method, from its descriptor: its group, and the salons of its requests."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

from google.protobuf.descriptor import Descriptor, MethodDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions

GROUPS = ("read", "write", "erase", "ops")
SALON_FIELDS = ("salon_id", "salon_ids")

Salons: TypeAlias = tuple[str, ...]


class MethodInfo(NamedTuple):
    """A method as the policy names it: `booking:GetSalon`, `booking:read`, or `read`."""

    path: str
    service: str
    name: str
    group: str

    def is_named(self, right: str) -> bool:
        """Return whether an entry of `methods` in the policy grants this method."""
        service, _, what = right.rpartition(":")
        return service in ("", self.service) and (what in (self.group, self.name) or (what == "*" and service != ""))


def describe(method: MethodDescriptor) -> MethodInfo:
    """Return how the policy names a method.

    The service is the package without its version: `booking` of `parlor.booking.v1`. Methods of `ops` have the group
    `ops`, EraseCustomer has `erase`, other methods have `read` if they have no side effects, else `write`.
    """
    service = method.containing_service
    path, name = f"{service.full_name}/{method.name}", service.file.package.split(".")[-2]
    is_read = method.GetOptions().idempotency_level == MethodOptions.NO_SIDE_EFFECTS
    group = "ops" if name == "ops" else "erase" if method.name.startswith("Erase") else "read" if is_read else "write"
    return MethodInfo(path, name, method.name, group)


def changes_data(method: MethodDescriptor) -> bool:
    """Return whether a method has side effects."""
    return bool(method.GetOptions().idempotency_level != MethodOptions.NO_SIDE_EFFECTS)


def salons_of(request_type: Descriptor) -> Callable[[Any], Salons]:
    """Return a function that returns the salons that a request names; none if the request is about all salons.

    They are the values of all fields `salon_id` and `salon_ids`, also in nested messages. An empty one means all.
    """
    fields = list(_fields(request_type))
    if not fields:
        return lambda request: ()
    if fields == [_Field("salon_id", False, [])]:
        return lambda request: (request.salon_id,) if request.salon_id else ()

    def named(request: Any) -> Salons:
        found = tuple(dict.fromkeys(_named(request, fields)))
        return () if "" in found else found

    return named


class _Field(NamedTuple):
    """A field of salon IDs, or a message that contains such fields (`inner`)."""

    name: str
    is_repeated: bool
    inner: list["_Field"]


def _fields(kind: Descriptor) -> Iterator[_Field]:
    for field in kind.fields:
        if field.message_type is not None:
            if inner := list(_fields(field.message_type)):
                yield _Field(field.name, field.is_repeated, inner)
        elif field.name in SALON_FIELDS:
            yield _Field(field.name, field.is_repeated, [])


def _named(message: Any, fields: list[_Field]) -> Iterator[str]:
    for name, is_repeated, inner in fields:
        value = getattr(message, name)
        for each in value if is_repeated else [value]:
            if inner:
                yield from _named(each, inner)
            else:
                yield each
