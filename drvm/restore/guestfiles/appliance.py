"""Our side of the process that holds the appliance: it is started, asked and ended here.

It knows no secret (its environment is small, the NBD server has the keys), and each question has a
limit, after which it is ended. When it has been left, or when drvm was killed, nothing of it stays;
``sweep`` removes what a killed host left.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec

import drvm
from drvm.core.clock import Clock
from drvm.core.errors import ProcessFailed, RestoreError
from drvm.core.process import Child, Processes
from drvm.core.progress import Trace, no_trace
from drvm.core.text import printable
from drvm.restore.guestfiles import wire

T = TypeVar("T")

CACHE = Path("/var/tmp")  # noqa: S108 - libguestfs keeps a directory of each user's own there
KERNELS = Path("/boot")
_PREFIX = "drvm-files-"
_CONNECT_S = 20.0
_KVM_LAUNCH_S = 90
_LAUNCH_S = 600
"""Also where it is emulated, and built for the first time."""
_LOOK_S = 300
_ANSWER_S = 120
_MARGIN_S = 10
_END_S = 5.0
_SWEEP_AGE_S = 3600.0
_WORDS_BYTES = 400
_INSIDE = (sys.executable, "-P", "-m", "drvm.restore.guestfiles.inside")
_INSTALL = "apt install libguestfs0 libguestfs-xfs linux-image-cloud-amd64"


class FileProblem(RestoreError):
    """The guest's kernel said no to one question; others may be answered. ``errno`` is its."""

    def __init__(self, message: str, errno: int) -> None:
        super().__init__(message)
        self.errno = errno


class Appliance:
    """A small machine that has the disks and runs. Each method raises ``FileProblem``, or
    ``RestoreError`` where it has ended."""

    def __init__(self, connection: socket.socket, clock: Clock) -> None:
        self._connection = connection
        self._clock = clock
        self._idle = True

    def file_systems(self) -> tuple[wire.FileSystem, ...]:
        return self._ask(wire.FileSystems(), tuple[wire.FileSystem, ...], _LOOK_S)

    def systems(self) -> tuple[wire.System, ...]:
        return self._ask(wire.Systems(), tuple[wire.System, ...], _LOOK_S)

    def mount(self, mounts: Sequence[tuple[bytes, bytes]]) -> tuple[str, ...]:
        """These (device, mount point) and nothing else; what could not be mounted below the
        root."""
        return self._ask(wire.Mount(tuple(mounts)), tuple[str, ...], _LOOK_S)

    def type_of(self, device: bytes) -> bytes:
        return self._ask(wire.TypeOf(device), bytes, _ANSWER_S)

    def stat(self, path: bytes, *, follow: bool) -> wire.Entry:
        return self._ask(wire.Stat(path, follow), wire.Entry, _ANSWER_S)

    def page(self, path: bytes, number: int, *, targets: bool) -> wire.Page:
        return self._ask(wire.List(path, number, targets), wire.Page, _LOOK_S)

    def read(self, path: bytes, offset: int, length: int) -> bytes:
        data = self._ask(wire.Read(path, offset, length), bytes, _ANSWER_S)
        if len(data) > length:
            raise self._strange()
        return data

    def launch(self, served: Path, exports: Sequence[str], *, emulated: bool, limit_s: int) -> None:
        names = tuple(export.encode() for export in exports)
        request = wire.Launch(os.fsencode(served), names, os.fsencode(CACHE), emulated)
        self._ask(request, type(None), limit_s)

    def end(self) -> None:
        """In good order where it is idle. Otherwise it sees that we have hung up."""
        if self._idle:
            with contextlib.suppress(RestoreError):
                self._ask(wire.Close(), type(None), _MARGIN_S)
        self._connection.close()

    def _ask(self, request: wire.Request, kind: Callable[..., T] | type[T], limit_s: int) -> T:
        deadline_s = self._clock.monotonic_s() + limit_s
        self._connection.settimeout(limit_s)
        self._idle = False
        try:
            # ours comes first: then the process cleans up
            wire.send(self._connection, wire.Asked(request, limit_s + _MARGIN_S))
            data = wire.receive(self._connection, lambda: deadline_s - self._clock.monotonic_s())
            if data is None:
                raise wire.Broken("it has ended")
            answer = msgspec.msgpack.decode(data, type=wire.Answer)
            if answer.failed is None:
                result: T = msgspec.msgpack.decode(answer.result, type=kind)
        except TimeoutError:
            raise RestoreError(
                f"the appliance that reads guests' files did not answer within {limit_s} s",
                hint="a damaged file system may do that: drvm serve gives the disk to other tools",
            ) from None
        except (OSError, wire.Broken):
            raise RestoreError(
                "the appliance that reads the guest's file systems has ended",
                hint="a damaged file system may do that: drvm serve gives the disk to other tools",
            ) from None
        except msgspec.MsgspecError:
            raise self._strange() from None
        self._idle = True
        if answer.failed is not None:
            raise FileProblem(printable(answer.failed.message, 500), answer.failed.errno)
        return result

    def _strange(self) -> RestoreError:
        self._idle = False
        return RestoreError(
            "the appliance that reads the guest's file systems says what can't be right",
            hint="don't trust this guest's disks: read them on a machine of their own",
        )


