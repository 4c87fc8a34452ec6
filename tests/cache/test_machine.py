"""The whole protocol as a state machine: no order of events makes a read staler than allowed.

Processes read, write, drain, lose Valkey and are killed; each stops before each command and statement, until the
machine releases it. Meanwhile keys vanish or get values of any type, and commands arrive twice or late. After each step
every entry is compared with the rows. `--machine-examples N` makes N random runs.

The machine must find the wrong variants, which shows that it is able to fail. Those that it finds too rarely have an
interleaving in test_counterexamples.py.
"""

import asyncio
import itertools
from collections import Counter
from collections.abc import Awaitable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from libs.cache.keys import VERSION_SUFFIX
from libs.cache.store import StoreAway
from tests.cache import garbage, variants
from tests.cache.machine import PARTS, Process, Row, World
from tests.cache.servers import CacheServer
from tests.cache.shop import Shop, put

PROCESSES = 2
JOBS = 3  # of a process at once
HARMS = 5  # in a run
EXAMPLES = 35
EXAMPLES_OF_A_VARIANT = 400
STEPS = 50

_numbers = itertools.count()
_process = st.integers(0, PROCESSES - 1)
_group = st.sampled_from(["", *(f":{part}" for part in PARTS)])
_which = st.integers(0, 30)
_steps = st.integers(0, 6)


class Stale(AssertionError):
    """A guarantee was broken."""


class Aborted(Exception):
    """A writer aborted."""


@dataclass(eq=False)
class Job:
    """A running job of a process; a read must show `due`, the names seen or acknowledged before it began."""

    process: int
    shelf: str
    task: "asyncio.Task[Any]"
    writes: str = ""
    due: frozenset[str] | None = None


