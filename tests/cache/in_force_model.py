"""A model of how a cache comes into force, small enough to visit every state.

There is one tag, one cached reply, two cache servers that both accept writes, and the row in Postgres that says which
of them is in force. Every externally visible step of a process is a step of the model, so a pause or a crash between
two steps is just another order of steps. A reply is the set of committed writes, as bits.
"""

import random
from collections.abc import Iterator
from typing import Any, NamedTuple

WALK = 120  # steps from the first state


class Rules(NamedTuple):
    """The rules of the protocol. The defaults are the library's; each other value is a variant that must fail."""

    wait: bool = False
    epoch_at_begin: str = "after the id"  # or "before the id", "never"
    records: str = "of an epoch"  # or they are "dropped before" or "dropped after" the epoch is raised
    polls_compare: bool = True
    deletes_compare: bool = True
    settles: bool = True
    looks_check_history: bool = True


class Record(NamedTuple):
    """A tag version record; `epoch` is that of the process that wrote it."""

    epoch: int
    version: int
    unverified: bool
    last_xid: int


class Server(NamedTuple):
    """A cache server. Its `history` changes when its data is replaced; `copy` is its replica's data."""

    history: int = 0
    record: Record | None = None
    entry: tuple[int, int] | None = None  # version, value
    copy: Any = None


class Process(NamedTuple):
    """A process; `due` are the writes that it must show since its last poll."""

    state: str = "away"  # connected, raised, joined, ready
    server: int = 0
    history: int = 0
    epoch: int = 0
    due: int = 0
    lease: int | None = None  # the writes that were committed at the poll that granted it
    hides: bool = False  # the poll found outbox rows that are not registered yet
    read: tuple[Any, ...] = ()
    poll: tuple[Any, ...] = ()
    write: tuple[Any, ...] = ()


class Budget(NamedTuple):
    """How many times each event may still happen."""

    raises: int = 2
    losses: int = 1
    replacements: int = 0


class State(NamedTuple):
    """The state of the model. `row` is (epoch, server, history, settled); `pending` has (bit, ID)."""

    row: tuple[int, int, int, bool]
    servers: tuple[Server, ...]
    processes: tuple[Process, ...]
    committed: int
    acknowledged: int
    pending: tuple[tuple[int, int], ...]
    following: int  # the next transaction ID
    budget: Budget


class Stale(AssertionError):
    """A hit did not show a write that it had to show."""


def initial(processes: int, budget: Budget) -> State:
    """Return a state in which the first server is in force and all processes use it."""
    row = (1, 0, 0, True)
    ready = Process("ready", 0, 0, 1, 0, 0)
    return State(row, (Server(), Server()), (ready,) * processes, 0, 0, (), 1, budget)


