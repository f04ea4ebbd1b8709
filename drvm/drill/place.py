"""What a drill makes on the host, and how it is told whose it is.

One name stands for all of it: the directory (images, NVRAM, a lock file), the network, the
machine, and, by a UUID that is made of the name, the state of the machine's TPM. The directory is
made first and removed last, and its lock file is locked for as long as the drill's process lives:
so whatever a killed drill left can be found and attributed, and what has no such directory is not
ours to touch.

A note in the directory says on which host the rest is. Where that is another machine the directory
is here all the same, without images: those are volumes there, known by the token in their names.
A group has a directory and a network of its own name, each of its machines a directory besides.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from drvm.core.clock import Clock
from drvm.core.errors import DrvmError, Interrupted, Locked, RestoreError
from drvm.core.files import write_durably
from drvm.core.progress import Trace, no_trace
from drvm.host.model import Host
from drvm.host.tpm import remove_state
from drvm.restore.targets.volume_lease import is_token
from drvm.restore.targets.volume_leftovers import FoundLease, clear

DEFAULT_DIRECTORY = Path("/var/lib/libvirt/images")

_NAME = re.compile(r"drvm-drill-[0-9a-f]{16}", re.ASCII)
_NAMESPACE = uuid.UUID("8f6a2c1e-5d0b-5c5e-9a34-6d72766d0002")
_LOCK = "lock"
_NOTE = "note"
_MAX_NOTE_BYTES = 64 * 1024
_PLACE = ".place"
_MAX_PATH_BYTES = 4096
_MODE = 0o711
"""QEMU's user may reach the images, whose names it is given, and list nothing."""
_TRIES = 100
_PAUSE_S = 0.01
_AWAY_S = 15.0
_AWAY_PAUSE_S = 0.5


@dataclass(frozen=True, slots=True)
class Volumes:
    """Images that are volumes of ``pool`` on the host ``uri``; ``token`` is in their names."""

    uri: str
    pool: str
    token: str


@dataclass(frozen=True, slots=True)
class Note:
    """``uri``: the host of machine and network. ``pool``, ``token``: as in ``Volumes``, or
    empty."""

    uri: str
    pool: str = ""
    token: str = ""


def drill_name(drill_id: str) -> str:
    """Of the machine, the network and the directory."""
    return f"drvm-drill-{drill_id}"


def drill_uuid(name: str) -> str:
    """Of the drill's machine: known to whoever tears it down, however it came to that."""
    return str(uuid.uuid5(_NAMESPACE, name))


def is_drill_name(name: str) -> bool:
    return _NAME.fullmatch(name) is not None


@contextlib.contextmanager
def made(directory: Path, note: Note, clock: Clock) -> Iterator[None]:
    """Make the drill's directory, hold its lock and note its host. Removing it is
    ``tear_down``'s.

    Raises ``RestoreError`` or ``OSError``, having left nothing. Between its making and its lock
    somebody who looks for leftovers may take it for one and remove it, empty as it is: then it
    is made again.
    """
    directory.parent.mkdir(mode=_MODE, parents=True, exist_ok=True)
    for _ in range(_TRIES):
        with contextlib.suppress(FileExistsError):
            directory.mkdir(mode=0o700)
        try:
            descriptor = _lock(directory, os.O_CREAT)
        except (FileNotFoundError, Locked):
            clock.sleep(_PAUSE_S)
            continue
        try:
            try:
                directory.chmod(_MODE)
                write_durably(directory / _NOTE, msgspec.json.encode(note))
            except BaseException:
                with contextlib.suppress(OSError):
                    remove(directory)
                raise
            yield
        finally:
            os.close(descriptor)
        return
    raise RestoreError(f"{directory} can't be made: somebody keeps removing it")


def remember(notes: Path, place: Path) -> None:
    """Keep in ``notes`` that drills have their directories in ``place``: what a killed one left
    there is found also when no config names it any more. Raises ``OSError``."""
    known = notes / f"{uuid.uuid5(_NAMESPACE, str(place))}{_PLACE}"
    if not known.exists():
        notes.mkdir(mode=_MODE, parents=True, exist_ok=True)
        write_durably(known, os.fsencode(place))


def remembered(notes: Path) -> set[Path]:
    found = set()
    for known in notes.glob(f"*{_PLACE}"):
        with contextlib.suppress(OSError), known.open("rb") as stream:
            place = Path(os.fsdecode(stream.read(_MAX_PATH_BYTES)))
            if place.is_dir():
                found.add(place)
    return found