@contextlib.contextmanager
def appliance(
    processes: Processes,
    clock: Clock,
    served: Path,
    exports: Sequence[str],
    *,
    emulated: bool = False,
    trace: Trace = no_trace,
) -> Iterator[Appliance]:
    """One that runs, for as long as the context lasts, with the disks that an NBD server has at the
    socket ``served``. ``emulated``: don't try KVM first.

    Raises ``RestoreError`` where it can't be started.
    """
    require(processes)
    sweep(clock)
    with contextlib.ExitStack() as stack:
        start = partial(_started, stack, processes, clock, served, exports)
        running = None
        if not emulated and os.access("/dev/kvm", os.R_OK | os.W_OK):
            # it may open and still boot no guest
            with contextlib.suppress(RestoreError):
                running = start(emulated=False, limit_s=_KVM_LAUNCH_S)
        if running is None:
            running = start(emulated=True, limit_s=_LAUNCH_S)
        trace("appliance-started")
        yield running
    trace("appliance-ended")


def _started(
    stack: contextlib.ExitStack,
    processes: Processes,
    clock: Clock,
    served: Path,
    exports: Sequence[str],
    *,
    emulated: bool,
    limit_s: int,
) -> Appliance:
    with contextlib.ExitStack() as attempt:
        directory = Path(tempfile.mkdtemp(prefix=_PREFIX))
        attempt.callback(shutil.rmtree, directory, ignore_errors=True)
        door = attempt.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        door.bind(str(directory / "socket"))
        door.listen(1)
        child, log = _spawn(processes, directory)
        attempt.callback(_finish, child)
        door.settimeout(_CONNECT_S)
        try:
            running = Appliance(door.accept()[0], clock)
        except TimeoutError:
            raise RestoreError(f"drvm's own process did not start: {_last_words(log)}") from None
        attempt.callback(running.end)
        try:
            running.launch(served, exports, emulated=emulated, limit_s=limit_s)
        except RestoreError as error:
            raise RestoreError(
                f"the appliance that reads guests' files did not start: {error.message}",
                hint=f"libguestfs-test-tool tells more; {_INSTALL}",
            ) from None
        stack.push(attempt.pop_all())
        return running


def _spawn(processes: Processes, directory: Path) -> tuple[Child, Path]:
    """In a session of its own: Ctrl-C is for us, who then end it."""
    log, env = directory / "log", {**_environment(), "TMPDIR": str(directory)}
    return processes.spawn([*_INSIDE, str(directory)], env=env, log=log, detach=True), log


def _environment() -> dict[str, str]:
    return {"PYTHONPATH": str(Path(drvm.__file__).parents[1])}


def _finish(child: Child) -> None:
    if not child.wait(_END_S):
        child.stop(_END_S)


def _last_words(log: Path) -> str:
    with contextlib.suppress(OSError):
        words = log.read_bytes()[-_WORDS_BYTES:].decode(errors="replace").strip()
        return printable(words.splitlines()[-1]) if words else "it said nothing"
    return "it said nothing"


def require(processes: Processes) -> None:
    """Raises ``RestoreError`` where an appliance could not be started. It boots the host's own
    kernel: distributions other than Debian hide theirs from users."""
    try:
        processes.run(_INSIDE, env=_environment(), timeout_s=_CONNECT_S)
    except ProcessFailed:
        raise RestoreError(
            "libguestfs is not installed, which reads guests' files", hint=_INSTALL
        ) from None
    kernels = sorted(KERNELS.glob("vmlinuz*"))
    if not kernels:
        raise RestoreError("there is no kernel in /boot for the appliance", hint=_INSTALL)
    if not any(os.access(kernel, os.R_OK) for kernel in kernels):
        raise RestoreError(
            f"{kernels[-1]} can't be read by this user, and the appliance boots it",
            hint=f"chmod a+r {kernels[-1]}, or be root",
        )


def sweep(clock: Clock) -> None:
    """Remove the directories of appliances whose host died: old ones of this user's where nobody
    listens any more."""
    for directory in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            status = directory.lstat()
            age_s = clock.now().timestamp() - status.st_mtime
            if status.st_uid != os.geteuid() or age_s < _SWEEP_AGE_S:
                continue
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
                door.setblocking(False)  # of those that others left, nobody takes one
                try:
                    door.connect(str(directory / "socket"))
                except (ConnectionRefusedError, FileNotFoundError):
                    shutil.rmtree(directory)
