"""Connections lent fairly: the callers of one key, such as a salon, wait for each other and not everybody for them."""

import asyncio
from collections import Counter, deque

from libs.db.connection import Connection
from libs.db.pool import WAITING_PER_CONNECTION, Database, Lease, PoolExhausted


class FairLimit:
    """Lends connections of a pool: at most `each` to one key and `total` to all at once, but at least one.

    Keys that wait take turns, however many callers each has.
    """

    def __init__(self, database: Database, each: int, total: int) -> None:
        """Prepare; `each` and `total` are numbers of connections."""
        self._database = database
        self._each = max(1, each)
        self._total = max(1, total)
        self._lent: Counter[str] = Counter()
        self._all_lent = 0
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}  # whose turn it is comes first

    def connection(self, key: str) -> "FairLease":
        """Lend a connection as `Database.connection` does.

        The acquisition timeout counts once for the turn and once for the connection.
        Raises: DatabaseUnavailable; PoolExhausted, also if too many callers of the key wait.
        """
        return FairLease(self, key, self._database.connection())

    async def acquire(self, key: str) -> None:
        """Wait for a turn; `release` must follow."""
        if self._all_lent < self._total and self._lent[key] < self._each:
            self._lend(key)
            return
        queue = self._waiting.setdefault(key, deque())
        if len(queue) >= self._database.settings.connection_limit * WAITING_PER_CONNECTION:
            self._database.exhaustions += 1
            raise PoolExhausted
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue.append(turn)
        try:
            async with asyncio.timeout(self._database.settings.pool_timeout):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self.release(key)  # the turn came together with the cancellation
            elif turn in queue:
                self._leave(key, queue, turn)
            if isinstance(error, TimeoutError):
                self._database.exhaustions += 1
                raise PoolExhausted from error
            raise

    def release(self, key: str) -> None:
        """Give a turn back."""
        self._all_lent -= 1
        self._lent[key] -= 1
        if not self._lent[key]:
            del self._lent[key]
        if self._waiting:
            self._wake()

    def _lend(self, key: str) -> None:
        self._all_lent += 1
        self._lent[key] += 1

    def _leave(self, key: str, queue: deque[asyncio.Future[None]], turn: asyncio.Future[None]) -> None:
        queue.remove(turn)
        if not queue and self._waiting.get(key) is queue:
            del self._waiting[key]

    def _wake(self) -> None:
        """Give the free turn to the first key that may have it, and put that key last.

        Few keys are passed over: those that have as many connections as they may have.
        """
        for key in self._waiting:
            if self._lent[key] < self._each:
                break
        else:
            return
        queue = self._waiting.pop(key)
        turn = queue.popleft()
        if queue:
            self._waiting[key] = queue
        if turn.done():  # cancelled
            self._wake()
        else:
            self._lend(key)
            turn.set_result(None)


def for_writes(database: Database) -> FairLimit:
    """Return the limit of a process's writes: half of the pool, a quarter for one key."""
    connections = database.settings.connection_limit
    return FairLimit(database, connections // 4, connections // 2)


def for_searches(database: Database) -> FairLimit:
    """Return the limit of what reads much: a quarter of the pool, two connections for one key.

    So another quarter at least is left to what reads little.
    """
    return FairLimit(database, 2, database.settings.connection_limit // 4)


class FairLease:
    """A connection for the length of a block, in turn."""

    __slots__ = ("_key", "_lease", "_limit")

    def __init__(self, limit: FairLimit, key: str, lease: Lease) -> None:
        """Take nothing yet."""
        self._limit = limit
        self._key = key
        self._lease = lease

    async def __aenter__(self) -> Connection:
        """Wait for the turn, then take a connection."""
        await self._limit.acquire(self._key)
        try:
            return await self._lease.__aenter__()
        except BaseException:
            self._limit.release(self._key)
            raise

    async def __aexit__(self, *error: object) -> None:
        """Give it back."""
        try:
            await self._lease.__aexit__(*error)
        finally:
            self._limit.release(self._key)
