"""A database's line of history: which cluster it is, and how often a standby of it has been promoted."""

from typing import NamedTuple

# pg_control_checkpoint() would name the old timeline until the first checkpoint after a promotion. The process tells
# whether a pooler stands between: it then is another than the one that the client was told when it connected.
HISTORY = """
    SELECT pg_backend_pid(), system_identifier::text,
        CASE WHEN pg_is_in_recovery() THEN '0' ELSE left(pg_walfile_name(pg_current_wal_lsn()), 8) END
    FROM pg_control_system()"""


class History(NamedTuple):
    """The system identifier of a cluster and its timeline, which each promotion raises."""

    system: int
    timeline: int