class Machine(RuleBasedStateMachine):
    """Two processes and a new shelf."""

    world: World
    ours: bool  # costs and errors of variants are not checked
    steps = 0

    def __init__(self) -> None:
        """Begin with an empty shelf and two new processes."""
        super().__init__()
        self.shelf = f"{next(_numbers):08}"
        self.shelves = [self.shelf, *(f"{self.shelf}:{part}" for part in PARTS)]
        self.harms = 0
        self.jobs: list[Job] = []
        self.rows: list[Row] = []
        self.seen: set[str] = set()
        self.source = ""  # of the last reply
        self.versions: list[list[bytes | None]] = [[] for _ in self.shelves]
        self.world.captured.clear()
        self.world.run(self._start())

    async def _start(self) -> None:
        async with self.world.beside.connection() as conn:
            await conn.execute("DELETE FROM cache_outbox")
        self.processes = [Process(self.world) for _ in range(PROCESSES)]
        for process in self.processes:
            process.free = True
            await process.cache._recovery._recover()
            process.free = False

    def teardown(self) -> None:
        """Kill the processes."""
        for process in self.processes:
            self.world.run(process.kill())

    # Jobs that processes begin

    @rule(number=_process, what=st.sampled_from(["read", "write", "abort", "drain"]), tag=_group, steps=_steps)
    def begin(self, number: int, what: str, tag: str, steps: int) -> None:
        """Begin to read, write, write and abort, or drain the outbox; take some steps of it."""
        if what == "drain":
            self._drain(number, steps)
        elif self._of(number) < JOBS:
            writes = "" if what == "read" else f"{next(_numbers)}"
            self._begin(number, self._place(tag), steps=steps, writes=writes, aborts=what == "abort")

    def _drain(self, number: int, steps: int) -> None:
        if not any(job.process == number and not job.shelf for job in self.jobs):
            self._begin(number, "", steps=steps)

    def _place(self, tag: str) -> str:
        """Return a shelf or a sub-tag of it; variants are tested on one tag, where they fail sooner."""
        return self.shelf + (tag if self.ours else "")

    def _of(self, number: int) -> int:
        return sum(job.process == number for job in self.jobs)

    def _begin(self, number: int, shelf: str, *, steps: int = 0, writes: str = "", aborts: bool = False) -> None:
        process = self.processes[number]
        due = None
        work: Coroutine[Any, Any, Any]

        async def begin() -> Job:
            task = asyncio.create_task(work)
            task.add_done_callback(asyncio.Task.exception)  # the result of a killed process is not used
            return Job(number, shelf, task, writes, due)

        if writes:
            work = _write(process, shelf, writes, aborts)
        elif shelf:
            due = frozenset(row.name for row in self._rows(shelf) if row.name in self.seen and not row.pending)
            work = process.shop.read("", shelf=shelf)
        else:
            work = (
                process.cache._recovery.drain() if process.cache.store.connected else process.cache._recovery._recover()
            )
        self.jobs.append(self.world.run(begin()))
        self._check()
        while process.steps and steps:
            self._go(process, process.steps[-1])
            steps -= 1

    # Steps of running jobs

    @precondition(lambda self: any(process.steps for process in self.processes))
    @rule(which=_which)
    def go_on(self, which: int) -> None:
        """Take one step."""
        steps = [(process, step) for process in self.processes for step in process.steps]
        self._go(*steps[which % len(steps)])

    @precondition(lambda self: any(process.steps for process in self.processes))
    @rule(number=_process, count=st.integers(2, 10))
    def go_on_for_a_while(self, number: int, count: int) -> None:
        """Take some steps of a process, in order."""
        process = self.processes[number]
        while process.steps and count:
            self._go(process, process.steps[0])
            count -= 1

    def _go(self, process: Process, step: "asyncio.Future[None]") -> None:
        process.steps.remove(step)
        self.world.run(_end(step))
        self._check()

    # Harm

    @precondition(lambda self: self.harms < HARMS)
    @rule(number=_process, how=st.sampled_from(["kill", "cut off"]), back=st.booleans())
    def harm_a_process(self, number: int, how: str, back: bool) -> None:
        """Kill and replace a process, or cut it off from Valkey; it may reconnect at once."""
        self.harms += 1
        process = self.processes[number]
        if how == "kill":
            self.world.run(process.kill())
            self.jobs = [job for job in self.jobs if job.process != number]
            self.processes[number] = Process(self.world)
        else:
            self.world.run(_call(process.lose_valkey))
        self._check()
        if back:
            self._drain(number, 9)

    @precondition(lambda self: self.harms < HARMS)
    @rule(which=_which, how=st.sampled_from(["lose everything", "evict", "send again"]))
    def harm_valkey(self, which: int, how: str) -> None:
        """Flush it, remove one key, or replay a script."""
        self.harms += 1
        keys, captured = self._keys(), self.world.captured
        if how == "lose everything":
            self.world.run(self.world.remove(*keys))
        elif how == "evict":
            self.world.run(self.world.remove(keys[which % len(keys)]))
        elif captured:
            self.world.run(self.world.send_again(captured[which % len(captured)]))
        self._check()

    @precondition(lambda self: self.harms < HARMS)
    @rule(which=_which, kind=garbage.kinds, value=garbage.strings)
    def write_garbage(self, which: int, kind: str, value: bytes) -> None:
        """Write a value of any type to a key."""
        self.harms += 1
        keys = self._keys()
        self.world.run(self.world.write(keys[which % len(keys)], kind, value))
        self._check()

    @precondition(lambda self: self.harms < HARMS)
    @rule(which=_which, how=st.sampled_from(["change", "cut", "add", "copy"]), at=st.integers(0, 80))
    def spoil_a_value(self, which: int, how: str, at: int) -> None:
        """Change a value, or copy that of another key."""
        self.harms += 1
        keys = self._keys()
        value = self.world.run(self.world.value(keys[(which + (how == "copy")) % len(keys)]))
        spoiled = value if how == "copy" else garbage.spoiled(value, how, at)
        self.world.run(self.world.write(keys[which % len(keys)], "string", spoiled))
        self._check()

    def _keys(self) -> list[str]:
        shop = self.world.beside.shop
        tags = [shop.shelf(shelf).name for shelf in self.shelves]
        return [name for tag in tags for name in (tag + VERSION_SUFFIX, f"{tag}:all")]

    # Costs

    def _undisturbed(self) -> list[Process]:
        """Return idle processes that may hit, if no process writes."""
        if any(job.writes for job in self.jobs):
            return []
        return [p for number, p in enumerate(self.processes) if p.ready and not p.steps and not self._of(number)]

    @precondition(lambda self: self._undisturbed())
    @rule(tag=_group)
    def read_twice(self, tag: str) -> None:
        """Read twice; the second read hits."""
        process, shelf = self._undisturbed()[0], self._place(tag)
        [(meta, entry)] = self.world.run(self.world.cached([shelf]))
        source, cost = self._alone(process, shelf)
        again = self._alone(process, shelf)
        if not self.ours:
            return
        opened = meta is None
        barrier = cost["statement"] - 1
        if source == "hit":
            assert entry and cost == {"MGET": 1}
        else:
            assert cost == {"MGET": 1, "EVALSHA": 1 + opened, "statement": 1 + barrier}
            assert barrier == 1 if meta and meta.unverified else barrier in (0, opened)
        assert again == ("hit", {"MGET": 1})

    @precondition(lambda self: self._undisturbed())
    @rule(tag=_group)
    def write_at_once(self, tag: str) -> None:
        """Write with one call to Valkey and no extra statement."""
        _, cost = self._alone(self._undisturbed()[0], self._place(tag), writes=f"{next(_numbers)}")
        assert not self.ours or cost == {"EVALSHA": 1, "statement": 3}

    def _alone(self, process: Process, shelf: str, *, writes: str = "") -> tuple[str, Counter[str]]:
        """Run a job without a pause; return the source of its reply, and what it cost."""
        process.passed.clear()
        process.free = True
        self._begin(self.processes.index(process), shelf, writes=writes)
        process.free = False
        return self.source, Counter(process.passed)

    # Invariants

    def _rows(self, shelf: str) -> list[Row]:
        return [row for row in self.rows if row.shelf.startswith(shelf)]

    def _check(self) -> None:
        """Check the jobs that have ended, and compare every entry with the rows."""
        type(self).steps += 1
        self.rows, found = self.world.run(_both(self.world.rows(self.shelf), self.world.cached(self.shelves)))
        for shelf, versions, (meta, entry) in zip(self.shelves, self.versions, found, strict=True):
            rows = self._rows(shelf)
            if entry and not any(row.pending for row in rows) and _names(entry.body) != {row.name for row in rows}:
                raise Stale(f"{shelf} is cached as {entry.body!r}, and is {rows}")
            version = meta and meta.version
            if not versions or version != versions[-1]:
                if version and version in versions:
                    raise Stale(f"{version!r} has come again")
                versions.append(version)
        for job in [job for job in self.jobs if job.task.done()]:
            self.jobs.remove(job)
            self._ended(job)

    def _ended(self, job: Job) -> None:
        if job.writes:
            if not isinstance(job.task.exception(), Aborted if self.ours else Exception):
                job.task.result()
                self.seen.add(job.writes)
        elif job.shelf:
            reply = job.task.result()
            shown = _names(reply.body)
            if not (job.due or frozenset()) <= shown <= {row.name for row in self._rows(job.shelf)}:
                raise Stale(f"{job.shelf} is read as {reply}, without what was known: {job.due}")
            self.seen |= shown
            self.source = reply.source
        elif not isinstance(job.task.exception(), StoreAway):
            job.task.result()


