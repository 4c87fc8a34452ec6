"""Secrets in files: NAME_FILE instead of NAME, as Docker and Kubernetes mount them."""

import os
from collections.abc import Iterable, MutableMapping
from pathlib import Path


def read_secret_files(names: Iterable[str], environ: MutableMapping[str, str] = os.environ) -> None:
    """Set each variable NAME for which NAME_FILE is set to the contents of that file, without a final line break.

    NAME_FILE is removed: a child process that reads its secrets again must not find both.
    Raises: ValueError, which names the variable, if both are set or the file can't be read or is empty.
    """
    for name in names:
        variable = f"{name}_FILE"
        if not (file := environ.get(variable)):
            continue
        if environ.get(name):
            raise ValueError(f"{name} and {variable} are both set")
        try:
            value = Path(file).read_text().rstrip("\r\n")
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{variable}: can't read {file}: {getattr(error, 'strerror', None) or 'it is not text'}"
            ) from None
        if not value:
            raise ValueError(f"{variable}: {file} is empty")
        environ[name] = value
        del environ[variable]
