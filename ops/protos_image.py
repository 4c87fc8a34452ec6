"""Writes the protos for clients in other languages, as a FileDescriptorSet that protoc and buf read."""

from pathlib import Path

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from parlor.booking.v1 import booking_pb2
from parlor.messaging.v1 import messaging_pb2
from parlor.ops.v1 import ops_pb2
from parlor.stats.v1 import stats_pb2

SERVICES = (booking_pb2, messaging_pb2, ops_pb2, stats_pb2)


def image() -> FileDescriptorSet:
    """Return all protos and their imports, each file after its imports, without comments."""
    files: dict[str, FileDescriptor] = {}

    def add(file: FileDescriptor) -> None:
        if file.name not in files:
            for imported in file.dependencies:
                add(imported)
            files[file.name] = file

    for module in SERVICES:
        add(module.DESCRIPTOR)
    found = FileDescriptorSet()
    for file in files.values():
        file.CopyToProto(found.file.add())
    return found


def write_image(path: Path) -> int:
    """Write the image; return its number of files. Raises: OSError."""
    found = image()
    path.write_bytes(found.SerializeToString(deterministic=True))
    return len(found.file)
