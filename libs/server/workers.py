"""Worker processes that serve one port, and their parent, which only supervises them.

Each worker has an event loop and a listening socket (SO_REUSEPORT); the kernel distributes new connections. Workers are
forked, so the parent must have no threads and no gRPC objects.
"""

import asyncio
import gc
import math
import multiprocessing
import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from ctypes import Array, c_double
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.context import ForkProcess
from pathlib import Path
from types import FrameType

import structlog

SIGNALS = (signal.SIGTERM, signal.SIGINT)
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 10.0
LONG_LIFE_SECONDS = 60.0  # a worker that ran this long is restarted without delay
HEARTBEAT_SECONDS = 1.0

log = structlog.get_logger()


class CannotListen(Exception):
    """A port is in use, or the address is not local."""


def reserve(host: str, port: int) -> socket.socket:
    """Reserve a port for this process's workers while the socket is open. Raises: CannotListen if it is in use.

    With SO_REUSEPORT alone, two services of one user would share the port silently. So the port is first bound without
    it, and then shared with a second socket. Other services can't bind it alone, since this socket has no SO_REUSEADDR.
    The socket does not listen: it gets no connections.
    """
    try:
        family, *_, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        with socket.create_server(address, family=family) as alone:
            alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            shared = socket.socket(family)
            shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            shared.bind(alone.getsockname())
            shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
            return shared
    except OSError as error:
        raise CannotListen(f"cannot listen on {host}:{port}: is the port in use?") from error


@dataclass(frozen=True)
class Worker:
    """One of `count` workers: its number, the folder they share, and the ends of two pipes.

    `parent` is closed when the worker must end, or when the parent has died. A byte written to `ready` means that the
    worker serves. `heartbeats` is memory shared with the parent: when each worker's event loop last ran, in s of the
    monotonic clock, 0 before it serves.
    """

    number: int
    count: int
    folder: Path
    parent: int
    ready: int
    heartbeats: "Array[c_double]"

    @property
    def is_alone(self) -> bool:
        """Whether there is only this process, without a parent."""
        return self.count == 1

    def watch_parent(self, loop: asyncio.AbstractEventLoop, end: Callable[[], None]) -> None:
        """Call `end` when the parent shuts down or dies."""

        def ended() -> None:
            loop.remove_reader(self.parent)
            end()

        if not self.is_alone:
            loop.add_reader(self.parent, ended)

    def report_ready(self) -> None:
        """Report to the parent that this worker serves, and from now on its heartbeats."""
        if not self.is_alone:
            os.write(self.ready, b".")
            self._beat()

    def _beat(self) -> None:
        self.heartbeats[self.number] = time.monotonic()
        asyncio.get_running_loop().call_later(HEARTBEAT_SECONDS, self._beat)


ALONE = Worker(0, 1, Path(), -1, -1, (c_double * 1)())


class _Stopped(Exception):
    """SIGTERM or SIGINT was received."""


def supervise(
    count: int, work: Callable[[Worker], None], timeout: float, forwarded: Sequence[signal.Signals] = ()
) -> int:
    """Run `work` in `count` processes until SIGTERM or SIGINT; return the exit code.

    The first worker must serve before the others start, so that a configuration error is reported once. Later a worker
    that dies is restarted, after a pause that doubles up to 10 s. A worker whose event loop has not run for `timeout`
    seconds (0: no limit) is killed: the kernel would still give it connections. The workers drain when a pipe closes,
    which happens even if this process is killed. Signals to be `forwarded` are sent to every worker.
    """
    gc.collect()
    gc.freeze()  # a worker's garbage collections then leave imported objects shared: 11 MB of private memory, not 30
    with tempfile.TemporaryDirectory(prefix="parlor-") as folder:
        return _Supervisor(count, work, timeout, Path(folder), forwarded).run()