class Model:
    """The steps from a state; `roles` tells for each process whether it reads and whether it writes once."""

    def __init__(self, rules: Rules, roles: tuple[str, ...]) -> None:
        """Prepare."""
        self.rules = rules
        self.roles = roles
        self.hits = 0

    def steps(self, state: State) -> Iterator[State]:
        """Yield every state reachable in one step. Raises: Stale."""
        for number, process in enumerate(state.processes):
            yield from self._connections(state, number, process)
            yield from self._polls(state, number, process)
            if "r" in self.roles[number]:
                yield from self._reads(state, number, process)
            if "w" in self.roles[number]:
                yield from self._writes(state, number, process)
        yield from self._replacements(state)

    # Connections

    def _connections(self, state: State, number: int, process: Process) -> Iterator[State]:
        if process.lease is not None and self.rules.wait:
            yield put(state, number, process._replace(lease=None))  # time passes
        if process.state == "away":
            for place, server in enumerate(state.servers):
                yield put(state, number, process._replace(state="connected", server=place, history=server.history))
        elif process.state == "connected":
            yield from self._join(state, number, process)
        elif process.state == "raised":  # by a variant that drops after it
            yield put(self._drop(state, process.server), number, process._replace(state="joined"))
        elif process.state == "joined" and self.rules.wait and self.rules.settles and not state.row[3]:
            if state.row[0] != process.epoch:
                yield put(state, number, away(process))
            elif all(other.lease is None or other.epoch == process.epoch for other in state.processes):
                yield state._replace(row=(*state.row[:3], True))
        elif state.budget.losses and process.state == "ready":
            less = state.budget._replace(losses=state.budget.losses - 1)
            yield put(state._replace(budget=less), number, away(process))

    def _join(self, state: State, number: int, process: Process) -> Iterator[State]:
        """Join this server if it is in force, else put it in force."""
        if (process.server, process.history) == state.row[1:3]:
            yield put(state, number, process._replace(state="joined", epoch=state.row[0]))
        elif state.budget.raises:
            if self.rules.records == "dropped before":
                state = self._drop(state, process.server)  # a separate step would only add orders
            epoch = fresh([state.row[0], *(p.epoch for p in state.processes), *epochs(state)])
            less = state.budget._replace(raises=state.budget.raises - 1)
            raised = state._replace(row=(epoch, process.server, process.history, False), budget=less)
            after = self.rules.records == "dropped after"
            yield put(raised, number, process._replace(state="raised" if after else "joined", epoch=epoch))

    def _drop(self, state: State, place: int) -> State:
        server = state.servers[place]
        return state._replace(servers=replace(state.servers, place, server._replace(record=None, entry=None)))

    def _replacements(self, state: State) -> Iterator[State]:
        """Copy the first server's data; later, once, replace it by the copy, as if the server had been demoted."""
        server = state.servers[0]
        if state.budget.replacements and server.copy is None:
            copied = server._replace(copy=(server.record, server.entry))
            yield state._replace(servers=replace(state.servers, 0, copied))
        elif state.budget.replacements and server.copy:
            less = state.budget._replace(replacements=state.budget.replacements - 1)
            replaced = Server(server.history + 1, *server.copy)
            # The obligation starts at the next poll, which detects the change.
            processes = tuple(
                p if p.server else p._replace(due=0, poll=(*p.poll[:2], 0)[: len(p.poll)]) for p in state.processes
            )
            servers = replace(state.servers, 0, replaced)
            yield state._replace(servers=servers, processes=processes, budget=less)

    # Polls

    def _polls(self, state: State, number: int, process: Process) -> Iterator[State]:
        server = state.servers[process.server]
        if process.poll:
            step, pending, due = process.poll
            if step == "seen":
                state = self._register(state, process, max(xact_id for _, xact_id in pending))
                yield put(state, number, process._replace(hides=False, poll=("registered", pending, due)))
            elif self.rules.deletes_compare and state.row[0] != process.epoch:
                yield put(state, number, away(process))
            else:
                left = tuple(row for row in state.pending if row not in pending)
                state = state._replace(pending=left)
                yield put(state, number, process._replace(state="ready", due=due, poll=()))
            return
        settled = state.row[3] or not (self.rules.wait and self.rules.settles)
        if process.state == "ready" or (process.state == "joined" and settled):
            if server.history != process.history or (self.rules.polls_compare and state.row[0] != process.epoch):
                yield put(state, number, away(process))
                return
            seen = process._replace(lease=state.committed if self.rules.wait else 0, hides=bool(state.pending))
            if state.pending:
                yield put(state, number, seen._replace(poll=("seen", state.pending, state.acknowledged)))
            else:
                yield put(state, number, seen._replace(state="ready", due=state.acknowledged))

    # Reads

    def _reads(self, state: State, number: int, process: Process) -> Iterator[State]:
        if process.read:
            yield from self._load(state, number, process)
            return
        if process.state != "ready" or (self.rules.wait and (process.lease is None or process.hides)):
            return
        server = state.servers[process.server]
        if self.rules.wait and self.rules.looks_check_history and server.history != process.history:
            yield put(state, number, away(process))
            return
        record = self._visible(server.record, process)
        if record and server.entry and server.entry[0] == record.version:
            self.hits += 1
            must = state.acknowledged if self.rules.wait else process.due
            if must & ~server.entry[1]:
                raise Stale
        else:
            yield put(state, number, process._replace(read=("missed", record)))

    def _load(self, state: State, number: int, process: Process) -> Iterator[State]:
        """Take the next step of a read that missed."""
        step, *rest = process.read
        if step == "missed":
            [record] = rest
            if record is None:
                if process.state not in ("joined", "ready"):
                    yield put(state, number, process._replace(read=()))
                    return
                state, record = self._open(state, process)
            yield put(state, number, process._replace(read=("opened", record)))
        elif step == "opened":
            [record] = rest
            barrier = 0
            if record.unverified:
                barrier = state.following
                state = state._replace(following=barrier + 1)
            yield put(
                state, number, process._replace(read=("looks", record.version, max(record.last_xid, barrier), barrier))
            )
        elif step == "looks":
            version, least, barrier = rest
            xmin = min([*running(state), state.following])
            read = ("loaded", version, xmin, barrier, state.committed) if xmin > least else ()
            yield put(state, number, process._replace(read=read))
        else:
            done = process._replace(read=())
            yield put(
                self._fill(state, process, *rest) if process.state in ("joined", "ready") else state, number, done
            )

    def _open(self, state: State, process: Process) -> tuple[State, Record]:
        server = state.servers[process.server]
        record = self._visible(server.record, process)
        if record is None:
            record = Record(process.epoch, new_version(state), True, 0)
            server = server._replace(record=record)
        return state._replace(servers=replace(state.servers, process.server, server)), record

    def _fill(self, state: State, process: Process, version: int, xmin: int, barrier: int, value: int) -> State:
        server = state.servers[process.server]
        record = server.record
        if record is None or record.version != version or xmin <= record.last_xid:
            return state
        if record.unverified:
            if not 0 < barrier < xmin:
                return state
            record = record._replace(unverified=False, last_xid=max(barrier, record.last_xid))
        filled = server._replace(record=record, entry=(version, value))
        return state._replace(servers=replace(state.servers, process.server, filled))

    def _visible(self, record: Record | None, process: Process) -> Record | None:
        """Return a record unless it is of another epoch."""
        if record and self.rules.records == "of an epoch" and record.epoch != process.epoch:
            return None
        return record

    # Writes

    def _writes(self, state: State, number: int, process: Process) -> Iterator[State]:
        bit = 1 << number
        if state.committed & bit and not process.write:
            return
        step, *rest = process.write or ("none",)
        match step:
            case "none" if self.rules.epoch_at_begin == "before the id":
                yield put(state, number, process._replace(write=("compared", state.row[0])))
            case "compared":
                begun = state._replace(following=state.following + 1)
                yield put(begun, number, self._compare(process, state.following, rest[0]))
            case "none":
                begun = state._replace(following=state.following + 1)
                yield put(begun, number, process._replace(write=("begun", state.following)))
            case "begun":
                epoch = process.epoch if self.rules.epoch_at_begin == "never" else state.row[0]
                yield put(state, number, self._compare(process, rest[0], epoch))
            case "registers":
                [xact_id] = rest
                is_left = process.state not in ("joined", "ready") or not self._connected(state)
                if not is_left:
                    state = self._register(state, process, xact_id)
                yield put(state, number, process._replace(write=("commits", xact_id, is_left)))
            case "commits":
                xact_id, is_left = rest
                state = state._replace(committed=state.committed | bit)
                if is_left:
                    state = state._replace(pending=(*state.pending, (bit, xact_id)))
                if is_left and self.rules.wait:
                    yield put(state, number, process._replace(write=("waits", xact_id)))
                else:
                    yield put(state._replace(acknowledged=state.acknowledged | bit), number, process._replace(write=()))
            case "waits":
                yield from self._acknowledge(state, number, process, rest[0])

    def _connected(self, state: State) -> bool:
        """Return whether a process that has joined already uses the server."""
        return state.row[3] or not (self.rules.wait and self.rules.settles)

    def _compare(self, process: Process, xact_id: int, epoch: int) -> Process:
        if process.state in ("joined", "ready") and epoch != process.epoch:
            process = away(process)
        return process._replace(write=("registers", xact_id))

    def _acknowledge(self, state: State, number: int, process: Process, xact_id: int) -> Iterator[State]:
        """Answer a write that left rows, once they are gone, covered by every lease, or registered."""
        bit = 1 << number
        answered = state._replace(acknowledged=state.acknowledged | bit)
        if not any(row[0] == bit for row in state.pending) or all(
            other.lease is None or other.lease & bit for other in state.processes
        ):
            yield put(answered, number, process._replace(write=()))
        elif process.state in ("joined", "ready") and self._connected(state):
            yield put(self._register(answered, process, xact_id), number, process._replace(write=()))

    def _register(self, state: State, process: Process, xact_id: int) -> State:
        server = state.servers[process.server]
        record = self._visible(server.record, process)
        unverified, last_xid = (record.unverified, max(record.last_xid, xact_id)) if record else (True, xact_id)
        new = server._replace(record=Record(process.epoch, new_version(state), unverified, last_xid))
        return state._replace(servers=replace(state.servers, process.server, new))


