"""Regenerate the stubs next to the protos, and the image for `buf lint`: `python -m ops.protos [IMAGE]`.

The wheel of protovalidate has validate.proto only as a descriptor: protoc gets it as a descriptor set, and generates
its stub like ours.
"""

import os
import sys
import sysconfig
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

import grpc_tools
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.type import dayofweek_pb2
from grpc_tools import protoc
from protovalidate._gen.buf.validate import validate_pb

PROTOS = Path(__file__).parent.parent / "protos"
INCLUDES = [PROTOS, Path(grpc_tools.__path__[0]) / "_proto", Path(dayofweek_pb2.__file__).parents[2]]


def validate_descriptors() -> FileDescriptorSet:
    """Return validate.proto and the files that it imports."""
    files = FileDescriptorSet()
    validate = files.file.add()
    validate.ParseFromString(validate_pb.desc().proto.to_binary())
    for name in validate.dependency:
        module = import_module(name.removesuffix(".proto").replace("/", ".") + "_pb2")
        module.DESCRIPTOR.CopyToProto(files.file.add())
    return files


def main(image: str | None = None) -> None:
    """Write every stub, and the image if its path is given."""
    os.environ["PATH"] = sysconfig.get_path("scripts") + os.pathsep + os.environ["PATH"]  # protoc-gen-mypy
    sources = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.glob("parlor/*/v1/*.proto"))
    stubs = [f"--{plugin}_out={PROTOS}" for plugin in ("python", "mypy")]
    grpc_stubs = [f"--{plugin}_out={PROTOS}" for plugin in ("grpc_python", "mypy_grpc")]
    services = [source for source in sources if "\nservice " in (PROTOS / source).read_text()]
    with TemporaryDirectory() as folder:
        known = Path(folder) / "validate.binpb"
        known.write_bytes(validate_descriptors().SerializeToString())
        runs = [[*stubs, "buf/validate/validate.proto", *sources], [*grpc_stubs, *services]]
        if image:
            runs.append([f"--descriptor_set_out={image}", "--include_imports", "--include_source_info", *sources])
        for arguments in runs:
            paths = [f"-I{path}" for path in INCLUDES]
            if code := protoc.main(["protoc", f"--descriptor_set_in={known}", *paths, *arguments]):
                sys.exit(code)


if __name__ == "__main__":
    main(*sys.argv[1:])
