"""Files of a guest, written into a directory of the host.

Nothing that exists is overwritten, and nothing is written outside: directories are opened one by
one without following links, links that could lead out are left out, and so are devices, pipes and
sockets. A file has a partial name until it is whole. After a crash what was fetched stays, and
perhaps one partial file, which the next ``get`` into the directory removes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from drvm.core.errors import PreflightFailed, RestoreError
from drvm.core.progress import Progress
from drvm.core.units import format_bytes
from drvm.restore.guestfiles.appliance import FileProblem
from drvm.restore.guestfiles.names import Place, is_file_name, shown_name, stays_inside
from drvm.restore.guestfiles.view import GuestFiles
from drvm.restore.guestfiles.wire import Entry
from drvm.restore.targets.partial import SUFFIX, sweep_partial

MAX_ITEMS = 1_000_000
_MAX_FILE_BYTES = 1 << 44
_ZERO = bytes(4096)
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_TIME_S = 1 << 33


@dataclass(frozen=True, slots=True)
class Item:
    """``parts``: its path below the output directory."""

    place: Place
    entry: Entry
    parts: tuple[bytes, ...]

    @property
    def mode(self) -> int:
        return self.entry.mode


@dataclass(frozen=True, slots=True)
class FetchPlan:
    """Directories come before what is in them. ``left_out``: what is not fetched, and why."""

    output: Path
    items: tuple[Item, ...]
    left_out: tuple[str, ...]

    @property
    def size_bytes(self) -> int:
        return sum(item.entry.size_bytes for item in self.items if stat.S_ISREG(item.mode))

    @property
    def need_bytes(self) -> int:
        """Without the holes that the guest's file system has, too."""
        regular = (item.entry for item in self.items if stat.S_ISREG(item.mode))
        return sum(min(entry.size_bytes, entry.used_bytes) for entry in regular)


@dataclass(frozen=True, slots=True)
class Fetched:
    """``failed``: what the guest's file system did not give, and why."""

    files: int
    directories: int
    links: int
    written_bytes: int
    failed: tuple[str, ...]


def plan_fetch(guest: GuestFiles, places: Sequence[Place], output: Path) -> FetchPlan:
    """Look at all that is asked for, and at where it is to go; writes nothing.

    A place that is a symbolic link stands for what it leads to. Raises ``PreflightFailed`` with
    every problem, and ``RestoreError`` where a place can't be read.
    """
    items: list[Item] = []
    left_out: list[str] = []
    for place in places:
        for item in _reached(guest, place):
            reason = _refusal(item)
            if reason:
                left_out.append(f"{item.place}: {reason}")
            else:
                items.append(item)
            if len(items) + len(left_out) > MAX_ITEMS:
                raise RestoreError(
                    f"more than {MAX_ITEMS} files", hint="ask for one directory after the other"
                )
    plan = FetchPlan(output, tuple(items), tuple(left_out))
    problems = list(_problems(plan))
    if problems:
        raise PreflightFailed(
            f"the files can't be written to {output}",
            problems=problems,
            hint="name an empty directory with enough room",
        )
    return plan


def _reached(guest: GuestFiles, place: Place) -> Iterator[Item]:
    entry = guest.entry(place)
    above: tuple[bytes, ...] = ()
    if place.name:
        above = (place.name,)
        yield Item(place, entry, above)
    if not stat.S_ISDIR(entry.mode):
        return
    root = len(place.path.rstrip(b"/"))
    for inner, found in guest.walk(place, targets=True):
        yield Item(inner, found, (*above, *inner.path[root + 1 :].split(b"/")))


def _refusal(item: Item) -> str:
    """Why it is not made, or nothing."""
    kind = stat.S_IFMT(item.mode)
    if kind == stat.S_IFLNK:
        if item.entry.target is None:
            return "its target can't be read"
        if not stays_inside(item.entry.target, len(item.parts) - 1):
            return f"a symbolic link that may lead out, to {shown_name(item.entry.target)}"
    elif kind == stat.S_IFREG:
        if item.entry.size_bytes > _MAX_FILE_BYTES:
            return f"it says that it has {format_bytes(item.entry.size_bytes)}"
    elif kind != stat.S_IFDIR:
        return "a device, pipe or socket"
    return ""


def _problems(plan: FetchPlan) -> Iterator[str]:
    seen: set[bytes] = set()
    for item in plan.items:
        if len(item.parts) > 1 and item.parts[0] in seen:
            continue
        name = item.parts[0]
        if name in seen:
            yield f"two of the paths would both be {shown_name(name)}"
        seen.add(name)
        if os.path.lexists(plan.output / os.fsdecode(name)):
            yield f"{plan.output / shown_name(name)} exists, and nothing is overwritten"
    above = plan.output if plan.output.exists() else plan.output.parent
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        yield f"{above} is no directory that can be written"
        return
    room = os.statvfs(above)
    if plan.need_bytes > room.f_bavail * room.f_frsize:
        free = format_bytes(room.f_bavail * room.f_frsize)
        yield f"{format_bytes(plan.need_bytes)} are needed, and {free} are free in {above}"


