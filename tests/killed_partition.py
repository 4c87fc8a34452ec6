"""A run of `parlor partition` that kills itself: `python -m tests.killed_partition URL STEP`, before a step."""

import os
import signal
import sys

from ops.partition import partition


def main(database_url: str, last: str) -> None:
    """Partition up to a step."""

    def step(name: str) -> None:
        if name == last:
            os.kill(os.getpid(), signal.SIGKILL)

    partition(database_url, step=step)


main(sys.argv[1], sys.argv[2])
