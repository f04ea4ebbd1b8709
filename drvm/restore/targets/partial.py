"""Partial images: under a name of their own until they are whole, and found again after a crash.

The name (``.NAME.<tag>.drvm-partial``) says what is being restored, so the next restore of the
same finds what a killed one left, and goes on with it. Nothing in it is believed: see
``drvm/repository/differing.py``. A lock on the file, which ends with its process, tells those that
somebody works on.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import hashlib
import os
import re
import secrets
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from drvm.core.clock import Clock, SystemClock
from drvm.core.errors import (
    HostError,
    Interrupted,
    RestoreError,
    StoreRefused,
    StoreUnreachable,
)
from drvm.core.files import sync_directory
from drvm.host.images import ImageTool
from drvm.host.nbd import await_unused, sweep_exports

PASSING = (StoreUnreachable, StoreRefused, Interrupted, KeyboardInterrupt)
"""What ends a restore that is worth going on with."""
GOES_ON = "what was restored is kept: the same command goes on with it"
SUFFIX = ".drvm-partial"
_LASTING = re.compile(rf"\..+\.[0-9a-f]{{16}}{re.escape(SUFFIX)}", re.ASCII | re.DOTALL)
"""The names that are looked for again."""
KEPT_FOR = dt.timedelta(days=7)
SERVERS_END_S = 30.0
"""The server of a killed restore writes what it was given before it ends."""
_SECTOR_BYTES = 512


@dataclass(frozen=True, slots=True)
class Partial:
    """A partial image that this process holds the lock of, until ``release``. ``is_new``: it is
    known to read as zeroes."""

    path: Path
    descriptor: int
    is_new: bool

    def sync(self) -> None:
        os.fsync(self.descriptor)

    def release(self) -> None:
        os.close(self.descriptor)

    def remove(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()


def partial_name(path: Path) -> Path:
    """Where a file is made that will be called ``path``: a name that nobody else uses, nor looks
    for again."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{SUFFIX}")


def partial_path(path: Path, what: Sequence[object]) -> Path:
    """Where the image ``path`` is made, and looked for; ``what`` tells it from all others."""
    told = repr([str(part) for part in what]).encode()
    return path.with_name(f".{path.name}.{hashlib.sha256(told).hexdigest()[:16]}{SUFFIX}")


def taken_over(
    path: Path, image_format: str, size_bytes: int, tool: ImageTool, clock: Clock
) -> Partial | None:
    """What a killed restore left there, if it is what drvm itself makes: a plain file of this
    user's alone, of that size, and no more than leaks wrong with it. A file that is drvm's own and
    not sound is removed; anything else is left alone.

    Raises ``RestoreError`` where another process works on it.
    """
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    with contextlib.ExitStack() as undo:
        try:
            descriptor = os.open(path, flags)
        except OSError:
            return None
        undo.callback(os.close, descriptor)
        if not _is_own(descriptor):
            return None
        _lock(descriptor, path)
        if not (_is_own(descriptor) and _has_name(descriptor, path)):
            return None
        if image_format == "raw" and os.fstat(descriptor).st_size != size_bytes:
            return None
        sweep_exports(clock)
        if not await_unused(path, clock, SERVERS_END_S):
            raise RestoreError(f"{path} is in use", hint="end the program that has it open")
        if image_format != "raw" and not _is_sound(path, image_format, size_bytes, tool):
            path.unlink()
            return None
        undo.pop_all()
        return Partial(path, descriptor, is_new=False)


def new_partial(
    path: Path, image_format: str, size_bytes: int, tool: ImageTool, options: Mapping[str, str]
) -> Partial:
    """Raises ``HostError`` where ``path`` exists; a failure leaves nothing. ``RestoreError`` where
    another restore has found it and works on it already."""
    tool.create_image(path, image_format, size_bytes, options)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(f"{path} can't be opened once made: {error.strerror}") from None
    try:
        _lock(descriptor, path)
    except BaseException:
        os.close(descriptor)  # it is whoever's that has taken it over meanwhile
        raise
    return Partial(path, descriptor, is_new=True)


def allocated_bytes(path: Path) -> int:
    """The room that a partial image takes which may be gone on with; 0 where there is none."""
    with contextlib.suppress(OSError):
        status = path.lstat()
        if _looks_own(status):
            return status.st_blocks * _SECTOR_BYTES
    return 0


@dataclass(frozen=True, slots=True)
class LeftImage:
    """A partial image that nobody works on."""

    path: Path
    allocated_bytes: int
    written: dt.datetime


def left_in(directory: Path) -> list[LeftImage]:
    """By name; of this user. Changes nothing."""
    found = []
    for path in sorted(directory.glob(f".*{SUFFIX}")):
        with contextlib.suppress(OSError), _unused(path) as status:
            written = dt.datetime.fromtimestamp(status.st_mtime, dt.UTC)
            found.append(LeftImage(path, status.st_blocks * _SECTOR_BYTES, written))
    return found


def sweep_partial(
    directory: Path, *, clock: Clock | None = None, all_of_them: bool = False
) -> list[Path]:
    """Remove the partial files that nobody works on: those that no restore would go on with, those
    that none has for a week, or ``all_of_them``. Returns what was removed."""
    now, removed = (clock or SystemClock()).now(), []
    for left in left_in(directory):
        if all_of_them or not _LASTING.fullmatch(left.path.name) or now - left.written > KEPT_FOR:
            with contextlib.suppress(OSError), _unused(left.path):
                left.path.unlink()
                removed.append(left.path)
    return removed


@contextlib.contextmanager
def _unused(path: Path) -> Iterator[os.stat_result]:
    """Raises ``OSError`` for what is not ours, or somebody works on."""
    with held(path) as descriptor:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            raise PermissionError(path)
        yield status


@contextlib.contextmanager
def held(path: Path) -> Iterator[int]:
    """A lock that ends with us, however we end: it tells others that the file is in work. Gives
    a descriptor, for reading. Raises ``BlockingIOError`` where somebody else has it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield descriptor
    finally:
        os.close(descriptor)


def give_name(partial: Path, path: Path) -> None:
    """Durable when it returns. Raises ``RestoreError`` where there is such a file, and
    ``HostError``; ``partial`` is still there then. A crash leaves both names, or one."""
    try:
        os.link(partial, path, follow_symlinks=False)
    except FileExistsError:
        raise RestoreError(f"{path} exists: it was made while the restore ran") from None
    except OSError as error:
        raise HostError(f"{path} can't be made: {error.strerror}") from None
    partial.unlink()
    sync_directory(path.parent)


def _looks_own(status: os.stat_result) -> bool:
    return (
        stat.S_ISREG(status.st_mode)
        and status.st_uid == os.geteuid()
        and status.st_nlink == 1
        and not status.st_mode & 0o077
    )


def _is_own(descriptor: int) -> bool:
    return _looks_own(os.fstat(descriptor))


def _has_name(descriptor: int, path: Path) -> bool:
    """Still, as it was not locked when it was opened."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RestoreError(
            f"another restore works on {path}", hint="wait until it is done, or end it"
        ) from None


def _is_sound(path: Path, image_format: str, size_bytes: int, tool: ImageTool) -> bool:
    """Two of the guest's blocks in one place of a damaged image would look right one by one."""
    try:
        info = tool.info(path, image_format)
        plain = info.backing_file is None and not (info.bitmaps or info.snapshots)
        if not plain or info.virtual_size_bytes != size_bytes:
            return False
        tool.check(path, image_format, leaks=True)
        tool.mend_leaks(path, image_format)
    except HostError:
        return False
    return True
