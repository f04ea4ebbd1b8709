"""How much room there is on this machine for one more guest. It must not cost the others."""

from __future__ import annotations

import contextlib
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from drvm.core.errors import DrvmError
from drvm.core.threads import in_context
from drvm.core.units import GIB, KIB, format_bytes
from drvm.host.model import Domain
from drvm.snapshot.space import free_bytes

RESERVE_BYTES = 2 * GIB
"""What a drill leaves free where its images go: it grows while it runs, and other guests'
images may lie there too, which pause when nothing is left."""
LOW_BYTES = RESERVE_BYTES * 3 // 4
"""Where a drill has taken so much that less is left, it is ended: before a backup beside it is
given up, which needs 1 GiB there (``overlay_reserve``)."""
_WATCH_S = 0.25

_MEMINFO = Path("/proc/meminfo")
_AVAILABLE = re.compile(r"^MemAvailable:\s+(\d{1,15}) kB$", re.MULTILINE | re.ASCII)
_OTHERS_MAY_ENTER = 0o001


@dataclass(frozen=True, slots=True)
class Room:
    """``free_bytes``: on the file system where the images go. ``memory_bytes``: what can be had
    without pushing anybody out, ``None`` where the system does not say. ``closed``: directories
    on the way that QEMU's user can't enter."""

    free_bytes: int
    memory_bytes: int | None
    closed: tuple[Path, ...]


def look(directory: Path) -> Room:
    """``directory`` need not exist yet. Raises ``OSError``."""
    there = [path for path in (directory, *directory.parents) if path.is_dir()]
    return Room(
        free_bytes=shutil.disk_usage(there[0]).free,
        memory_bytes=_available_memory(),
        closed=tuple(p for p in reversed(there) if not p.stat().st_mode & _OTHERS_MAY_ENTER),
    )


def problems(room: Room, directory: Path, *, data_bytes: int, memory_bytes: int) -> Iterator[str]:
    """A line for each, with the way out."""
    need = data_bytes + RESERVE_BYTES
    if room.free_bytes < need:
        yield (
            f"{directory} has {format_bytes(room.free_bytes)} left and the drill needs "
            f"{format_bytes(need)}: choose another directory for drills"
        )
    if room.memory_bytes is not None and room.memory_bytes < memory_bytes:
        yield (
            f"the machine has {format_bytes(memory_bytes)} of memory and the host has "
            f"{format_bytes(room.memory_bytes)} available: drill on another host"
        )
    for path in room.closed:
        yield (
            f"QEMU's user can't enter {path}: chmod o+x {path}, or choose another directory "
            "for drills"
        )


@contextlib.contextmanager
def watched(
    domain: Domain,
    directory: Path,
    tell: Callable[[str], None],
    free: Callable[[Path], int] = free_bytes,
) -> Iterator[None]:
    """A drilled guest may write all of its disks full, which were not when they were restored.
    While the context lasts a thread looks at the room in ``directory``; where it gets low the
    machine is ended, whatever is being waited for, and ``tell`` is told why, by that thread."""
    stop = threading.Event()

    def watch() -> None:
        told = False
        while not stop.wait(_WATCH_S):
            try:
                left_bytes = free(directory)
                if left_bytes >= LOW_BYTES:
                    continue
                if not told:
                    tell(
                        f"the machine was ended: {directory} has {format_bytes(left_bytes)} left, "
                        "and what it wrote must not stop other machines: choose another directory "
                        "for drills"
                    )
                told = True
                domain.destroy()
                return
            except (DrvmError, OSError):
                continue

    thread = threading.Thread(target=in_context(watch), name="room", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _available_memory() -> int | None:
    try:
        match = _AVAILABLE.search(_MEMINFO.read_text(encoding="ascii"))
    except (OSError, UnicodeDecodeError):
        return None
    return int(match[1]) * KIB if match else None
