"""The NBD server of a point's disks: nbdkit with a script of drvm's. docs/adr/036-serving.md."""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import drvm
from drvm.core.clock import Clock
from drvm.core.errors import HostError, ProcessFailed, RestoreError
from drvm.core.process import Child, Processes
from drvm.host.nbd import NbdReader, sweep_exports

_START_S = 60.0
"""The store may be slow to answer, and is asked a few times before it is given up."""
_POLL_S = 0.02
_STOP_S = 10.0
_THREADS = 16
"""Requests that one client may have under way."""
_LINE_BYTES = 3000
_TAIL_BYTES = 600
_PAUSE_S = 0.5
_PREFIX = "drvm-nbd-serve-"
"""Swept with what other exports have left."""


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
class Server:
    """One that runs. ``exports``: of each disk's target the name of its export."""

    pid: int
    socket: Path
    log: Path
    exports: Mapping[str, str]
    child: Child = field(repr=False)

    def stop(self) -> None:
        """It has ended when this returns; its directory stays. May be called again."""
        self.child.stop(_STOP_S)


class Served:
    """A supervised server: ``socket`` and ``exports`` stay what they are when it is started anew,
    and clients connect again by themselves."""

    def __init__(self, socket: Path, exports: Mapping[str, str], log: Path) -> None:
        self.socket = socket
        self.exports = exports
        self.log = log

    def uri(self, target: str) -> str:
        return f"nbd+unix:///{quote(self.exports[target])}?socket={quote(str(self.socket))}"


def start_server(
    processes: Processes,
    clock: Clock,
    service: Service,
    directory: Path,
    *,
    owner: Owner | None = None,
    with_us: bool = False,
) -> Server:
    """Start one in ``directory``, which is there and private, and wait until it answers: the socket
    is ``socket`` there, and what it says goes to ``log``.

    ``with_us``: it ends when the thread that calls this does, however that happens; else it goes on
    when we are gone, and whoever knows its pid ends it. ``owner`` may connect, too. Raises
    ``RestoreError``, having left no server.
    """
    socket, log = directory / "socket", directory / "log"
    with contextlib.suppress(FileNotFoundError):
        socket.unlink()
    argv = ["nbdkit", "--foreground", "--readonly", "--log=stderr", f"--threads={_THREADS}"]
    argv += ["--exit-with-parent"] if with_us else []
    argv += [f"--unix={socket}", "python", str(service.plugin)]
    child = processes.spawn(argv, env=_environment(), log=log, detach=True, talk=True)
    try:
        _tell(child, service.order)
        _await(child, socket, log, service.disks, clock)
        if owner is not None:
            os.chown(socket, owner.uid, owner.gid)
    except BaseException:
        child.stop(0)
        raise
    return Server(child.pid, socket, log, {target: target for target in service.disks}, child)


@contextlib.contextmanager
def serving(
    processes: Processes, clock: Clock, service: Service, *, owner: Owner | None = None
) -> Iterator[Served]:
    """Serve for as long as the context lasts: a server that dies is started anew, and it ends with
    us however we end. Raises ``RestoreError`` where it can't be started."""
    sweep_exports(clock)
    directory = Path(tempfile.mkdtemp(prefix=_PREFIX))
    try:
        if owner is not None:
            directory.chmod(0o711)
        with _Supervisor(processes, clock, service, directory, owner) as first:
            yield Served(first.socket, first.exports, first.log)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


class _Supervisor:
    """A thread that starts servers, one after the other: a server ends with the thread that
    started it (prctl(2), PR_SET_PDEATHSIG), so that must be one that lasts."""

    def __init__(
        self,
        processes: Processes,
        clock: Clock,
        service: Service,
        directory: Path,
        owner: Owner | None,
    ) -> None:
        self._processes = processes
        self._clock = clock
        self._service = service
        self._directory = directory
        self._owner = owner
        self._end = threading.Event()
        self._started = threading.Event()
        self._first: Server | Exception = RestoreError("the NBD server was not started")
        self._thread = threading.Thread(target=self._run, name="nbd-server")

    def __enter__(self) -> Server:
        self._thread.start()
        self._started.wait()
        if isinstance(self._first, Server):
            return self._first
        self._thread.join()
        raise self._first

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            server = self._start()
        except Exception as error:  # noqa: BLE001 - raised by who waits for it
            self._first = error
            return
        finally:
            self._started.set()
        self._first = server
        try:
            while not self._end.is_set():
                if not server.child.wait(_PAUSE_S):
                    continue
                server.stop()
                with contextlib.suppress(RestoreError):
                    server = self._start()
                    continue
                self._end.wait(_PAUSE_S)
        finally:
            server.stop()

    def _start(self) -> Server:
        return start_server(
            self._processes,
            self._clock,
            self._service,
            self._directory,
            owner=self._owner,
            with_us=True,
        )


def _tell(child: Child, order: bytes) -> None:
    text = base64.b64encode(order).decode()
    with contextlib.suppress(ProcessFailed):  # said by what it wrote
        for start in range(0, len(text), _LINE_BYTES):
            child.tell(text[start : start + _LINE_BYTES])
        child.tell("")


def _await(child: Child, socket: Path, log: Path, disks: Sequence[str], clock: Clock) -> None:
    deadline_s = clock.monotonic_s() + _START_S
    while True:
        if child.returncode() is not None:
            raise RestoreError(
                f"the NBD server did not start: {_last_words(log)}",
                hint="it needs the Debian packages nbdkit and nbdkit-plugin-python",
            )
        if socket.exists():
            with contextlib.suppress(HostError):
                NbdReader(socket, disks[0]).close()
                return
        if clock.monotonic_s() >= deadline_s:
            raise RestoreError(f"the NBD server did not answer within {_START_S:.0f} s")
        clock.sleep(_POLL_S)


def _last_words(log: Path) -> str:
    words = log.read_bytes()[-_TAIL_BYTES:].decode(errors="replace").strip()
    return words.splitlines()[-1] if words else "it said nothing"


def _environment() -> dict[str, str]:
    """So that the Python inside nbdkit, which is Debian's, finds what we have found."""
    libraries = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    home = str(Path(drvm.__file__).parents[1])
    return {"PYTHONPATH": os.pathsep.join([home, *libraries]), "PYTHONDONTWRITEBYTECODE": "1"}
