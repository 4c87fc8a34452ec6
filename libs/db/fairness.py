"""Fair shares of the pool: callers of one key, such as a salon, wait for each other but not for those of other keys."""

import asyncio
from collections import Counter, deque
from dataclasses import dataclass, field

from libs.db.connection import Connection
from libs.db.pool import WAITING_PER_CONNECTION, Database, PoolExhausted


class FairLimit:
    """Lends at most `each` connections to one key and `total` to all keys at once, and at least one.

    Waiting keys take turns, however many callers each has.
    """

    def __init__(self, database: Database, each: int, total: int) -> None:
        """Prepare; `each` and `total` are numbers of connections."""
        self._database = database
        self._each = max(1, each)
        self._total = max(1, total)
        self._lent: Counter[str] = Counter()
        self._all_lent = 0
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}  # the key whose turn is next comes first

    def connection(self, key: str) -> "FairConnectionLease":
        """Lend a connection as `Database.connection` does.

        The acquisition timeout counts once for the turn and once for the connection.
        Raises: DatabaseUnavailable; PoolExhausted, also if too many callers of the key wait.
        """
        return FairConnectionLease(self, self._database, key)

    async def acquire(self, key: str) -> None:
        """Wait for a turn; `release` must follow."""
        if self._all_lent < self._total and self._lent[key] < self._each:
            self._all_lent += 1
            self._lent[key] += 1
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
                queue.remove(turn)
                if not queue and self._waiting.get(key) is queue:
                    del self._waiting[key]
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

    def _wake(self) -> None:
        """Give the free turn to the first key that is below its limit, and put that key last."""
        for key in self._waiting:
            if self._lent[key] < self._each:
                break
        else:
            return
        queue = self._waiting.pop(key)
        turn = queue.popleft()
        if queue:
            self._waiting[key] = queue
        if turn.done():  # canceled
            self._wake()
        else:
            self._all_lent += 1
            self._lent[key] += 1
            turn.set_result(None)


@dataclass(slots=True)
class FairConnectionLease:
    """A connection of a `FairLimit` for the length of a block."""

    limit: FairLimit
    database: Database
    key: str
    conn: Connection = field(init=False)

    async def __aenter__(self) -> Connection:
        """Wait for the turn, then acquire a connection."""
        await self.limit.acquire(self.key)
        try:
            self.conn = await self.database.acquire()
        except BaseException:
            self.limit.release(self.key)
            raise
        return self.conn

    async def __aexit__(self, *error: object) -> None:
        """Release both."""
        try:
            await self.database.release(self.conn)
        finally:
            self.limit.release(self.key)


def for_writes(database: Database) -> FairLimit:
    """Return the limit of a process's writes: half of the pool, a quarter for one key."""
    connections = database.settings.connection_limit
    return FairLimit(database, connections // 4, connections // 2)


def for_searches(database: Database) -> FairLimit:
    """Return the limit of reads of many rows: a quarter of the pool, two connections for one key.

    With the limit of writes, this leaves at least a quarter of the pool to all other reads.
    """
    return FairLimit(database, 2, database.settings.connection_limit // 4)
