"""Random writers, jobs and readers as in tests/rollup_load.py, on months that leave and come back meanwhile."""

import asyncio
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg

from ops.archive_files import SUFFIX
from ops.months import TableBusy
from ops.restore_archive import restore
from services.stats.queries import Period
from tests.archives import OLD, archive_all
from tests.rollup_load import Load
from tests.rollups import ZONES

# All messages that were not deleted, also those of archived months: nothing that moves partitions calls row triggers.
ALL_MESSAGES = """
    CREATE TABLE all_messages AS SELECT message_id, salon_id, created_at, direction, counted, cost_micros, currency_code
        FROM messages;
    CREATE UNIQUE INDEX ON all_messages (message_id);
    CREATE INDEX ON all_messages (salon_id, created_at);
    CREATE FUNCTION keep_message() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF TG_OP <> 'INSERT' THEN
            DELETE FROM all_messages WHERE message_id = OLD.message_id;
        END IF;
        IF TG_OP <> 'DELETE' THEN
            INSERT INTO all_messages VALUES (NEW.message_id, NEW.salon_id, NEW.created_at, NEW.direction, NEW.counted,
                NEW.cost_micros, NEW.currency_code);
        END IF;
        RETURN NULL;
    END $$;
    CREATE TRIGGER keep_message AFTER INSERT OR UPDATE OR DELETE ON messages
        FOR EACH ROW EXECUTE FUNCTION keep_message()"""


class ArchiveLoad(Load):
    """Archives the months before the present one and restores them, again and again."""

    messages = "all_messages"
    pause = 0.5  # the table is locked between them

    def __init__(self, database_url: str, comparisons: int, seed: int, folder: Path) -> None:
        """Prepare; `folder` is for the files."""
        super().__init__(database_url, comparisons, seed)
        self.folder = folder
        self.archived = self.restored = 0
        with psycopg.connect(database_url) as conn:
            conn.execute(ALL_MESSAGES.encode())

    def is_done(self) -> bool:
        """Return whether all comparisons have been made, and months have left and come back, or an archive failed."""
        return self.archive.done() or (super().is_done() and self.archived >= 2 and self.restored >= 2)

    def time(self) -> datetime:
        """Return a random time of the last three months, at a quarter of an hour."""
        seconds = (datetime.now(UTC) - OLD.start).total_seconds() * self.random.random()
        return OLD.start + timedelta(minutes=15) * (seconds // 900)

    def period(self) -> Period:
        """Return a random period between quarters of hours."""
        start, end = sorted((self.time(), self.time() + timedelta(minutes=15)))
        return Period(self.random.choice(list(ZONES)), start, end)

    async def _forget(self) -> None:
        """The sums of archived months can't be counted again."""

    async def _archive(self) -> None:
        busy = (TableBusy, psycopg.OperationalError)
        while True:
            with suppress(*busy):
                self.archived += len(await asyncio.to_thread(archive_all, self.database_url, self.folder))
            await asyncio.sleep(self.random.random())
            for file in await asyncio.to_thread(lambda: sorted(self.folder.glob(f"*{SUFFIX}"))):
                with suppress(*busy):
                    await asyncio.to_thread(restore, self.database_url, file, lambda: None, lambda *_: None)
                    self.restored += 1
            await asyncio.sleep(self.random.random())

    async def run(self) -> None:
        """Run everything."""
        self.archive = asyncio.create_task(self._archive())
        try:
            await super().run()
            if self.archive.done():
                await self.archive  # raises its error
        finally:
            self.archive.cancel()
            await asyncio.gather(self.archive, return_exceptions=True)
