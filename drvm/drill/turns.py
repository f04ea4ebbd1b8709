"""Who may run now: drills of one host share its memory and its disks.

Each drill notes what it will take before it makes anything (``drvm/drill/taken.py``). Looking at
the room and noting are done under one lock of all drills of this machine, so that two that look at
the same moment do not both take the last of it. Who does not fit beside the others waits until they
have ended.

What a drill has already written is not counted twice; memory is: a guest that runs takes some of
what its note says. So less runs at once than could, never more. Where this user has no directory
below ``/run`` nothing is noted.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from drvm.core.clock import Clock
from drvm.core.errors import PreflightFailed
from drvm.core.progress import Progress
from drvm.core.units import format_round_seconds
from drvm.drill import room as rooms
from drvm.drill.plan import DrillPlan, Look, claims_of, room_of
from drvm.drill.taken import Taken, all_drills, living, notes, without
from drvm.host.model import Host
from drvm.snapshot.locks import try_lock

PATIENCE_S = 2 * 3600.0
"""As long as several drills take; then something is wrong with the others."""
_LOOK_S = 1.0
_LOOK_AFAR_S = 15.0
"""Another host looks at all volumes of its pool each time."""


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
    directory = notes()
    if directory is None:
        yield
        return
    path = directory / f"{plans[0].id}.json"
    wanted = _wanted(host, plans)
    deadline_s = clock.monotonic_s() + PATIENCE_S
    told = False
    while True:
        descriptor, found, is_alone = _try(path, host, plans, wanted, clock, look)
        if descriptor is not None:
            break
        if is_alone or clock.monotonic_s() >= deadline_s:
            names = ", ".join(plan.vm for plan in plans)
            hint = "" if is_alone else f"others had it for {format_round_seconds(PATIENCE_S)}"
            raise PreflightFailed(
                f"{names} can't be drilled on {host.uri}", problems=found, hint=hint
            )
        if not told:
            progress.stage("waiting for the room that other drills have")
            told = True
        progress.advance(0)
        clock.sleep(_LOOK_S if plans[0].volumes is None else _LOOK_AFAR_S)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _try(
    path: Path,
    host: Host,
    plans: Sequence[DrillPlan],
    wanted: Taken,
    clock: Clock,
    look: Look,
) -> tuple[int | None, list[str], bool]:
    """The descriptor of our note at ``path``, or what is in the way, and whether no other
    drill takes of the same."""
    with all_drills(clock):
        others = [
            other
            for other in living()
            if other.storage == wanted.storage or other.host == wanted.host
        ]
        room = room_of(host, plans[0], look)
        found = list(
            rooms.problems(
                without(room, others, storage=wanted.storage, host=wanted.host),
                plans[0].request.directory,
                data_bytes=wanted.data_bytes,
                memory_bytes=wanted.memory_bytes,
            )
        )
        if found:
            return None, found, not others
        return _note(path, wanted), [], not others


def _note(path: Path, wanted: Taken) -> int:
    """The descriptor that holds it. Raises ``OSError``, having left none."""
    descriptor = try_lock(path)
    assert descriptor is not None, "nobody else knows the id"
    try:
        data = msgspec.json.encode(wanted)
        if os.write(descriptor, data) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    except BaseException:
        path.unlink(missing_ok=True)
        os.close(descriptor)
        raise
    return descriptor


def _wanted(host: Host, plans: Sequence[DrillPlan]) -> Taken:
    storage, whose = claims_of(host, plans[0])
    here = plans[0].volumes is None
    return Taken(
        storage=storage,
        data_bytes=sum(plan.data_bytes for plan in plans),
        host=whose,
        memory_bytes=sum(plan.memory_bytes for plan in plans),
        directories=tuple(str(plan.directory) for plan in plans) if here else (),
    )
