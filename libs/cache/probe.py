"""What is tried when the cache connects, so that what is wrong is found there, and the log says what it is.

An ACL that lacks a command, a server without scripts or a file that isn't there would otherwise show as a cache that is
lost again and again, or never used.
"""

import errno
import secrets
from collections.abc import Collection
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from redis.exceptions import ResponseError

from libs.cache.codec import GENERATION
from libs.cache.keys import META, PREFIX
from libs.cache.resp import RespConnection
from libs.cache.scripts import sha
from libs.cache.topology import Slot

PROBE = PREFIX + "probe:"
_LIFETIME_SECONDS = 60
_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")


def find_files(url: str) -> None:
    """Raise FileNotFoundError, which names the file, if one that the URL names is not there."""
    parameters = dict(parse_qsl(urlsplit(url).query))
    for file in (parameters[name] for name in _FILES if name in parameters):
        if not Path(file).is_file():
            raise FileNotFoundError(errno.ENOENT, "no such file", file)


async def try_commands(wire: RespConnection, slot: Slot, slots: Collection[int], scripts: tuple[str, str, str]) -> None:
    """Try every command that reads and writes use, on scratch keys in one of the slots.

    `scripts` are OPEN, REGISTER and FILL.

    Raises: ResponseError with the server's text; OSError.
    """
    names = (f"{PROBE}{{{number}}}:" for number in count())
    entry = next(name for name in names if slot(name) in slots) + secrets.token_hex(8)
    meta, nonce, (opens, registers, fills) = entry + META, secrets.token_hex(8), scripts
    await _ask(wire, "EVAL", opens, 2, meta, meta, nonce, _LIFETIME_SECONDS)
    await _ask(wire, "EVAL", registers, 1, meta, nonce, _LIFETIME_SECONDS, 0)
    [value] = await _ask(wire, "MGET", meta)
    await _ask(wire, "EVAL", fills, 2, meta, entry, (value or b"")[:GENERATION], 2, 1, 1000, 1000, b"")
    await _ask(wire, "EVALSHA", sha(fills), 0)
    await _ask(wire, "UNLINK", meta, entry)
    await _ask(wire, "SCAN", 0, "COUNT", 1)


async def _ask(wire: RespConnection, *command: str | bytes | int) -> Any:
    reply = await wire.call(*command)
    if isinstance(reply, OSError):
        raise reply
    if isinstance(reply, Exception):
        raise ResponseError(f"{command[0]!s}: {reply}") from reply
    return reply


def reason(error: BaseException) -> str:
    """Return the innermost text of an error: what the server, TLS or the system said."""
    found: BaseException | None = error
    while found is not None:
        if str(found):  # a timeout has a CancelledError in it, which says nothing
            error = found
        found = found.__cause__ or found.__context__
    return str(error) or type(error).__name__
