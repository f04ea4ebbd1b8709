"""``python -m drvm.restore.served.keeper``: a process of its own that keeps a server running.

It is told on its standard input what to serve, says ``ready`` or why not (message, tab, hint), and
goes on until SIGTERM, whatever becomes of whoever started it. For as long as it lives it holds a
lock on ``lock`` in its directory, with its pid in it: no other process can be taken for it. The
server ends with it, however it ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sys
import threading
from functools import partial
from pathlib import Path

import msgspec

from drvm.core.clock import SystemClock
from drvm.core.errors import DrvmError
from drvm.core.process import SystemProcesses, hide_memory
from drvm.restore.served.order import hear_order
from drvm.restore.served.server import Owner, Place, Service, keep_running, spawn_server

READY = "ready"
_LOCK = "lock"
_NO_LINK = os.O_CLOEXEC | os.O_NOFOLLOW


class _Told(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    plugin: str
    order: bytes
    point: str
    disks: tuple[str, ...]
    directory: str
    owner: tuple[int, int] | None


def encode(service: Service, place: Place, directory: Path) -> bytes:
    """What a keeper is told; with secrets in it."""
    owner = (place.owner.uid, place.owner.gid) if place.owner is not None else None
    told = _Told(
        str(service.plugin), service.order, service.point, service.disks, str(directory), owner
    )
    return msgspec.json.encode(told)


def holder(directory: Path) -> int | None:
    """The pid of the keeper that lives; 0 where it has not yet written it; ``None``: there is
    none."""
    try:
        descriptor = os.open(directory / _LOCK, os.O_RDONLY | _NO_LINK)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        text = os.read(descriptor, 20).decode(errors="replace").strip()
        return int(text) if text.isascii() and text.isdigit() else 0
    finally:
        os.close(descriptor)


def _hold(directory: Path) -> bool:
    """Take the lock until this process ends."""
    descriptor = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | _NO_LINK, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return True


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # nobody listens any more
        os.write(1, line.replace("\n", " ").encode() + b"\n")


def main() -> int:
    hide_memory()
    os.chdir("/")
    end = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: end.set())
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    told = msgspec.json.decode(hear_order(sys.stdin.buffer), type=_Told)
    directory = Path(told.directory)
    if not _hold(directory):
        _say(f"a server runs in {directory} already\tend it first")
        return 1
    owner = Owner(*told.owner) if told.owner is not None else None
    place = Place(directory / "socket", directory / "log", owner)
    service = Service(Path(told.plugin), told.order, told.point, told.disks)
    start = partial(spawn_server, SystemProcesses(), SystemClock(), service, place)
    try:
        child = start(end)
    except DrvmError as error:
        _say(f"{error.message}\t{error.hint}")
        return 1
    _say(READY)
    keep_running(start, child, end)
    place.socket.unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
