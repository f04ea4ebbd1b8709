"""A directory as a store: the embedded default, also for NFS mounts and removable disks.

An object is a file. Writes go to a file ``~<random>`` beside it, which no object can be called,
and get their name when they are whole and on the disk; a crash leaves at most such a file.
Directories below the root are made as needed and stay when they are empty. Symbolic links are
never followed below the root: what else has access to the directory can't lead reads or writes
out of it. The root itself is not made by writes: an unmounted disk is an error, not a new store.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import errno
import fcntl
import mmap
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from drvm.core.errors import (
    ObjectDamaged,
    ObjectExists,
    ObjectMissing,
    OutcomeUnknown,
    StoreRefused,
    StoreUnreachable,
)
from drvm.core.files import sync_directory
from drvm.store import base

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: opening somebody's FIFO must not wait for a writer. Regular files ignore it.
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECT_BYTES = 1 << 20
_FULL = {errno.ENOSPC, errno.EDQUOT}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
_PASSING = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EMFILE, errno.ENFILE}
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS}


class DirectoryStore:
    """Keeps the contract of ``Store`` in ``root``, an absolute path.

    Raises ``StoreRefused`` where the root does not exist: ``create`` makes it.
    """

    def __init__(self, root: Path) -> None:
        if not root.is_absolute():
            raise ValueError(f"{root} is not an absolute path")
        self._root = root
        with self._translated(""):
            os.close(self._open_root())

    @classmethod
    def create(cls, root: Path) -> DirectoryStore:
        """The same, with the directory made first (for its owner only) where it is missing."""
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            sync_directory(root.parent)
        except OSError as error:
            raise StoreRefused(
                f"can't make the directory {root}: {error.strerror}",
                hint="make it yourself, or name a place where you may write",
            ) from None
        return cls(root)

    @property
    def location(self) -> str:
        return self._root.as_uri()

    def get(self, name: str, *, offset: int = 0, length: int | None = None) -> bytes:
        base.check_range(offset, length)
        with self._object(name) as (descriptor, size_bytes):
            end = size_bytes if length is None else offset + length
            if offset > size_bytes or end > size_bytes:
                raise base.past_the_end(name, offset, length, size_bytes)
            return _read(name, descriptor, offset, end - offset)

    def get_tail(self, name: str, length: int) -> bytes:
        base.check_range(0, length)
        with self._object(name) as (descriptor, size_bytes):
            offset = max(0, size_bytes - length)
            return _read(name, descriptor, offset, size_bytes - offset)

    def head(self, name: str) -> base.ObjectInfo:
        with self._object(name) as (descriptor, _):
            return _info(name, os.fstat(descriptor))

    def put(self, name: str, data: base.Buffer) -> None:
        self._write(name, data, replace=True)

    def put_if_absent(self, name: str, data: bytes) -> None:
        self._write(name, data, replace=False)

    def delete(self, name: str) -> None:
        base.check_name(name)
        with self._translated(name):
            try:
                directory, leaf = self._open_parent(name, make=False)
            except (FileNotFoundError, NotADirectoryError):
                self._check_root()
                return
            try:
                os.unlink(leaf, dir_fd=directory)
                os.fsync(directory)
            except (FileNotFoundError, IsADirectoryError):
                pass
            finally:
                os.close(directory)

    def close(self) -> None:
        pass

    def list(self, prefix: str) -> Iterator[base.ObjectInfo]:
        base.check_prefix(prefix)
        return self._walk(prefix.rpartition("/")[0], prefix)

    # -- reading ------------------------------------------------------------------------------
    @contextlib.contextmanager
    def _object(self, name: str) -> Iterator[tuple[int, int]]:
        """The open file of an object and its size in bytes."""
        base.check_name(name)
        with self._translated(name):
            try:
                directory, leaf = self._open_parent(name, make=False)
                try:
                    descriptor = os.open(leaf, _READ, dir_fd=directory)
                finally:
                    os.close(directory)
            except (FileNotFoundError, NotADirectoryError):
                self._check_root()
                raise ObjectMissing(f"there is no {name} in {self._root}") from None
            try:
                status = os.fstat(descriptor)
                if stat.S_ISDIR(status.st_mode):
                    raise ObjectMissing(f"there is no {name} in {self._root}")
                if not stat.S_ISREG(status.st_mode):
                    raise self._foreign(name)
                yield descriptor, status.st_size
            finally:
                os.close(descriptor)

    def _walk(self, directory: str, prefix: str) -> Iterator[base.ObjectInfo]:
        """No descriptor is open while the caller looks at what was found."""
        with self._translated(directory):
            entries = self._scan(directory)
        # "a/" sorts as its contents do among "a-b" and "a.b".
        for key, info in sorted(entries.items()):
            if info is None:
                if key.startswith(prefix):
                    yield from self._walk(key.removesuffix("/"), prefix)
            elif key.startswith(prefix):
                yield info

    def _scan(self, directory: str) -> dict[str, base.ObjectInfo | None]:
        """Names of files, and names with a slash (and ``None``) of directories."""
        found: dict[str, base.ObjectInfo | None] = {}
        try:
            descriptor = self._open_directory(directory.split("/") if directory else [])
        except (FileNotFoundError, NotADirectoryError):
            self._check_root()
            return found
        try:
            with os.scandir(descriptor) as entries:
                for entry in entries:
                    name = f"{directory}/{entry.name}" if directory else entry.name
                    if not base.is_name(name):
                        continue
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue  # deleted since
                    if stat.S_ISDIR(status.st_mode):
                        found[name + "/"] = None
                    elif stat.S_ISREG(status.st_mode):
                        found[name] = _info(name, status)
                    else:
                        raise self._foreign(name)
        finally:
            os.close(descriptor)
        return found

    # -- writing ------------------------------------------------------------------------------
    def _write(self, name: str, data: base.Buffer, *, replace: bool) -> None:
        base.check_size(base.check_name(name), len(data))
        with self._translated(name):
            directory, leaf = self._open_parent(name, make=True)
            try:
                temporary = f"~{secrets.token_hex(8)}"
                try:
                    _write_file(directory, temporary, data)
                    if replace:
                        os.rename(temporary, leaf, src_dir_fd=directory, dst_dir_fd=directory)
                    else:
                        self._link(directory, temporary, leaf, name)
                finally:
                    with contextlib.suppress(OSError):
                        os.unlink(temporary, dir_fd=directory)
                try:
                    os.fsync(directory)
                except OSError as error:
                    raise OutcomeUnknown(
                        f"{name} was written, but {self._root} can't promise to keep it: "
                        f"{error.strerror}"
                    ) from None
            finally:
                os.close(directory)

    def _link(self, directory: int, temporary: str, leaf: str, name: str) -> None:
        try:
            os.link(
                temporary, leaf, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False
            )
        except FileExistsError:
            raise ObjectExists(f"{name} exists already in {self._root}") from None
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            raise StoreRefused(
                f"the file system of {self._root} has no hard links: {error.strerror}",
                hint="a file can't be created atomically there; use ext4, xfs, btrfs or NFS",
            ) from None

    # -- directories --------------------------------------------------------------------------
    def _open_root(self) -> int:
        return os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def _check_root(self) -> None:
        """What is missing is missing in a root that is there."""
        try:
            os.close(self._open_root())
        except (FileNotFoundError, NotADirectoryError):
            raise StoreRefused(
                f"there is no directory {self._root}",
                hint="mount it if it is on a disk of its own; drvm init makes a new one",
            ) from None

    def _open_parent(self, name: str, *, make: bool) -> tuple[int, str]:
        """The open directory of an object and the object's name in it."""
        *segments, leaf = name.split("/")
        return self._open_directory(segments, make=make), leaf

    def _open_directory(self, segments: Sequence[str], *, make: bool = False) -> int:
        descriptor = self._open_root()
        for segment in segments:
            parent = descriptor
            try:
                if make:
                    _make_directory(segment, parent)
                descriptor = os.open(segment, _DIRECTORY, dir_fd=parent)
            except NotADirectoryError:
                # Linux says so for symbolic links too, and those are no missing objects.
                status = os.stat(segment, dir_fd=parent, follow_symlinks=False)
                if stat.S_ISLNK(status.st_mode):
                    raise self._foreign("/".join(segments)) from None
                raise
            finally:
                os.close(parent)
        return descriptor

    # -- errors -------------------------------------------------------------------------------
    @contextlib.contextmanager
    def _translated(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._raise(name, error)

    def _raise(self, name: str, error: OSError) -> NoReturn:
        where = self._root / name
        why = error.strerror or type(error).__name__
        if error.errno in (errno.ENOENT, errno.ENOTDIR) and not self._root.is_dir():
            self._check_root()
        if error.errno in _FULL:
            raise StoreRefused(
                f"{self._root} is full: {why}", hint="free space there, or prune old points"
            ) from None
        if error.errno in _DENIED:
            raise StoreRefused(
                f"no permission for {where}: {why}",
                hint="drvm usually runs as root: check the owner, the mode and the mount options",
            ) from None
        if error.errno == errno.ELOOP:
            raise self._foreign(name) from None
        if error.errno in _PASSING:
            raise StoreUnreachable(
                f"{where} can't be read or written now: {why}",
                hint="look at the disk or the mount (dmesg names the fault)",
            ) from None
        raise StoreRefused(f"{where}: {why}") from None

    def _foreign(self, name: str) -> StoreRefused:
        return StoreRefused(
            f"{self._root / name} is, or lies behind, a symbolic link or a special file",
            hint="drvm follows no links inside a repository: put the files themselves there",
        )


def _read(name: str, descriptor: int, offset: int, length: int) -> bytes:
    base.check_size(name, length)
    parts = []
    while length:
        part = os.pread(descriptor, length, offset)
        if not part:
            raise ObjectDamaged(f"{name} became shorter while it was read")
        parts.append(part)
        offset += len(part)
        length -= len(part)
    return b"".join(parts)


def _write_file(directory: int, leaf: str, data: base.Buffer) -> None:
    descriptor = os.open(leaf, _CREATE, 0o600, dir_fd=directory)
    with os.fdopen(descriptor, "wb") as stream:
        done = _write_direct(descriptor, memoryview(data)) if len(data) >= _DIRECT_BYTES else 0
        stream.write(memoryview(data)[done:])
        stream.flush()
        os.fsync(descriptor)


def _write_direct(descriptor: int, data: memoryview) -> int:
    """Past the page cache, which is for the guests; whole pages, where that can be. How many."""
    end = len(data) - len(data) % mmap.PAGESIZE
    done = 0
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, os.O_DIRECT)
        while done < end:
            done += os.write(descriptor, data[done:end])
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    fcntl.fcntl(descriptor, fcntl.F_SETFL, 0)
    return done


def _make_directory(segment: str, parent: int) -> None:
    with contextlib.suppress(FileExistsError):
        os.mkdir(segment, 0o700, dir_fd=parent)
    # Also where it exists: who made it may not have come this far.
    os.fsync(parent)


def _info(name: str, status: os.stat_result) -> base.ObjectInfo:
    modified = dt.datetime.fromtimestamp(status.st_mtime, dt.UTC)
    return base.ObjectInfo(name, status.st_size, modified)
