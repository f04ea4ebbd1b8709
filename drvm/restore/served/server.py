"""The NBD server of a point's disks: nbdkit with a script of drvm's. docs/adr/036-serving.md."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import drvm
from drvm.core.clock import Clock
from drvm.core.errors import DrvmError, RestoreError
from drvm.core.process import Child, Processes
from drvm.core.text import printable
from drvm.host.nbd_probe import nbd_answers
from drvm.restore.served.order import tell_order

START_S = 60.0
"""The store may be slow to answer, and is asked a few times before it is given up."""
_POLL_S = 0.02
_ANSWER_S = 5.0
_LOOK_S = 0.5
_STOP_S = 10.0
_PAUSES_S = (0.0, 0.5, 1.0, 2.0, 5.0)
"""Between starts that fail."""
_THREADS = 16
"""Requests that one client may have under way."""
_TAIL_BYTES = 2000
_MOST_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Service:
    """What is to be served. ``plugin``: nbdkit's script; ``order``: what it is told on its
    standard input, with secrets in it; ``disks``: the targets, which are the exports' names."""

    plugin: Path
    order: bytes = field(repr=False)
    point: str
    disks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Owner:
    """Who else may connect: the user that QEMU runs as."""

    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Port:
    """Instead of a socket: anybody who reaches it reads the disks."""

    address: str
    number: int


@dataclass(frozen=True, slots=True)
class Place:
    """Where a server listens and what it says. ``socket`` lies in a directory that is there and
    private."""

    socket: Path
    log: Path
    owner: Owner | None = None
    port: Port | None = None

    def uri(self, export: str) -> str:
        if self.port is None:
            return f"nbd+unix:///{quote(export)}?socket={quote(str(self.socket))}"
        address = f"[{self.port.address}]" if ":" in self.port.address else self.port.address
        return f"nbd://{address}:{self.port.number}/{quote(export)}"


@dataclass(frozen=True, slots=True)
class Served:
    """A supervised server: where it is stays the same when it is started anew, and clients
    connect again by themselves. ``exports``: of each disk's target the name of its export."""

    place: Place
    exports: Mapping[str, str]

    @property
    def socket(self) -> Path:
        return self.place.socket

    @property
    def log(self) -> Path:
        return self.place.log

    def uri(self, target: str) -> str:
        return self.place.uri(self.exports[target])


def spawn_server(
    processes: Processes, clock: Clock, service: Service, place: Place, end: threading.Event
) -> Child:
    """Start nbdkit and wait until it answers, or ``end`` is set. It ends when the thread that calls
    this does, however that happens. Raises ``RestoreError``, having left no server."""
    with contextlib.suppress(FileNotFoundError):
        place.socket.unlink()
    argv = ["nbdkit", "--foreground", "--readonly", "--exit-with-parent", "--log=null"]
    argv += [f"--threads={_THREADS}", *_listening(place), "python", str(service.plugin)]
    child = processes.spawn(argv, env=python_path(), log=place.log, detach=True, talk=True)
    try:
        tell_order(child, service.order)
        _await(child, place, service.disks, clock, end)
        if place.owner is not None and place.port is None:
            os.chown(place.socket, place.owner.uid, place.owner.gid)
    except BaseException:
        child.stop(0)
        raise
    return child


def keep_running(
    start: Callable[[threading.Event], Child], child: Child, end: threading.Event
) -> None:
    """Start it anew whenever it has ended, until ``end`` is set; then it is stopped. For the thread
    that has started ``child``."""
    failed = 0
    try:
        while not end.is_set():
            if not child.wait(_LOOK_S):
                continue
            child.stop()
            if end.wait(_PAUSES_S[min(failed, len(_PAUSES_S) - 1)]):
                break
            failed += 1
            with contextlib.suppress(DrvmError, OSError):  # whatever it is, it may pass
                child, failed = start(end), 0
    finally:
        child.stop(_STOP_S)


class LogTail:
    """What a server says as time goes by."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._at = 0

    def lines(self) -> list[str]:
        """The lines since the last time, not too many at once."""
        with contextlib.suppress(OSError), self._log.open("rb") as stream:
            stream.seek(self._at)
            whole, found, _ = stream.read(_MOST_BYTES).rpartition(b"\n")
            self._at += len(whole) + len(found)
            return [printable(line, 1000) for line in whole.decode(errors="replace").splitlines()]
        return []


def last_words(log: Path) -> str:
    """The last line of a log."""
    with contextlib.suppress(OSError), log.open("rb") as stream:
        stream.seek(max(0, os.fstat(stream.fileno()).st_size - _TAIL_BYTES))
        lines = stream.read(_TAIL_BYTES).decode(errors="replace").strip().splitlines()
        if lines:
            return printable(lines[-1], 500)
    return "it said nothing"


def python_path() -> dict[str, str]:
    """So that another Python, also the one inside nbdkit, finds what we have found."""
    libraries = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    home = str(Path(drvm.__file__).parents[1])
    return {"PYTHONPATH": os.pathsep.join([home, *libraries]), "PYTHONDONTWRITEBYTECODE": "1"}


def _listening(place: Place) -> list[str]:
    if place.port is None:
        return [f"--unix={place.socket}"]
    return [f"--ipaddr={place.port.address}", f"--port={place.port.number}"]


def _await(
    child: Child, place: Place, disks: Sequence[str], clock: Clock, end: threading.Event
) -> None:
    deadline_s = clock.monotonic_s() + START_S
    while True:
        if child.returncode() is not None:
            raise RestoreError(
                f"the NBD server did not start: {last_words(place.log)}",
                hint="it needs the Debian packages nbdkit and nbdkit-plugin-python",
            )
        if nbd_answers(place.uri(disks[0]), _ANSWER_S):
            return
        if end.is_set():
            raise RestoreError("the start of the NBD server was given up")
        if clock.monotonic_s() >= deadline_s:
            raise RestoreError(f"the NBD server did not answer within {START_S:.0f} s")
        clock.sleep(_POLL_S)
