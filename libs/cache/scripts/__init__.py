"""The Lua scripts that change tag version records and entries; each runs on the server as one step.

records.lua and versions.lua are prepended to the scripts that need them.
"""

import hashlib
from functools import cache
from pathlib import Path


def _source(*names: str) -> str:
    return "".join(Path(__file__).with_name(f"{name}.lua").read_text() for name in names)


OPEN = _source("records", "versions", "open")
REGISTER = _source("records", "versions", "register")
FILL = _source("records", "fill")


@cache
def sha(script: str) -> str:
    """Return the SHA-1 under which a server knows a script that it has run."""
    return hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