def away(process: Process) -> Process:
    """Return a process that has lost its server."""
    return process._replace(state="away", server=0, history=0, epoch=0, due=0, lease=None, hides=False, poll=())


def put(state: State, number: int, process: Process) -> State:
    """Return the state with a process replaced."""
    return state._replace(processes=replace(state.processes, number, process))


def replace(values: tuple[Any, ...], place: int, value: Any) -> tuple[Any, ...]:
    """Return a tuple with one value replaced."""
    return (*values[:place], value, *values[place + 1 :])


def running(state: State) -> list[int]:
    """Return the IDs of the running transactions."""
    return [p.write[1] for p in state.processes if p.write and p.write[0] in ("begun", "registers", "commits")]


def fresh(used: list[int]) -> int:
    """Return an unused number."""
    return next(number for number in range(1, len(used) + 2) if number not in used)


def epochs(state: State) -> list[int]:
    """Return the epochs of the records."""
    found = [server.record.epoch for server in state.servers if server.record]
    found += [server.copy[0].epoch for server in state.servers if server.copy and server.copy[0]]
    found += [p.read[1].epoch for p in state.processes if p.read and isinstance(p.read[1], Record)]
    return found + [p.write[1] for p in state.processes if p.write and p.write[0] == "compared"]


def new_version(state: State) -> int:
    """Return an unused version."""
    used = [part for server in state.servers for part in _versions(server)]
    for process in state.processes:
        if process.read and process.read[1] is not None:
            used.append(process.read[1].version if isinstance(process.read[1], Record) else process.read[1])
    return fresh(used)


