"""The state of emulated TPMs: a few small files that swtpm keeps where libvirt tells it to.

libvirt's place is ``ROOT/<uuid>/tpm2`` (``tpm1.2`` for the older kind), since 10.10 also any
directory that the XML names. libvirt makes a TPM anew only where that directory is absent, and
gives it and its files to swtpm's user before each start (``src/qemu/qemu_tpm.c``;
``tests/e2e/test_whole_machine.py`` holds it). swtpm writes a file under another name and renames
it (``SWTPM_NVRAM_StoreData``), so whoever opens one reads it whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from drvm.core.errors import HostError
from drvm.core.files import sync_directory, write_durably
from drvm.core.ids import is_tpm_file, is_uuid

ROOT = Path("/var/lib/libvirt/swtpm")
"""Of a libvirtd that runs as root."""
MAX_FILE_BYTES = 1024 * 1024
"""Seen: 6 to 20 KiB."""

_MAX_ENTRIES = 64
_KINDS = {"2.0": "tpm2", "1.2": "tpm1.2"}
_MARK = ".drvm-restoring"
_BEFORE = ".before-"
_NEW = ".new"


def state_directory(root: Path, vm_uuid: str, version: str | None) -> Path:
    """Where libvirt keeps it; where the XML does not say the version, the kind that is there."""
    machine = _machine(root, vm_uuid)
    if version is None:
        return next((machine / k for k in _KINDS.values() if (machine / k).is_dir()), machine)
    return machine / _KINDS.get(version, "tpm2")


def read_state(directory: Path) -> dict[str, bytes]:
    """File name -> content; empty where the machine was never started. Raises ``HostError`` for
    what can't be read, is no plain file or is too large."""
    try:
        with os.scandir(directory) as entries:
            names = [entry.name for _, entry in zip(range(_MAX_ENTRIES), entries, strict=False)]
    except FileNotFoundError:
        return {}
    except OSError as problem:
        raise HostError(f"{directory} can't be read: {problem.strerror}") from None
    found = {}
    for name in sorted(filter(is_tpm_file, names)):
        with contextlib.suppress(FileNotFoundError):  # of a state that was not needed any more
            found[name] = _read(directory / name)
    return found


def write_state(root: Path, vm_uuid: str, files: Mapping[str, bytes]) -> None:
    """For a machine that has none. Raises ``OSError``; ``remove_state`` removes what is left."""
    directory = _machine(root, vm_uuid) / _kind(files)
    directory.parent.mkdir(mode=0o711)
    _write(directory, files)


def remove_state(root: Path, vm_uuid: str) -> None:
    """All of the machine's, if there is any. Raises ``OSError``."""
    _remove_tree(_machine(root, vm_uuid))


@contextlib.contextmanager
def restored_state(root: Path, vm_uuid: str, files: Mapping[str, bytes]) -> Iterator[None]:
    """The machine's next start finds ``files``, whatever was there before.

    What was there stays beside them, under a name with ``.before-``. If the context is left by an
    error, all is as it was. A crash in it leaves a mark, by which ``sweep_states`` finds what must
    go. Raises ``HostError``.
    """
    machine = _machine(root, vm_uuid)
    target = machine / _kind(files)
    partial = machine / _NEW
    before = target.with_name(f"{target.name}{_BEFORE}{secrets.token_hex(4)}")
    placed = False
    try:
        machine.mkdir(mode=0o711, exist_ok=True)
        if machine.is_symlink():
            raise HostError(f"{machine} is a link, where libvirt keeps a directory")
        with _held(machine / _MARK, os.O_CREAT):
            try:
                _remove_tree(partial)
                _write(partial, files)
                if os.path.lexists(target):
                    target.rename(before)
                partial.rename(target)
                placed = True
                sync_directory(machine)
                yield
            except BaseException:
                for tree in (partial, *([target] if placed else [])):
                    _remove_tree(tree)
                if os.path.lexists(before):
                    before.rename(target)
                (machine / _MARK).unlink(missing_ok=True)  # libvirt takes it with its machine
                with contextlib.suppress(OSError):  # what was there before is in it
                    machine.rmdir()
                raise
            (machine / _MARK).unlink()
    except BlockingIOError:
        raise HostError(f"another restore works on {machine}") from None
    except OSError as problem:
        raise HostError(f"the state of the TPM can't be put in place: {problem}") from None


def sweep_states(root: Path, is_known: Callable[[str], bool]) -> None:
    """Finish what killed restores left: the state of a machine that was never defined goes; that
    of one that is there stays, and is put back where it was just being replaced."""
    for mark in sorted(root.glob(f"*/{_MARK}")):
        machine = mark.parent
        with contextlib.suppress(OSError), _held(mark, 0):
            if not is_uuid(machine.name):
                continue
            if not is_known(machine.name):
                _remove_tree(machine)
                continue
            _remove_tree(machine / _NEW)
            for before in sorted(machine.glob(f"*{_BEFORE}*")):
                target = machine / before.name.partition(_BEFORE)[0]
                if not os.path.lexists(target):
                    before.rename(target)
            mark.unlink()


def _machine(root: Path, vm_uuid: str) -> Path:
    if not is_uuid(vm_uuid):
        raise ValueError(f"{vm_uuid!r} is no UUID")
    return root / vm_uuid


def _kind(files: Mapping[str, bytes]) -> str:
    """The directory of such files: their names say which kind of TPM they are of."""
    if not files or not all(map(is_tpm_file, files)):
        raise ValueError("these are no files of a TPM's state")
    return _KINDS["1.2" if next(iter(files)).startswith("tpm-") else "2.0"]


def _write(directory: Path, files: Mapping[str, bytes]) -> None:
    directory.mkdir(mode=0o700)
    for name, data in files.items():
        write_durably(directory / name, data)
    sync_directory(directory.parent)


def _read(path: Path) -> bytes:
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW
    try:
        with os.fdopen(os.open(path, flags), "rb") as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise HostError(f"{path} is not a file")
            data = stream.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise
    except OSError as problem:
        raise HostError(f"{path} can't be read: {problem.strerror}") from None
    if len(data) > MAX_FILE_BYTES:
        raise HostError(f"{path} has more than {MAX_FILE_BYTES} bytes")
    return data


def _remove_tree(directory: Path) -> None:
    """Two levels deep at most, as swtpm and we make it; no link is followed."""
    if not os.path.lexists(directory):
        return
    if directory.is_symlink():
        directory.unlink()
        return
    for child in list(directory.iterdir()):
        if child.is_dir() and not child.is_symlink():
            for file in list(child.iterdir()):
                file.unlink()
            child.rmdir()
        else:
            child.unlink()
    directory.rmdir()


@contextlib.contextmanager
def _held(path: Path, create: int) -> Iterator[None]:
    """A lock that ends with us, however we end. Raises ``BlockingIOError`` where it is taken."""
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | create
    descriptor = os.open(path, flags, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
