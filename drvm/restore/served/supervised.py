"""Servers that are started anew when they die: by a thread of ours, or by a process of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket as socket_module
import stat
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from drvm.core.clock import Clock
from drvm.core.detached import end_process
from drvm.core.errors import DrvmError, ProcessFailed, RestoreError, UsageError
from drvm.core.process import Child, Processes
from drvm.core.threads import Threads
from drvm.host.nbd import owned, sweep_exports
from drvm.restore.served import keeper
from drvm.restore.served.order import tell_order
from drvm.restore.served.server import (
    START_S,
    Owner,
    Place,
    Port,
    Served,
    Service,
    keep_running,
    last_words,
    python_path,
    spawn_server,
)

_PREFIX = "drvm-nbd-serve-"
"""Swept with what other exports have left."""
_END_S = 15.0
_POLL_S = 0.05
_PROBE_S = 5.0


@contextlib.contextmanager
def serving(
    processes: Processes,
    clock: Clock,
    service: Service,
    *,
    owner: Owner | None = None,
    socket: Path | None = None,
    port: Port | None = None,
) -> Iterator[Served]:
    """Serve for as long as the context lasts; the server ends with us, however we end. At
    ``socket``, or at a private one; or at ``port``. A socket that a server left behind that was
    killed is replaced, nothing else.

    Raises ``RestoreError`` where it can't be started, ``UsageError`` for a place that is taken.
    """
    if socket is not None:
        _check_free(socket)
    if port is not None:
        _check_port(port)
    sweep_exports(clock)
    directory = Path(tempfile.mkdtemp(prefix=_PREFIX))
    lock = owned(directory)
    try:
        if owner is not None:
            directory.chmod(0o711)
        place = Place(socket or directory / "socket", directory / "log", owner, port)
        with _Supervisor(partial(spawn_server, processes, clock, service, place)):
            yield Served(place, {target: target for target in service.disks})
    finally:
        if socket is not None:
            socket.unlink(missing_ok=True)
        os.close(lock)
        shutil.rmtree(directory, ignore_errors=True)


def _check_free(path: Path) -> None:
    if not os.path.lexists(path):
        return
    with socket_module.socket(socket_module.AF_UNIX) as probe:
        try:
            if stat.S_ISSOCK(path.lstat().st_mode):
                probe.settimeout(_PROBE_S)
                probe.connect(str(path))
        except ConnectionRefusedError:
            return
        except OSError as error:
            raise UsageError(f"{path} can't be a socket: {error.strerror}") from None
    raise UsageError(f"{path} is there already", hint="name another by --socket")


def _check_port(port: Port) -> None:
    family = socket_module.AF_INET6 if ":" in port.address else socket_module.AF_INET
    try:
        socket_module.create_server((port.address, port.number), family=family).close()
    except OSError as error:
        raise UsageError(
            f"port {port.number} of {port.address} can't be opened: {error.strerror}",
            hint="name another by --port",
        ) from None


class _Supervisor:
    """A thread that starts servers, one after the other: a server ends with the thread that
    started it (prctl(2), PR_SET_PDEATHSIG), so that must be one that lasts."""

    def __init__(self, start: Callable[[threading.Event], Child]) -> None:
        self._start = start
        self._end = threading.Event()
        self._tried = threading.Event()
        self._failure: Exception | None = None
        self._thread = Threads(1, "nbd-server")

    def __enter__(self) -> None:
        try:
            self._thread.submit(self._run)
            self._tried.wait()
        except BaseException:
            self.__exit__()
            raise
        if self._failure is not None:
            self.__exit__()
            raise self._failure

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.end()

    def _run(self) -> None:
        try:
            child = self._start(self._end)
        except Exception as error:  # noqa: BLE001 - raised by who waits for it
            self._failure = error
            return
        finally:
            self._tried.set()
        keep_running(self._start, child, self._end)


@dataclass(frozen=True, slots=True)
class Server:
    """One that goes on when we are gone. ``pid``: of its keeper, which holds a lock in
    ``directory`` for as long as it lives."""

    pid: int
    directory: Path
    place: Place
    exports: dict[str, str]

    @property
    def socket(self) -> Path:
        return self.place.socket

    @property
    def log(self) -> Path:
        return self.place.log


def start_server(
    processes: Processes,
    clock: Clock,
    service: Service,
    directory: Path,
    *,
    owner: Owner | None = None,
) -> Server:
    """Start a server that outlives us, in ``directory``, which is there, private, and belongs to
    this server alone: ``socket``, ``log`` and ``lock``. It answers when this returns.

    A crash of ours leaves it running, and ``find_server`` finds it. Raises ``RestoreError``, having
    left none; also where ``directory`` has one that lives.
    """
    place = Place(directory / "socket", directory / "log", owner)
    argv = [sys.executable, "-P", "-m", keeper.__name__]
    child = processes.spawn(argv, env=python_path(), log=place.log, detach=True, talk=True)
    try:
        tell_order(child, keeper.encode(service, place, directory))
        heard = child.hear(2 * START_S)
        if heard != keeper.READY:
            message, _, hint = heard.partition("\t")
            raise RestoreError(message, hint=hint)
    except BaseException as error:
        child.stop()
        if isinstance(error, ProcessFailed):
            raise RestoreError(f"the NBD server did not start: {last_words(place.log)}") from None
        raise
    child.leave()
    return Server(child.pid, directory, place, {target: target for target in service.disks})


def find_server(directory: Path) -> int | None:
    """The pid of the keeper that lives there; ``None`` where none does."""
    return keeper.holder(directory)


def end_server(directory: Path, clock: Clock) -> None:
    """No server runs there when this returns, and its socket is gone. Raises ``RestoreError``
    where it does not end."""
    for force in (False, True):
        deadline_s = clock.monotonic_s() + _END_S
        while (pid := keeper.holder(directory)) is not None:
            if pid:
                end_process(pid, force=force)
            if clock.monotonic_s() >= deadline_s:
                break
            clock.sleep(_POLL_S)
        else:
            (directory / "socket").unlink(missing_ok=True)
            return
    raise DrvmError(f"the NBD server in {directory} does not end", hint="end it by its pid")
