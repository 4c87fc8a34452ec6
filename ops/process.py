"""Child processes that are ready when `start` returns and never outlive this process."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import psutil

LAUNCH = Path(__file__).with_name("launch.py")
READY_SECONDS = 60.0
STOP_SECONDS = 40.0  # a service drains for at most 30 s


class StartError(Exception):
    """A server could not be started; the message is readable and ends with the last lines of the server's log."""


def is_free(port: int) -> bool:
    """Return whether a server could listen on 127.0.0.1:port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            probe.listen()
        except OSError:
            return False
    return True


def holder(port: int) -> str | None:
    """Return a readable name of the process that has a TCP socket on a port; None if it is unknown."""
    with suppress(psutil.Error):
        for each in psutil.net_connections("tcp"):
            if each.laddr and each.laddr.port == port and each.pid:
                return f"process {each.pid}, {psutil.Process(each.pid).name()}"
    return None


def free_port() -> int:
    """Return a free port; see free_ports."""
    return free_ports(1)[0]


def free_ports(count: int) -> range:
    """Return consecutive free ports, below the ephemeral range; no other call returns them for a minute.

    Within that range, a client that retries a stopped server may connect to itself and so take its port.
    """
    rows = (range(first, first + count) for first in random.sample(range(20_000, 32_000), 1_000))
    return next(row for row in rows if all(map(_take, row)))


def _take(port: int) -> bool:
    """Leave a connection of the port in TIME_WAIT, which servers ignore (SO_REUSEADDR), but not this function."""
    with socket.socket() as taken:
        try:
            taken.bind(("127.0.0.1", port))
        except OSError:
            return False
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.listen()
        with socket.create_connection(("127.0.0.1", port)):
            taken.accept()[0].close()  # the side that closes first stays in TIME_WAIT
    return True


def spawn(
    command: list[str],
    log: Path,
    stop_signal: int,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
    stdin: int | IO[bytes] = subprocess.DEVNULL,
) -> subprocess.Popen[bytes]:
    """Start a program that gets `stop_signal` when this thread dies; its output is added to `log`.

    With a folder it runs as nobody if this process is root (launch.py). It gets a new session, so Ctrl-C reaches
    only this process, which then stops its children in order.
    """
    launcher = [sys.executable, "-I", "-S", str(LAUNCH), str(os.getpid()), str(int(stop_signal)), str(folder or "")]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(  # noqa: S603 - the program is ours
            [*launcher, *command],
            stdin=stdin,
            stdout=output,
            stderr=output,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )


class Server(ABC):
    """A child process on 127.0.0.1.

    Start it on a thread that lives as long as the server: the kernel ends the child with the thread.
    """

    stop_signal = signal.SIGTERM

    def __init__(self, name: str, port: int | None, log: Path) -> None:
        """Choose a free port if none is given; restarts use it again."""
        self.name = name
        self.port = port or free_port()
        self.log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    @abstractmethod
    def spawn(self) -> subprocess.Popen[bytes]:
        """Start the process."""

    @abstractmethod
    def is_ready(self) -> bool:
        """Return whether the server answers. Never raises, never waits long."""

    @property
    def is_running(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The process ID. Raises: ValueError if there is no process."""
        if self._process is None:
            raise ValueError(f"{self.name} does not run")
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """The exit code of the process, negative for a signal; None if it runs or was never started."""
        return self._process.poll() if self._process else None

    def start(self) -> Self:
        """Launch the server and wait until it answers. Raises StartError."""
        self.launch()
        self.wait()
        return self

    def launch(self) -> None:
        """Start the process without waiting for it. Raises StartError if the port is in use."""
        if not is_free(self.port):
            by = f" by {name}" if (name := holder(self.port)) else ""
            raise StartError(f"{self.name}: port {self.port} is in use{by}")
        self._log_start = self.log.stat().st_size if self.log.exists() else 0
        self._process = self.spawn()

    def wait(self) -> None:
        """Wait until the server answers. Raises StartError if it ends first, or takes more than a minute."""
        deadline = time.monotonic() + READY_SECONDS
        while not (ready := self.is_ready()) and self.is_running and time.monotonic() < deadline:
            time.sleep(0.02)
        if not (ready and self.is_running):
            self.kill()
            raise StartError(f"{self.name} did not start; {self.log} ends:\n{self.last_words()}")

    def terminate(self) -> None:
        """Ask the server to stop, without waiting."""
        if self._process and self.is_running:
            self._process.send_signal(self.stop_signal)

    def stop(self) -> None:
        """Stop the server and wait; kill it after 40 s. Does nothing if it does not run."""
        self.terminate()
        if self._process:
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self) -> None:
        """Kill the server, like a crash. Does nothing if it does not run."""
        if self._process:
            self._process.kill()
            self._process.wait()

    def last_words(self, lines: int = 15) -> str:
        """Return the last lines that the server has logged since its last launch."""
        with self.log.open("rb") as log:
            log.seek(self._log_start)
            return "\n".join(log.read().decode(errors="replace").splitlines()[-lines:])

    def __enter__(self) -> Self:
        """Start the server; an exception during the start stops it."""
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Stop."""
        self.stop()