@contextlib.contextmanager
def taken_over(directory: Path) -> Iterator[None]:
    """Hold the lock of a drill whose process is dead. Raises ``Locked`` where it lives, and
    ``FileNotFoundError`` where there is no lock file."""
    descriptor = _lock(directory, 0)
    try:
        yield
    finally:
        os.close(descriptor)


def noted(directory: Path) -> Note | None:
    """``None`` where nothing but the directory can have been made, or the note says nothing."""
    try:
        with (directory / _NOTE).open("rb") as stream:
            note = msgspec.json.decode(stream.read(_MAX_NOTE_BYTES), type=Note)
    except (OSError, msgspec.MsgspecError):
        return None
    return note if not note.token or is_token(note.token) else None


def tear_down(
    host: Host, directory: Path, trace: Trace = no_trace, clock: Clock | None = None
) -> list[str]:
    """End the machine, destroy the network, remove its volumes, its TPM's state and the directory;
    the caller holds its lock, and ``host`` is the one that is noted.

    May be called again. Each part is tried, whatever became of the others; the directory stays
    if one of the others does. Returns a line for each part that could not be removed. A SIGTERM
    in the middle, which comes once, is raised again behind a second try. With a ``clock`` it waits
    for a libvirtd that is being restarted.
    """
    try:
        if clock is not None:
            _wait_for(host, clock)
        return _tear_down(host, directory, trace)
    except (Interrupted, KeyboardInterrupt):
        _tear_down(host, directory, trace)
        raise


def _wait_for(host: Host, clock: Clock) -> None:
    """A libvirtd that was restarted has forgotten to end the machine with us (AUTODESTROY; seen
    with 9.0). It is not waited for as long as a daemon may take to end."""
    deadline_s = clock.monotonic_s() + _AWAY_S
    while True:
        try:
            host.network_names()
            return
        except Interrupted:
            raise
        except DrvmError:
            if clock.monotonic_s() >= deadline_s:
                return
        clock.sleep(_AWAY_PAUSE_S)


def _tear_down(host: Host, directory: Path, trace: Trace) -> list[str]:
    name = directory.name
    problems = []
    try:
        domain = host.find_domain(name)
        if domain is not None:
            domain.destroy()
            trace("machine-ended")
    except Interrupted:
        raise
    except DrvmError as problem:
        problems.append(f"the machine {name} could not be ended: {problem.message}")
    try:
        if name in host.network_names():
            host.destroy_network(name)
            trace("network-destroyed")
    except Interrupted:
        raise
    except DrvmError as problem:
        problems.append(f"the network {name} could not be destroyed: {problem.message}")
    note = noted(directory)
    try:
        if not problems and note is not None and note.pool:
            clear(host, FoundLease(note.pool, note.token, b"", ()))
            trace("volumes-removed")
    except Interrupted:
        raise
    except DrvmError as problem:
        problems.append(f"the volumes of {name} could not be removed: {problem.message}")
    if not problems and host.places is not None:
        try:
            remove_state(host.places.tpm, drill_uuid(name))
        except OSError as problem:
            problems.append(f"the TPM state of {name} could not be removed: {problem}")
    if not problems:
        try:
            remove(directory)
            trace("directory-removed")
        except OSError as problem:
            problems.append(f"{directory} could not be removed: {problem.strerror}")
    return problems


def is_empty(directory: Path) -> bool | None:
    """Killed between the directory's making and its lock, or at the very end of its removal.
    ``None`` where it is gone."""
    try:
        return next(directory.iterdir(), None) is None
    except FileNotFoundError:
        return None


def _lock(directory: Path, create: int) -> int:
    """The descriptor of the directory's lock file, locked; the file that has the name now, not
    one that was removed meanwhile."""
    path = directory / _LOCK
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | create, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(descriptor), path.lstat()):
            raise FileNotFoundError(path)
    except BaseException as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise Locked(f"the drill in {directory} is running") from None
        raise
    return descriptor


def remove(directory: Path) -> None:
    """With the lock held by the caller. The lock file goes last: as long as anything is left, it
    says whose it is. Raises ``OSError``."""
    with contextlib.suppress(FileNotFoundError):
        for entry in list(directory.iterdir()):
            if entry.name == _LOCK:
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        (directory / _LOCK).unlink(missing_ok=True)
        directory.rmdir()
