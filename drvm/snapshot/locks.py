"""Locks that hold among all of drvm's processes on a host (``docs/adr/014-host-wide-locks.md``)."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path


def shared_directory() -> Path | None:
    """This user's own directory below ``/run``, which is empty after a boot, as locks are."""
    user = os.geteuid()
    parent = Path("/run") if user == 0 else Path("/run/user") / str(user)
    return parent / "drvm" if os.access(parent, os.W_OK) else None


def try_lock(path: Path) -> int | None:
    """The descriptor that holds the lock until it is closed, or its process ends; ``None`` where
    somebody else holds it. The file is never deleted. Raises ``OSError``."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(path, flags, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def say_who(descriptor: int) -> None:
    """Leave our pid in a lock that we hold, for those who find it held."""
    with contextlib.suppress(OSError):  # a full disk: then nobody is named
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)


def who(path: Path) -> str:
    """Who holds a lock that is held, for people; empty where it does not say."""
    try:
        with path.open("rb") as stream:
            pid = stream.read(20).decode("ascii", "replace").strip()
    except OSError:
        return ""
    if not pid.isdecimal():
        return ""
    return " (this one, in another thread)" if int(pid) == os.getpid() else f" (pid {pid})"
