"""Locks that hold among all of drvm's processes on a host (``docs/adr/014-host-wide-locks.md``)."""

from __future__ import annotations

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