def run_fetch(
    plan: FetchPlan, guest: GuestFiles, progress: Progress, *, preserve: bool = False
) -> Fetched:
    """Do it. ``preserve``: with the guest's owners, and modes without regard to the umask; bits
    that change who a program runs as are never set.

    What the guest can't give is told at the end; raises ``RestoreError`` where the host can't take
    it, and where the appliance ends.
    """
    progress.stage("fetching files", plan.size_bytes)
    umask = os.umask(0o077)
    os.umask(umask)
    try:
        plan.output.mkdir(mode=0o700, exist_ok=True)
        sweep_partial(plan.output)
        root = os.open(plan.output, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return _Fetch(guest, root, progress, 0 if preserve else umask, preserve).run(plan)
        finally:
            os.close(root)
    except OSError as error:
        where = os.fsdecode(error.filename) if error.filename else str(plan.output)
        raise RestoreError(
            f"{where} can't be written: {error.strerror}",
            hint="what was fetched before stays there",
        ) from None


class _Fetch:
    def __init__(
        self, guest: GuestFiles, root: int, progress: Progress, umask: int, preserve: bool
    ) -> None:
        self._guest = guest
        self._root = root
        self._progress = progress
        self._umask = umask
        self._preserve = preserve
        self._written = 0

    def run(self, plan: FetchPlan) -> Fetched:
        failed = []
        counts = dict.fromkeys((stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK), 0)
        for item in plan.items:
            try:
                with self._above(item) as directory:
                    self._make(item, directory)
            except FileProblem as problem:
                failed.append(problem.message)
            else:
                counts[stat.S_IFMT(item.mode)] += 1
        for item in reversed(plan.items):  # a directory's own mode may forbid to write into it
            if stat.S_ISDIR(item.mode):
                with self._above(item) as above, _opened(item.parts[-1], above) as directory:
                    self._finish(item, directory)
        return Fetched(
            files=counts[stat.S_IFREG],
            directories=counts[stat.S_IFDIR],
            links=counts[stat.S_IFLNK],
            written_bytes=self._written,
            failed=tuple(failed),
        )

    def _make(self, item: Item, directory: int) -> None:
        name = item.parts[-1]
        assert is_file_name(name)
        if stat.S_ISDIR(item.mode):
            os.mkdir(name, 0o700, dir_fd=directory)
        elif stat.S_ISLNK(item.mode):
            os.symlink(item.entry.target or b"", name, dir_fd=directory)
        else:
            self._file(item, name, directory)

    def _file(self, item: Item, name: bytes, directory: int) -> None:
        """Partial at the top, where the next ``get`` looks for it."""
        partial = f".{secrets.token_hex(8)}{SUFFIX}".encode()
        descriptor = os.open(partial, _NEW, 0o600, dir_fd=self._root)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)  # in work: a sweep leaves it alone
                self._fill(item, descriptor)
                self._finish(item, descriptor)
            finally:
                os.close(descriptor)
            _give_name(partial, self._root, name, directory)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(partial, dir_fd=self._root)

    def _fill(self, item: Item, descriptor: int) -> None:
        """Blocks of zeroes become holes."""
        size_bytes, offset = item.entry.size_bytes, 0
        for data in self._guest.read(item.place, size_bytes):
            for start, end in _not_zero(data):
                view = memoryview(data)[start:end]
                while view:
                    done = os.pwrite(descriptor, view, offset + start)
                    self._written += done
                    start, view = start + done, view[done:]
            offset += len(data)
            self._progress.advance(len(data))
        os.ftruncate(descriptor, size_bytes)

    def _finish(self, item: Item, descriptor: int) -> None:
        entry = item.entry
        if self._preserve:
            os.fchown(descriptor, entry.uid, entry.gid)
        os.fchmod(descriptor, entry.mode & 0o777 & ~self._umask)
        seconds = max(-_MAX_TIME_S, min(entry.mtime_s, _MAX_TIME_S))
        os.utime(descriptor, (seconds, seconds))

    @contextlib.contextmanager
    def _above(self, item: Item) -> Iterator[int]:
        """The directory that it goes into, each step without following a link."""
        with contextlib.ExitStack() as stack:
            directory = self._root
            for part in item.parts[:-1]:
                directory = stack.enter_context(_opened(part, directory))
            yield directory


@contextlib.contextmanager
def _opened(name: bytes, above: int) -> Iterator[int]:
    descriptor = os.open(name, _DIRECTORY, dir_fd=above)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _give_name(partial: bytes, root: int, name: bytes, directory: int) -> None:
    """Raises ``FileExistsError`` rather than replace anything."""
    try:
        os.link(partial, name, src_dir_fd=root, dst_dir_fd=directory, follow_symlinks=False)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        # a file system without links, as FAT: an empty file of ours holds the name
        os.close(os.open(name, _NEW, 0o600, dir_fd=directory))
        os.replace(partial, name, src_dir_fd=root, dst_dir_fd=directory)


def _not_zero(data: bytes) -> Iterator[tuple[int, int]]:
    """The ranges to write, in whole blocks."""
    begin: int | None = None
    for start in range(0, len(data), len(_ZERO)):
        block = data[start : start + len(_ZERO)]
        zero = not block[0] and block == _ZERO[: len(block)]
        if zero and begin is not None:
            yield begin, start
            begin = None
        elif not zero and begin is None:
            begin = start
    if begin is not None:
        yield begin, len(data)
