"""What is tried when the cache connects, so that the log can say what is wrong.

An ACL that lacks a command, a server without scripts or a missing file would otherwise show as a cache that is lost
again and again, or never used.
"""

import errno
import secrets
from itertools import count
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from libs.cache.codec import VERSION_BYTES
from libs.cache.keys import PREFIX, VERSION_SUFFIX
from libs.cache.resp import ask
from libs.cache.scripts import sha
from libs.cache.topology import Node

PROBE = PREFIX + "probe:"
_LIFETIME_SECONDS = 60
_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")


def find_files(url: str) -> None:
    """Raise FileNotFoundError with the name of a file that the URL names and that does not exist."""
    parameters = dict(parse_qsl(urlsplit(url).query))
    for file in (parameters[name] for name in _FILES if name in parameters):
        if not Path(file).is_file():
            raise FileNotFoundError(errno.ENOENT, "no such file", file)


async def try_commands(node: Node, scripts: tuple[str, str, str]) -> None:
    """Try every command of reads and writes, on scratch keys in a slot of the server.

    `scripts` are those that open, register and fill. Raises: ResponseError with the server's text; OSError.
    """
    server = node.connection
    names = (f"{PROBE}{{{number}}}:" for number in count())
    entry = next(name for name in names if node.slot(name) in node.slots) + secrets.token_hex(8)
    version_key, nonce, (open_script, register, fill) = entry + VERSION_SUFFIX, secrets.token_hex(8), scripts
    await ask(server, "EVAL", open_script, 2, version_key, version_key, nonce, _LIFETIME_SECONDS)
    await ask(server, "EVAL", register, 1, version_key, nonce, _LIFETIME_SECONDS, 0)
    [record] = await ask(server, "MGET", version_key)
    await ask(server, "EVAL", fill, 2, version_key, entry, (record or b"")[:VERSION_BYTES], 2, 1, 1000, 1000, b"")
    await ask(server, "EVALSHA", sha(fill), 0)
    await ask(server, "UNLINK", version_key, entry)
    await ask(server, "SCAN", 0, "COUNT", 1)