class _Supervisor:
    def __init__(
        self,
        count: int,
        work: Callable[[Worker], None],
        timeout: float,
        folder: Path,
        forwarded: Sequence[signal.Signals],
    ) -> None:
        self._count = count
        self._work = work
        self._timeout = timeout
        self._forwarded = forwarded
        self._heartbeats = multiprocessing.get_context("fork").RawArray(c_double, count)
        self._checked = time.monotonic()
        self._folder = folder
        self._parent, self._own_end = os.pipe()
        self._is_ready, self._ready = os.pipe()
        self._running: dict[int, ForkProcess] = {}
        self._started: dict[int, float] = {}
        self._due: dict[int, float] = {}
        self._pauses: dict[int, float] = {}

    def run(self) -> int:
        for each in SIGNALS:
            signal.signal(each, _stop)
        for each in self._forwarded:
            signal.signal(each, self._forward)
        try:
            first = self._start(0)
            if self._is_ready not in wait([first.sentinel, self._is_ready]):
                first.join()
                return abs(first.exitcode or 1)
            for number in range(1, self._count):
                self._start(number)
            while True:
                self._watch()
        except _Stopped:
            log.info("stopping")
        os.close(self._own_end)
        while alive := [process.sentinel for process in self._running.values() if process.exitcode is None]:
            wait(alive, HEARTBEAT_SECONDS)
            self._kill_hung(time.monotonic())
        stopped = {0, *(-number for number in SIGNALS)}
        return int(any(process.exitcode not in stopped for process in self._running.values()))

    def _forward(self, number: int, frame: FrameType | None) -> None:
        for process in self._running.values():
            if process.pid is not None and process.exitcode is None:
                os.kill(process.pid, number)

    def _start(self, number: int) -> ForkProcess:
        self._heartbeats[number] = 0
        worker = Worker(number, self._count, self._folder, self._parent, self._ready, self._heartbeats)
        process = multiprocessing.get_context("fork").Process(target=self._become, args=(worker,))
        blocked = (*SIGNALS, *self._forwarded)
        signal.pthread_sigmask(signal.SIG_BLOCK, blocked)  # the child must not run this process's handlers
        try:
            process.start()
            self._running[number], self._started[number] = process, time.monotonic()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, blocked)
        return process

    def _become(self, worker: Worker) -> None:
        """Run as the worker, in the child process."""
        os.close(self._own_end)
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        for number in self._forwarded:
            signal.signal(number, signal.SIG_IGN)  # until the worker handles it, before it reads what is reloaded
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (*SIGNALS, *self._forwarded))
        structlog.contextvars.bind_contextvars(worker=worker.number)
        self._work(worker)

    def _watch(self) -> None:
        """Wait until a worker dies, hangs or is due to be restarted, and handle it."""
        timeout = max(0.0, min(self._due.values(), default=math.inf) - time.monotonic())
        timeout = min(timeout, HEARTBEAT_SECONDS)
        ended = wait([process.sentinel for process in self._running.values()], timeout)
        now = time.monotonic()
        self._kill_hung(now)
        for number in [number for number, process in self._running.items() if process.sentinel in ended]:
            process, pause = self._running.pop(number), self._pause(number, now - self._started[number])
            process.join()  # the sentinel may fire before the exit code is available
            log.error("worker died", worker=number, code=process.exitcode, pause_seconds=pause)
            self._due[number] = now + pause
        for number in [number for number, due in self._due.items() if due <= now]:
            del self._due[number]
            self._start(number)

    def _kill_hung(self, now: float) -> None:
        """Kill the workers whose event loop hangs, unless this process was suspended, too."""
        was_suspended, self._checked = now - self._checked > 2 * HEARTBEAT_SECONDS, now
        if was_suspended or not self._timeout:
            return
        for number, process in self._running.items():
            last = self._heartbeats[number]
            if last and now - last > self._timeout and process.exitcode is None:
                log.error("worker hangs", worker=number, seconds=round(now - last, 1))
                process.kill()

    def _pause(self, number: int, lived: float) -> float:
        """Return how long to wait before a worker is restarted, in s."""
        before = 0.0 if lived > LONG_LIFE_SECONDS else self._pauses.get(number, 0.0)
        self._pauses[number] = min(2 * before, LONGEST_PAUSE_SECONDS) or FIRST_PAUSE_SECONDS
        return self._pauses[number]


def _stop(number: int, frame: FrameType | None) -> None:
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    raise _Stopped
