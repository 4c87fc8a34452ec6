"""Run a program that ends when its parent does: `launch.py PARENT SIGNAL FOLDER PROGRAM [ARGUMENT...]`.

PARENT is the caller's process ID; SIGNAL is sent to the program when the thread that started it dies (Linux only).
With a FOLDER, and as root, the program runs as nobody, because PostgreSQL refuses root: in a user namespace, where
root's files belong to nobody; if namespaces are forbidden, as the real nobody, which gets the folder.

This is a separate program because a `preexec_fn` may deadlock in a process with threads.
"""

import ctypes
import os
import pwd
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1
CLONE_NEWUSER = 0x10000000


def call(function: str, *arguments: int) -> None:
    """Call a function of the C library. Raises: OSError unless it returns 0."""
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, function)(*arguments) != 0:
        raise OSError(ctypes.get_errno(), f"{function}: {os.strerror(ctypes.get_errno())}")


def become_nobody(folder: Path) -> None:
    """Stop being root."""
    nobody = pwd.getpwnam("nobody")
    try:
        call("unshare", CLONE_NEWUSER)
    except (OSError, AttributeError):
        for path in (folder, *folder.rglob("*")):
            os.chown(path, nobody.pw_uid, nobody.pw_gid, follow_symlinks=False)
        os.setgroups([])
        os.setgid(nobody.pw_gid)
        os.setuid(nobody.pw_uid)
    else:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{nobody.pw_uid} 0 1")
        Path("/proc/self/gid_map").write_text(f"{nobody.pw_gid} 0 1")


def main(parent: str, signal: str, folder: str, program: str, *arguments: str) -> None:
    """Become the program."""
    if folder and os.geteuid() == 0:
        become_nobody(Path(folder))
    if sys.platform == "linux":
        call("prctl", PR_SET_PDEATHSIG, int(signal))  # last, because a change of user clears it
    if os.getppid() == int(parent):
        os.execv(program, [program, *arguments])  # noqa: S606 - the caller chose the program


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except OSError as error:
        sys.exit(f"cannot run {sys.argv[4]}: {error}")
