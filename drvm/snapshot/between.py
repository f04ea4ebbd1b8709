"""Overlays that stand between captures: which there are, and folding them back into the images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from drvm.core.errors import CaptureError, DrvmError, Locked, UnknownVm
from drvm.snapshot import standing
from drvm.snapshot.journal import Entry, JournalDisk
from drvm.snapshot.parts import Parts
from drvm.snapshot.recovery import Recovered, finish_machine
from drvm.snapshot.space import allocated_bytes


@dataclass(frozen=True, slots=True)
class Stood:
    """What one machine runs on between captures. ``allocated_bytes``: of all its overlays.
    ``trouble``: in words, where it does not stand as it should."""

    vm_uuid: str
    vm_name: str
    disks: tuple[JournalDisk, ...]
    allocated_bytes: int
    trouble: str = ""


def listed(parts: Parts) -> list[Stood]:
    """By the journal, of machines that are at rest. A journal that is not understood is
    ``recovery``'s to tell."""
    found = []
    for entry in _at_rest(parts):
        held = sum(allocated_bytes(Path(disk.overlay)) for disk in entry.standing)
        domain = parts.host.find_domain(entry.vm_uuid)
        trouble = ""
        if domain is None:
            trouble = "the VM is gone from the host; what it wrote last is in its overlays"
        elif len(standing.found(parts, domain).disks) < len(entry.standing):
            trouble = "somebody took it off an overlay; the next backup sees to that"
        found.append(Stood(entry.vm_uuid, entry.vm_name, entry.standing, held, trouble))
    return found


def fold_by_hand(parts: Parts, vm: str) -> Recovered:
    """Put a machine back on its own images, whatever its policy says; the next backup reads
    everything. Of one that is gone from the host, the overlays are written into the images.
    Raises ``UnknownVm`` where nothing stands, and ``Locked``."""
    for entry in _at_rest(parts):
        if vm in (entry.vm_name, entry.vm_uuid):
            return _fold(parts, entry)
    raise UnknownVm(f"no overlay of {vm!r} stands", hint="drvm doctor lists those that do")


def fold_where_short(parts: Parts) -> list[Recovered]:
    """Of machines whose overlays have not the room that they may need. Machines at which a
    process works are left to it: a capture watches its own room."""
    done = []
    for entry in _at_rest(parts):
        short = parts.room().shortage(entry)
        if short and parts.host.find_domain(entry.vm_uuid) is not None:
            try:
                done.append(_fold(parts, entry, f"{short}: "))
            except Locked:
                continue
    return done


def _fold(parts: Parts, entry: Entry, why: str = "") -> Recovered:
    words = ", ".join(f"{disk.target} from {disk.overlay}" for disk in entry.standing)
    steps = (f"{why}fold {words}",)
    with parts.journal.lock(entry.vm_uuid, entry.vm_name):
        try:
            finish_machine(parts, entry.vm_uuid)
            now = parts.journal.read(entry.vm_uuid)
            if now is not None:
                standing.fold(parts, now, [disk.target for disk in now.standing])
        except (DrvmError, OSError) as problem:
            hint = problem.hint if isinstance(problem, DrvmError) else ""
            return Recovered(entry.vm_uuid, entry.vm_name, steps, str(problem), hint)
    return Recovered(entry.vm_uuid, entry.vm_name, steps)


def _at_rest(parts: Parts) -> list[Entry]:
    found = []
    for uuid in parts.journal.machines():
        try:
            entry = parts.journal.read(uuid)
        except CaptureError:
            continue
        if entry is not None and entry.at_rest and entry.uri == parts.host.uri:
            found.append(entry)
    return found
