"""The door to libnbd and qemu-nbd: one image served on a private socket, read and written."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import nbd

from drvm.core.clock import Clock, SystemClock
from drvm.core.errors import HostError
from drvm.core.extents import Extent, ExtentKind
from drvm.core.process import Child, Processes
from drvm.core.units import GIB, MIB
from drvm.host.images import FOREIGN_FORMATS, FORMATS, Part, image_options, in_use
from drvm.host.nbd_probe import is_silent

T = TypeVar("T")

# measured: blocking requests of 1 MiB, one connection per thread, are fastest
_READ_BYTES = MIB
_WRITE_BYTES = 4 * MIB
_STATUS_BYTES = GIB
_SECTOR_BYTES = 512
_ZERO_BYTES = GIB
_GREETING_S = 2.0
_START_S = 15.0
_POLL_S = 0.02
_MAX_CLIENTS = 32
_PREFIX = "drvm-nbd-"
_OWNER = "owner"
_SWEEP_AGE_S = 3600.0
_ALLOCATION = "base:allocation"
_STATE_ZERO = 2
_DIRTY_BITMAP = "qemu:dirty-bitmap:"
_STATE_DIRTY = 1
_ALLOCATION_DEPTH = "qemu:allocation-depth"
_TOP_LAYER = 1


class NbdExport:
    """``qemu-nbd`` on one image, for as long as the context lasts.

    One that is only read takes none of QEMU's image locks: a lock would keep a machine that is off
    from starting, and one that is left behind would keep its overlay from being committed. Whoever
    reads must know by other means that nobody writes. With ``writable`` it is locked, so that
    there are no two writers, also while a server whose client was killed writes the last it was
    given. With ``bitmap``, a dirty bitmap of the image, clients can ask for its ranges too;
    entering raises ``HostError`` if it is absent or inconsistent. With ``overlay`` the image is one
    on a base, clients can ask which of the two holds what, and the base is not locked either: it is
    committed into later. With ``part`` the image is a part of the file. ``limits``: a command
    before the server's that bounds what it may take. The server ends with its last client, and the
    export holds one connection, so the server ends with us even if we are killed.
    """

    def __init__(
        self,
        processes: Processes,
        path: Path,
        image_format: str,
        *,
        writable: bool = False,
        bitmap: str | None = None,
        overlay: bool = False,
        part: Part | None = None,
        limits: Sequence[str] = (),
        clock: Clock | None = None,
    ) -> None:
        if image_format not in FORMATS | FOREIGN_FORMATS or not path.is_absolute():
            raise ValueError(f"{path} as {image_format} can't be served")
        self._processes = processes
        self._path = path
        self._format = image_format
        self._writable = writable
        self._bitmap = bitmap
        self._overlay = overlay
        self._part = part
        self._limits = limits
        self._clock = clock or SystemClock()
        self._cleanup = contextlib.ExitStack()
        self.socket = Path()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as cleanup:
            sweep_exports(self._clock)
            directory = Path(tempfile.mkdtemp(prefix=_PREFIX))
            cleanup.callback(shutil.rmtree, directory, ignore_errors=True)
            cleanup.callback(os.close, owned(directory))
            self.socket = directory / "socket"
            log = directory / "log"
            child = self._processes.spawn(self._argv(), log=log)
            cleanup.callback(child.stop)
            keeper = self._first_connection(child, log)
            cleanup.callback(_shut_down, keeper)
            self._cleanup = cleanup.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    def _argv(self) -> list[str]:
        options = image_options(
            self._path, self._format, locking=self._writable, part=self._part
        ) | ({"backing.file.locking": "off"} if self._overlay else {})
        image = ",".join(f"{name}={value}" for name, value in options.items())
        argv = [*self._limits, "qemu-nbd", "--image-opts", image, "--socket", str(self.socket)]
        argv += ["--shared", str(_MAX_CLIENTS)]
        argv += [] if self._bitmap is None else ["--bitmap", self._bitmap]
        argv += ["--allocation-depth"] if self._overlay else []
        return argv + ([] if self._writable else ["--read-only"])

    def _first_connection(self, child: Child, log: Path) -> Any:
        deadline_s = self._clock.monotonic_s() + _START_S
        while True:
            if child.returncode() is not None:
                words = log.read_bytes()[-500:].decode(errors="replace").strip()
                raise HostError(f"qemu-nbd does not serve {self._path}: {words}")
            if self.socket.exists():
                with contextlib.suppress(HostError):
                    return _connect(self.socket)
            if self._clock.monotonic_s() >= deadline_s:
                raise HostError(f"qemu-nbd does not answer for {self._path}")
            self._clock.sleep(_POLL_S)


class NbdReader:
    """Implements ``BlockReader`` with a connection of its own. ``export``: which of the server's
    disks, for servers that have several."""

    def __init__(self, socket: Path, export: str = "") -> None:
        self._handle = _connect(socket, export=export)

    @property
    def size_bytes(self) -> int:
        size: int = _checked(self._handle.get_size)
        return size

    def read_into(self, offset: int, target: memoryview) -> None:
        for start in range(0, len(target), _READ_BYTES):
            size = min(_READ_BYTES, len(target) - start)
            target[start : start + size] = self._pread(offset + start, size)

    def close(self) -> None:
        _shut_down(self._handle)

    def _pread(self, offset: int, length: int) -> bytearray:
        """Some servers give whole sectors only."""
        rest = -length % _SECTOR_BYTES
        whole = length + rest if rest and offset + length + rest <= self.size_bytes else length
        data: bytearray = _checked(lambda: self._handle.pread(whole, offset))
        return data if whole == length else data[:length]


class NbdWriter:
    """Implements ``BlockWriter`` with a connection of its own. Some formats take whole sectors
    only: what is none is at the end of the disk, and zeroes follow it."""

    def __init__(self, socket: Path) -> None:
        self._handle = _connect(socket)

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data).cast("B")
        if rest := len(view) % _SECTOR_BYTES:
            view = memoryview(bytes(view) + bytes(_SECTOR_BYTES - rest))
        for start in range(0, len(view), _WRITE_BYTES):
            piece = view[start : start + _WRITE_BYTES]
            _checked(functools.partial(self._handle.pwrite, piece, offset + start))

    def zero(self, offset: int, length: int) -> None:
        if before := offset % _SECTOR_BYTES:
            sector = _checked(lambda: self._handle.pread(_SECTOR_BYTES, offset - before))
            self.write(offset - before, memoryview(sector)[:before])
        end = -(-(offset + length) // _SECTOR_BYTES) * _SECTOR_BYTES
        for start in range(-(-offset // _SECTOR_BYTES) * _SECTOR_BYTES, end, _ZERO_BYTES):
            _checked(functools.partial(self._handle.zero, min(_ZERO_BYTES, end - start), start))

    def flush(self) -> None:
        _checked(self._handle.flush)

    def close(self) -> None:
        _shut_down(self._handle)


def nbd_extents(socket: Path, export: str = "") -> Iterator[Extent]:
    """By ``base:allocation``: what the server promises to be zeroes is ZERO, all else DATA."""
    for offset, length, state in _states(socket, _ALLOCATION, export):
        kind = ExtentKind.ZERO if state & _STATE_ZERO else ExtentKind.DATA
        yield Extent(offset, length, kind)


def nbd_changes(socket: Path, bitmap: str, export: str = "") -> Iterator[Extent]:
    """By a dirty bitmap that the export has: what it marks is DATA, all else UNCHANGED."""
    for offset, length, state in _states(socket, _DIRTY_BITMAP + bitmap, export):
        kind = ExtentKind.DATA if state & _STATE_DIRTY else ExtentKind.UNCHANGED
        yield Extent(offset, length, kind)


def nbd_overlaid(socket: Path) -> Iterator[Extent]:
    """What the image itself holds, zeroes too, is DATA; what its base holds, UNCHANGED."""
    for offset, length, depth in _states(socket, _ALLOCATION_DEPTH):
        kind = ExtentKind.DATA if depth == _TOP_LAYER else ExtentKind.UNCHANGED
        yield Extent(offset, length, kind)


def _states(socket: Path, context: str, export: str = "") -> Iterator[tuple[int, int, int]]:
    """(offset, length, state) over the whole disk, as one meta context tells it."""
    handle = _connect(socket, (context,), export)
    try:
        size_bytes: int = _checked(handle.get_size)
        if not _checked(lambda: handle.can_meta_context(context)):
            raise HostError(f"the NBD server does not tell {context}")
        position = 0
        while position < size_bytes:
            length = min(_STATUS_BYTES, size_bytes - position)
            for taken, state in _status(handle, context, position, length):
                yield position, taken, state
                position += taken
    finally:
        _shut_down(handle)


def _status(handle: Any, context: str, offset: int, length: int) -> list[tuple[int, int]]:
    """(length, state): at least one range, at most ``length`` bytes together."""
    entries: list[int] = []

    def keep(told: str, start: int, found: list[int], _error: object) -> int:
        if told == context and start == offset:
            entries.extend(found)
        return 0

    _checked(lambda: handle.block_status(length, offset, keep))
    ranges: list[tuple[int, int]] = []
    for size, state in zip(entries[0::2], entries[1::2], strict=True):
        taken = min(size, length)
        if taken <= 0:
            break
        ranges.append((taken, state))
        length -= taken
    if not ranges:
        raise HostError(f"the NBD server says nothing about the range at {offset}")
    return ranges


def dead_exports() -> list[Path]:
    """The directories of exports whose process was killed; perhaps their servers still run, as
    they never had a client."""
    dead = []
    for directory in _directories():
        with contextlib.suppress(OSError):  # one that is gone, or does not tell
            if not _owner_lives(directory):
                dead.append(directory)
    return dead


def sweep_exports(clock: Clock) -> int:
    """Remove them, and end their servers, which are done with a moment later; returns how many
    there were. Of directories that don't tell, the old ones where no server answers go too."""
    dead = dead_exports()
    for directory in _directories():
        with contextlib.suppress(OSError):
            age_s = clock.now().timestamp() - directory.lstat().st_mtime
            told = (directory / _OWNER).exists()
            if directory not in dead and (told or age_s < _SWEEP_AGE_S):
                continue
            if is_silent(directory / "socket", _GREETING_S):
                continue  # to be ended when it answers again
            with contextlib.suppress(HostError):
                _shut_down(_connect(directory / "socket"))  # it ends with its last client
                if not told:
                    continue
            # a server that ends takes its socket away itself: what is gone already is no error
            shutil.rmtree(directory, ignore_errors=True)
    return len(dead)


