"""What the drills that run on this machine have taken of its memory and of the room for images.

Each has a note below ``/run``, which it holds a lock on for as long as its process lives: a note
whose lock is free is nobody's any more, and is removed by whoever looks under the lock of all
drills (``drvm/drill/turns.py``).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from drvm.core.clock import Clock
from drvm.core.errors import Locked
from drvm.drill.room import Room
from drvm.snapshot.locks import shared_directory, try_lock

_LOCK_S = 60.0
_LOCK_POLL_S = 0.02
_MAX_NOTE_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Taken:
    """``storage``: the file system or pool where the images go; ``host``: whose memory.
    ``directories``: where images of this machine lie, to see how much is written."""

    storage: str
    data_bytes: int
    host: str
    memory_bytes: int
    directories: tuple[str, ...]

    @property
    def still_bytes(self) -> int:
        return max(0, self.data_bytes - sum(_written_bytes(Path(p)) for p in self.directories))


def notes() -> Path | None:
    """The directory of the notes; ``None`` where this user has none below ``/run``."""
    parent = shared_directory()
    return parent / "drills" if parent is not None else None


def storage_of(directory: Path) -> str:
    """The file system that it is on, or will be."""
    there = next(path for path in (directory, *directory.parents) if path.is_dir())
    return f"device {there.stat().st_dev}"


@contextlib.contextmanager
def all_drills(clock: Clock) -> Iterator[None]:
    """The lock of all drills of this machine, for a moment. Raises ``Locked``."""
    directory = notes()
    if directory is None:
        yield
        return
    deadline_s = clock.monotonic_s() + _LOCK_S
    while (descriptor := try_lock(directory.with_suffix(".lock"))) is None:
        if clock.monotonic_s() >= deadline_s:
            raise Locked("other drills hold drills.lock", hint="try again when they have begun")
        clock.sleep(_LOCK_POLL_S)
    try:
        yield
    finally:
        os.close(descriptor)


def living() -> Iterator[Taken]:
    """Of drills that run; the notes of dead ones are removed. The caller holds ``all_drills``."""
    directory = notes()
    for path in sorted(directory.glob("*.json")) if directory is not None else ():
        descriptor = try_lock(path)
        if descriptor is not None:
            path.unlink(missing_ok=True)
            os.close(descriptor)
            continue
        with contextlib.suppress(OSError, msgspec.MsgspecError), path.open("rb") as stream:
            yield msgspec.json.decode(stream.read(_MAX_NOTE_BYTES), type=Taken)


def without(room: Room, others: list[Taken], *, storage: str, host: str) -> Room:
    """What is left of it when the others have taken all that they will."""
    data = sum(other.still_bytes for other in others if other.storage == storage)
    return _changed(room, -data, -_memory_bytes(others, host))


def alone(room: Room, clock: Clock, *, storage: str, host: str) -> Room:
    """What it would be at most if no other drill ran: who fits then has only to wait."""
    with all_drills(clock):
        others = list(living())
    data = sum(one.data_bytes - one.still_bytes for one in others if one.storage == storage)
    return _changed(room, data, _memory_bytes(others, host))


def _memory_bytes(others: list[Taken], host: str) -> int:
    return sum(other.memory_bytes for other in others if other.host == host)


def _changed(room: Room, data: int, memory: int) -> Room:
    known = room.memory_bytes
    return replace(
        room,
        free_bytes=max(0, room.free_bytes + data),
        memory_bytes=None if known is None else max(0, known + memory),
    )


def _written_bytes(directory: Path) -> int:
    total = 0
    with contextlib.suppress(OSError):
        for entry in os.scandir(directory):
            with contextlib.suppress(OSError):
                total += entry.stat(follow_symlinks=False).st_blocks * 512
    return total