def _versions(server: Server) -> list[int]:
    record, entry = server.copy or (None, None)
    found = [each.version for each in (server.record, record) if each]
    return found + [each[0] for each in (server.entry, entry) if each]


def ranked(state: State) -> State:
    """Return the state with transaction IDs renumbered in order, so that the number of states is finite."""
    ids = {0, state.following, *(xact_id for _, xact_id in state.pending)}
    for server in state.servers:
        ids.update(record.last_xid for record in (server.record, (server.copy or (None,))[0]) if record)
    for process in state.processes:
        ids.update(_ids(process))
    rank = {xact_id: place for place, xact_id in enumerate(sorted(ids))}
    if all(xact_id == place for xact_id, place in rank.items()):
        return state

    def record(old: Record | None) -> Record | None:
        return old and old._replace(last_xid=rank[old.last_xid])

    servers = tuple(
        server._replace(record=record(server.record), copy=server.copy and (record(server.copy[0]), server.copy[1]))
        for server in state.servers
    )
    processes = tuple(_renumber(process, rank) for process in state.processes)
    pending = tuple((bit, rank[xact_id]) for bit, xact_id in state.pending)
    return state._replace(servers=servers, processes=processes, pending=pending, following=rank[state.following])


def _ids(process: Process) -> list[int]:
    found: list[int] = []
    if process.read:
        _step, first, *rest = process.read
        if isinstance(first, Record):
            found.append(first.last_xid)
        else:
            found += rest[:2]
    if process.write and process.write[0] != "compared":
        found.append(process.write[1])
    if process.poll:
        found += [xact_id for _, xact_id in process.poll[1]]
    return found


def _renumber(process: Process, rank: dict[int, int]) -> Process:
    read, write, poll = process.read, process.write, process.poll
    if read and isinstance(read[1], Record):
        read = (read[0], read[1]._replace(last_xid=rank[read[1].last_xid]))
    elif read and read[1] is not None:
        read = (*read[:2], rank[read[2]], rank[read[3]], *read[4:])
    if write and write[0] != "compared":
        write = (write[0], rank[write[1]], *write[2:])
    if poll:
        poll = (poll[0], tuple((bit, rank[xact_id]) for bit, xact_id in poll[1]), poll[2])
    return process._replace(read=read, write=write, poll=poll)


def walk(rules: Rules, roles: tuple[str, ...], budget: Budget, steps: int, chance: random.Random) -> int:
    """Walk at random, repeatedly from the first state; return the number of hits checked. Raises: Stale."""
    model = Model(rules, roles)
    state = first = initial(len(roles), budget)
    for number in range(steps):
        following = list(model.steps(state))
        state = chance.choice(following) if following and number % WALK else first
    return model.hits


def explore(rules: Rules, roles: tuple[str, ...], budget: Budget, most: int = 3_000_000) -> tuple[int, int]:
    """Visit every state; return the number of states and of hits checked. Raises: Stale."""
    model = Model(rules, roles)
    first = initial(len(roles), budget)
    visited, waiting = {first}, [first]
    while waiting:
        for state in map(ranked, model.steps(waiting.pop())):
            if state not in visited:
                visited.add(state)
                waiting.append(state)
        if len(visited) > most:
            raise RuntimeError(f"more than {most} states")
    return len(visited), model.hits
