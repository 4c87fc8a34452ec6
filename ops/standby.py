"""A PostgreSQL that is a streaming copy of another one on this machine."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import psycopg

from ops.process import StartError
from ops.servers import Postgres

STANDBY = "standby"


class Standby(Postgres):
    """A streaming copy of a primary, made by pg_basebackup at its first start.

    It has the primary's passwords, if there are any.
    """

    def __init__(
        self,
        data: Path,
        primary: Postgres,
        settings: Mapping[str, str],
        port: int | None = None,
        log: Path | None = None,
    ) -> None:
        """Copy nothing yet."""
        source = f"host=127.0.0.1 port={primary.port} user=postgres application_name={STANDBY}"
        if primary.passfile:
            source += f" passfile='{primary.passfile}'"
        own = {**settings, "primary_conninfo": source}
        super().__init__(data, port, pg_bin=primary.bin, settings=own, log=log, secured=primary.passfile is not None)
        self.name = "PostgreSQL standby"
        self._source = source

    def _initialize(self) -> None:
        self.data.mkdir(parents=True, mode=0o700)
        options = (
            f"--pgdata={self.data}",
            "--dbname",
            self._source,
            "--wal-method=stream",
            "--checkpoint=fast",
            "--no-sync",
            "--write-recovery-conf",
        )
        if self._run("pg_basebackup", self.data, *options).wait():
            raise StartError(f"pg_basebackup failed; {self.log} ends:\n{self.last_words()}")
        with (self.data / "postgresql.auto.conf").open("a") as settings:  # once promoted it has no standby itself
            settings.write("synchronous_standby_names = ''\n")

    def wait(self) -> None:
        """Return when it answers, as a standby, which can't create a database."""
        super(Postgres, self).wait()

    def promote(self) -> None:
        """Make it a primary; return when it is one."""
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            conn.execute("SELECT pg_promote()")

    def remove(self) -> None:
        """Remove the copy, so that the next start makes a new one."""
        shutil.rmtree(self.data, ignore_errors=True)