async def _write(process: Process, shelf: str, name: str, aborts: bool) -> None:
    if not aborts:
        await process.shop.write("new", name, shelf=shelf)
        return
    async with process.cache.transaction(process.shop.shelf(shelf)) as write:
        await put(write.conn, "new", name, shelf)
        raise Aborted


async def _end(step: "asyncio.Future[None]") -> None:
    step.set_result(None)


async def _call(function: Any) -> None:
    function()


async def _both(first: Awaitable[Any], second: Awaitable[Any]) -> Any:
    return await asyncio.gather(first, second)


def _names(body: bytes | None) -> set[str]:
    return set((body or b"").decode().split())


# The machine finds the other variants only sometimes; test_counterexamples.py has a test for each.
WRONG = {"register_after_commit": variants.RegistersAfterCommit}


@pytest.fixture
def variant() -> type[Shop]:
    """The library."""
    return Shop


@pytest.fixture
def machine(
    database_url: str, own_valkey: CacheServer, variant: type[Shop], monkeypatch: pytest.MonkeyPatch
) -> Iterator[type[Machine]]:
    """The machine, on separate servers."""
    monkeypatch.setattr("libs.cache.loader.FILL_DELAY_SECONDS", 0)  # the machine has no clock
    if variant is not Shop:  # Hypothesis repeats the steps that failed, which must fail again
        monkeypatch.setattr("libs.cache.loader.PATIENCE_SECONDS", 0)
    world = World(database_url, own_valkey.url, variant)
    yield type("Machine", (Machine,), {"world": world, "ours": variant is Shop})
    world.close()


def run(machine: type[Machine], examples: int, *phases: Phase, random: bool = False) -> None:
    checks = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
    profile = settings(
        max_examples=examples,
        stateful_step_count=STEPS,
        phases=phases,
        derandomize=not random,
        database=None,
        deadline=None,
        suppress_health_check=checks,
        report_multiple_bugs=False,
    )
    run_state_machine_as_test(machine, settings=profile)


def test_no_order_of_steps_breaks_a_promise(machine: type[Machine], request: pytest.FixtureRequest) -> None:
    examples = request.config.getoption("machine_examples")
    run(machine, examples or EXAMPLES, Phase.generate, Phase.shrink, random=bool(examples))


@pytest.mark.parametrize("variant", WRONG.values(), ids=WRONG)
def test_a_wrong_variant_is_found(machine: type[Machine]) -> None:
    with pytest.raises(Stale):
        run(machine, EXAMPLES_OF_A_VARIANT, Phase.generate)
