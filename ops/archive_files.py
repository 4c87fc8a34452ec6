"""The files of `parlor archive`: the rows of a month as COPY writes them, compressed, and a manifest in JSON."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import psycopg
import zstandard
from psycopg import sql

SUFFIX, MANIFEST = ".copy.zst", ".json"
CHUNK = 1 << 20


class ArchiveError(Exception):
    """A file can't be written or used; its text says why."""


@dataclass(frozen=True)
class Manifest:
    """What a file has: `rows` with `columns` in this order, of messages from `start_time` to `end_time`, exclusive.

    `start_time` None: all older ones, too. `sha256` is that of the file. `schema` is the last migration of the database
    that wrote it, `erasure_id` the last row of message_erasures that it obeys.
    """

    name: str
    start_time: str | None
    end_time: str
    rows: int
    columns: list[str]
    sha256: str
    schema: str
    erasure_id: int

    def write(self, path: Path) -> None:
        """Write the manifest."""
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, file: Path) -> "Manifest":
        """Read the manifest beside a file. Raises: ArchiveError."""
        path = manifest_path(file)
        try:
            return cls(**json.loads(path.read_bytes()))
        except (OSError, ValueError, TypeError) as error:
            raise ArchiveError(f"{path} is not the manifest of an archive: {error}") from None


def file_path(folder: Path, name: str) -> Path:
    """Return the path of the file of an archive."""
    return folder / f"{name}{SUFFIX}"


def manifest_path(file: Path) -> Path:
    """Return the path of the manifest of a file."""
    return file.with_name(file.name.removesuffix(SUFFIX) + MANIFEST)


def write_rows(conn: psycopg.Connection, query: sql.Composable, path: Path) -> tuple[int, str]:
    """Write the rows of a query, and read the file back; return the number of rows and the SHA-256 of the file.

    Raises: ArchiveError; OSError; psycopg.Error.
    """
    rows, written = 0, hashlib.sha256()
    with path.open("wb") as file, zstandard.ZstdCompressor(level=3, write_checksum=True).stream_writer(file) as writer:
        with conn.cursor() as cursor, cursor.copy(sql.SQL("COPY ({}) TO STDOUT").format(query)) as copy:
            for chunk in copy:
                rows += bytes(chunk).count(b"\n")  # those of the values are escaped
                written.update(chunk)
                writer.write(chunk)
        writer.flush(zstandard.FLUSH_FRAME)
        file.flush()
        os.fsync(file.fileno())
    content = hashlib.sha256()
    for chunk in _chunks(path):
        content.update(chunk)
    if content.digest() != written.digest():
        raise ArchiveError(f"{path} has other rows than were written: the disk is not to be trusted")
    return rows, sha256(path)


def part_of(path: Path) -> Path:
    """Return the path under which a file or a manifest is written, before it is put in place."""
    return path.with_name(path.name + ".part")


def put_in_place(file: Path) -> None:
    """Give the parts of a file and of its manifest their names."""
    part_of(file).replace(file)
    part_of(manifest_path(file)).replace(manifest_path(file))
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_rows(conn: psycopg.Connection, file: Path, table: str, columns: Iterable[str]) -> None:
    """Copy the rows of a file into a table. Raises: ArchiveError; psycopg.Error."""
    names = sql.SQL(", ").join(map(sql.Identifier, columns))
    statement = sql.SQL("COPY {} ({}) FROM STDIN").format(sql.Identifier(table), names)
    with conn.cursor() as cursor, cursor.copy(statement) as copy:
        for chunk in _chunks(file):
            copy.write(chunk)


def sha256(file: Path) -> str:
    """Return the SHA-256 of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _chunks(file: Path) -> Iterator[bytes]:
    try:
        with file.open("rb") as stream, zstandard.ZstdDecompressor().stream_reader(stream) as reader:
            while chunk := reader.read(CHUNK):
                yield chunk
    except zstandard.ZstdError as error:
        raise ArchiveError(f"{file} can't be read: {error}") from None
