"""Local files that must survive a power loss, and names that must not be followed."""

from __future__ import annotations

import contextlib
import glob
import os
import secrets
import stat
from pathlib import Path

_ABANDONED_S = 3600.0


def write_durably(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Replace ``path`` as a whole: after a crash it holds the old bytes or the new ones."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise
    sync_directory(path.parent)


def write_cached(path: Path, data: bytes) -> None:
    """Replace ``path``, without a sync: for caches, whose readers find out what a power loss tore.
    Raises ``OSError``; a crash leaves at most a file that ends in ``.partial``."""
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def publish(path: Path, data: bytes) -> None:
    """Replace ``path`` as a whole, for whoever reads it meanwhile: what fails leaves the old one.

    A new file gets the mode that the umask says; one that was there keeps mode, owner and group, as
    far as we may, and where it is a link, the file that it leads to is replaced. What is no file,
    such as a pipe, is written to. Raises ``OSError``; a crash leaves a hidden ``.drvm-partial``
    beside it, which the next one takes away an hour later.
    """
    old = path.stat() if path.exists() else None
    if old is not None and not stat.S_ISREG(old.st_mode):
        path.write_bytes(data)
        return
    path = path.resolve()
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.drvm-partial")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    descriptor = os.open(partial, flags, 0o666 if old is None else 0o600)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            _remove_abandoned(path, os.fstat(descriptor).st_mtime)
            stream.write(data)
            if old is not None:
                with contextlib.suppress(PermissionError):
                    os.fchown(descriptor, old.st_uid, old.st_gid)
                os.fchmod(descriptor, stat.S_IMODE(old.st_mode))
            stream.flush()
            os.fsync(descriptor)
        partial.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # of a full disk people want to know which
        raise


def _remove_abandoned(path: Path, now_s: float) -> None:
    for partial in path.parent.glob(f".{glob.escape(path.name)}.*.drvm-partial"):
        with contextlib.suppress(OSError):
            if now_s - partial.stat().st_mtime > _ABANDONED_S:
                partial.unlink()


def remove_durably(path: Path) -> None:
    """Unlink ``path`` if it is there, and make the directory remember."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
        sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
