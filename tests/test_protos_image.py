"""`parlor protos-image` writes everything that is needed to compile the protos elsewhere."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from buf.validate import validate_pb2
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool

from ops.protos_image import SERVICES
from parlor.rules.v1 import rules_pb2

BIN = Path(sys.executable).parent


def run(*command: object, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - ours
        [BIN / str(command[0]), *map(str, command[1:])], cwd=folder, capture_output=True, text=True, timeout=60
    )


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A folder that has only the image."""
    done = run("parlor", "protos-image", "parlor.binpb", folder=tmp_path)
    assert done.returncode == 0, done.stdout
    return tmp_path


def test_each_file_of_the_image_comes_after_its_imports(written: Path) -> None:
    files = FileDescriptorSet.FromString((written / "parlor.binpb").read_bytes()).file
    names = [file.name for file in files]
    assert "buf/validate/validate.proto" in names
    pool: Any = DescriptorPool()
    for file in files:
        pool.Add(file)  # fails if an import is missing
    for module in SERVICES:
        for name, service in module.DESCRIPTOR.services_by_name.items():
            found = pool.FindServiceByName(f"{module.DESCRIPTOR.package}.{name}")
            assert [method.name for method in found.methods] == [method.name for method in service.methods]


def test_the_image_has_the_rules_of_the_fields(written: Path) -> None:
    files = FileDescriptorSet.FromString((written / "parlor.binpb").read_bytes()).file
    [booking] = [file for file in files if file.name == "parlor/booking/v1/booking.proto"]
    [request] = [message for message in booking.message_type if message.name == "GetSalonRequest"]
    assert request.field[0].options.Extensions[validate_pb2.field].string.Extensions[rules_pb2.identifier]
    [rules] = [file for file in files if file.name == "parlor/rules/v1/rules.proto"]
    [identifier] = [extension for extension in rules.extension if extension.name == "identifier"]
    [rule] = identifier.options.Extensions[validate_pb2.predefined].cel
    assert "[A-Za-z0-9_-]{1,64}" in rule.expression


def test_protoc_compiles_the_image_without_other_files(written: Path) -> None:
    (written / "out").mkdir()
    arguments = ["--descriptor_set_in=parlor.binpb", "--python_out=out", "parlor/booking/v1/booking.proto"]
    done = run("python", "-m", "grpc_tools.protoc", *arguments, folder=written)
    assert done.returncode == 0, done.stderr
    assert (written / "out/parlor/booking/v1/booking_pb2.py").exists()


def test_buf_reads_the_image(written: Path) -> None:
    done = run("buf", "build", "parlor.binpb", "--path", "parlor", "-o", "out.binpb", folder=written)
    assert done.returncode == 0, done.stderr


def test_a_failed_write_is_one_line(tmp_path: Path) -> None:
    done = run("parlor", "protos-image", "nowhere/parlor.binpb", folder=tmp_path)
    assert done.returncode == 1
    assert done.stdout == "cannot write nowhere/parlor.binpb: No such file or directory\n"