def owned(directory: Path) -> int:
    """A lock in the directory of an export: whoever sweeps leaves it alone until we close it, or
    end, however that happens."""
    making, flags = directory / "owner.new", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    descriptor = os.open(making, flags, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    making.rename(directory / _OWNER)
    return descriptor


def _directories() -> list[Path]:
    """Of this user's exports."""
    found = []
    for directory in sorted(Path(tempfile.gettempdir()).glob(f"{_PREFIX}*")):
        with contextlib.suppress(OSError):
            if directory.lstat().st_uid == os.geteuid():
                found.append(directory)
    return found


def await_unused(path: Path, clock: Clock, limit_s: float) -> bool:
    """Whether no QEMU has the image open for writing; servers of killed processes get so much time
    to write what they were given."""
    deadline_s = clock.monotonic_s() + limit_s
    while in_use(path):
        if clock.monotonic_s() >= deadline_s:
            return False
        clock.sleep(_POLL_S)
    return True


def _owner_lives(directory: Path) -> bool:
    descriptor = os.open(directory / _OWNER, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _connect(socket: Path, contexts: Sequence[str] = (), export: str = "") -> Any:
    handle = nbd.NBD()
    _checked(lambda: handle.set_export_name(export))
    for context in contexts:
        _checked(functools.partial(handle.add_meta_context, context))
    _checked(lambda: handle.connect_unix(str(socket)))
    return handle


def _shut_down(handle: Any) -> None:
    with contextlib.suppress(nbd.Error):
        handle.shutdown()


def _checked(call: Callable[[], T]) -> T:
    try:
        return call()
    except nbd.Error as problem:
        raise HostError(f"NBD: {problem.string}") from None
