"""Who may run now: drills of one host share its memory and its disks.

Each drill notes what it will take, below ``/run``, before it makes anything, and holds a lock on
its note for as long as its process lives: a note whose lock is free is nobody's any more. Looking
at the room and noting are done under one lock of all drills of this machine, so that two that look
at the same moment do not both take the last of it. Who does not fit beside the others waits until
they have ended.

What a drill has already written is not counted twice; memory is: a guest that runs takes some of
what its note says. So less runs at once than could, never more. Where this user has no directory
below ``/run`` nothing is noted.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from drvm.core.clock import Clock
from drvm.core.errors import Locked, PreflightFailed
from drvm.core.progress import Progress
from drvm.drill import room as rooms
from drvm.drill.plan import DrillPlan, Look, room_of
from drvm.drill.room import Room
from drvm.host.model import Host
from drvm.snapshot.locks import shared_directory, try_lock

PATIENCE_S = 2 * 3600.0
"""As long as several drills take; then something is wrong with the others."""
_LOOK_S = 1.0
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


@contextlib.contextmanager
def turn(
    host: Host,
    plans: Sequence[DrillPlan],
    clock: Clock,
    progress: Progress,
    look: Look = rooms.look,
) -> Iterator[None]:
    """Room for machines that run at once is theirs for as long as the context lasts.

    Raises ``PreflightFailed`` where there is none though no other drill runs, or when its patience
    is over. A SIGKILL frees it.
    """
    parent = shared_directory()
    if parent is None:
        yield
        return
    wanted = _wanted(host, plans)
    deadline_s = clock.monotonic_s() + PATIENCE_S
    told = False
    while True:
        descriptor, found, alone = _try(parent, host, plans, wanted, clock, look)
        if descriptor is not None:
            break
        if alone or clock.monotonic_s() >= deadline_s:
            names = ", ".join(plan.vm for plan in plans)
            raise PreflightFailed(f"{names} can't be drilled on {host.uri}", problems=found)
        if not told:
            progress.stage("waiting for the room that other drills have")
            told = True
        progress.advance(0)
        clock.sleep(_LOOK_S)
    try:
        yield
    finally:
        _note_of(parent, plans).unlink(missing_ok=True)
        os.close(descriptor)


def _try(
    parent: Path,
    host: Host,
    plans: Sequence[DrillPlan],
    wanted: Taken,
    clock: Clock,
    look: Look,
) -> tuple[int | None, list[str], bool]:
    """The descriptor of our note, or what is in the way, and whether nobody else runs."""
    with _all_drills(parent, clock):
        others = list(_others(parent / "drills"))
        room = _left(room_of(host, plans[0], look), wanted, others)
        found = list(
            rooms.problems(
                room,
                plans[0].request.directory,
                data_bytes=wanted.data_bytes,
                memory_bytes=wanted.memory_bytes,
            )
        )
        if found:
            return None, found, not others
        path = _note_of(parent, plans)
        descriptor = try_lock(path)
        assert descriptor is not None, "nobody else knows the id"
        os.write(descriptor, msgspec.json.encode(wanted))
        return descriptor, [], not others


def _left(room: Room, wanted: Taken, others: Sequence[Taken]) -> Room:
    data = sum(other.still_bytes for other in others if other.storage == wanted.storage)
    memory = sum(other.memory_bytes for other in others if other.host == wanted.host)
    known = room.memory_bytes
    return replace(
        room,
        free_bytes=max(0, room.free_bytes - data),
        memory_bytes=None if known is None else max(0, known - memory),
    )


def _others(directory: Path) -> Iterator[Taken]:
    """Of drills that live; the notes of dead ones are removed."""
    for path in sorted(directory.glob("*.json")):
        descriptor = try_lock(path)
        if descriptor is not None:
            path.unlink(missing_ok=True)
            os.close(descriptor)
            continue
        with contextlib.suppress(OSError, msgspec.MsgspecError), path.open("rb") as stream:
            yield msgspec.json.decode(stream.read(_MAX_NOTE_BYTES), type=Taken)


def _wanted(host: Host, plans: Sequence[DrillPlan]) -> Taken:
    first = plans[0]
    directories: tuple[str, ...] = ()
    if first.volumes is not None:
        storage = f"{host.uri} {first.volumes.pool}"
    else:
        there = next(p for p in (first.directory, *first.directory.parents) if p.is_dir())
        storage = f"device {there.stat().st_dev}"
        directories = tuple(str(plan.directory) for plan in plans)
    return Taken(
        storage=storage,
        data_bytes=sum(plan.data_bytes for plan in plans),
        host=host.uri if host.remote else "",
        memory_bytes=sum(plan.memory_bytes for plan in plans),
        directories=directories,
    )


def _written_bytes(directory: Path) -> int:
    total = 0
    with contextlib.suppress(OSError):
        for entry in os.scandir(directory):
            with contextlib.suppress(OSError):
                total += entry.stat(follow_symlinks=False).st_blocks * 512
    return total


def _note_of(parent: Path, plans: Sequence[DrillPlan]) -> Path:
    return parent / "drills" / f"{plans[0].id}.json"


@contextlib.contextmanager
def _all_drills(parent: Path, clock: Clock) -> Iterator[None]:
    deadline_s = clock.monotonic_s() + _LOCK_S
    while (descriptor := try_lock(parent / "drills.lock")) is None:
        if clock.monotonic_s() >= deadline_s:
            raise Locked("other drills hold drills.lock", hint="try again when they have begun")
        clock.sleep(_LOCK_POLL_S)
    try:
        yield
    finally:
        os.close(descriptor)
