"""Finding what a killed process left half-done, and finishing it.

``find`` looks and changes nothing; ``repair`` may be called again. What is not drvm's own is
named and left alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from drvm.core.errors import CaptureError, DrvmError, HostUnreachable, Locked
from drvm.host.model import Domain
from drvm.snapshot import domainxml
from drvm.snapshot import truth as truths
from drvm.snapshot.disks import OVERLAY_NAME
from drvm.snapshot.domainxml import Disk
from drvm.snapshot.journal import VERSION, Entry, JournalDisk
from drvm.snapshot.parts import Parts
from drvm.snapshot.pullxml import own_files

_MARK = ".drvm-"


@dataclass(frozen=True, slots=True)
class HalfDone:
    """A capture that no process works on any more. ``steps``: for people, what would be done.
    ``entry`` is ``None`` where the journal is not understood: nothing is done then."""

    vm_uuid: str
    vm_name: str
    entry: Entry | None
    steps: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Recovered:
    """``problem`` is empty where the machine is back on its own disks, or else says what is
    left, with ``hint``."""

    vm_uuid: str
    vm_name: str
    steps: tuple[str, ...]
    problem: str = ""
    hint: str = ""


def find(parts: Parts, vm: str | None = None) -> list[HalfDone]:
    """Every half-done capture of the host, or of one machine. Those that a living process works
    on are not half-done."""
    wanted = None if vm is None else parts.host.find_domain(vm)
    found: list[HalfDone] = []
    for uuid in _candidates(parts, None if vm is None else (wanted.uuid if wanted else vm)):
        try:
            with parts.journal.lock(uuid, uuid):
                half = _look(parts, uuid)
        except Locked:
            continue
        if half is not None:
            found.append(half)
    return found


def repair(parts: Parts, half: HalfDone) -> Recovered:
    """Finish what ``find`` found. Raises nothing that concerns this machine only."""
    try:
        with parts.journal.lock(half.vm_uuid, half.vm_name):
            finish_machine(parts, half.vm_uuid)
    except (DrvmError, OSError) as problem:
        hint = problem.hint if isinstance(problem, DrvmError) else ""
        return Recovered(half.vm_uuid, half.vm_name, half.steps, str(problem), hint)
    return Recovered(half.vm_uuid, half.vm_name, half.steps)


def recover(parts: Parts, vm: str | None = None) -> list[Recovered]:
    return [repair(parts, half) for half in find(parts, vm)]


def finish_earlier(parts: Parts, domain: Domain) -> None:
    """Before a new capture of the machine: put it back from an earlier one that was killed.
    The caller holds the machine's lock. Raises ``CleanupFailed``, and ``CaptureError`` for a
    machine whose disks are half turned back."""
    finish_machine(parts, domain.uuid)
    machine = domainxml.read(domain.xml(inactive=True))
    parts.journal.rollbacks.refuse_half(machine, parts.images)


def finish_machine(parts: Parts, vm_uuid: str) -> None:
    """As ``finish_earlier``, also for a machine that is gone."""
    entry = _entry(parts, vm_uuid)
    if entry is not None and not entry.at_rest:
        parts.journal.write(entry)
        parts.put_back().run(entry)


def _look(parts: Parts, vm_uuid: str) -> HalfDone | None:
    try:
        entry = _entry(parts, vm_uuid)
        steps = () if entry is None else _steps(parts, entry)
    except HostUnreachable:
        raise
    except DrvmError as problem:
        return HalfDone(vm_uuid, vm_uuid, None, (f"{problem.message}: leave it alone",))
    if entry is None or entry.at_rest:
        return None
    return HalfDone(vm_uuid, entry.vm_name, entry, steps)


def _steps(parts: Parts, entry: Entry) -> tuple[str, ...]:
    put_back = parts.put_back()
    steps = ["thaw the guest if it is frozen"] if entry.frozen else []
    if entry.pull is not None:
        steps.append("end its pull backup and remove the scratch files")
    if entry.memory:
        steps.append("end the writing of its memory, and remove the file")
    for disk in entry.disks:
        steps.append(f"{disk.target}: {put_back.next_step(entry, disk)}")
    return tuple(steps)


def _candidates(parts: Parts, vm_uuid: str | None) -> list[str]:
    """Machines with a journal, and machines that run on an overlay of ours without one."""
    uuids = {domain.uuid for domain in parts.host.domains()} | set(parts.journal.machines())
    return sorted(uuid for uuid in uuids if vm_uuid in (None, uuid))


def _entry(parts: Parts, vm_uuid: str) -> Entry | None:
    """What the journal says; of overlays and pull backups that it does not know, what the file
    names in libvirt's XML say: those go home, with everything that lies below them."""
    entry = parts.journal.read(vm_uuid)
    domain = parts.host.find_domain(vm_uuid)
    if entry is not None and domain is None and entry.at_rest:
        return entry  # undefined, or on another host by now: whatever stands is left as it is
    if entry is not None and domain is None and entry.uri != parts.host.uri:
        raise CaptureError(f"{entry.vm_name} belongs to {entry.uri}, not to {parts.host.uri}")
    if domain is None or (entry is not None and not entry.at_rest):
        return entry
    stands = () if entry is None else entry.standing
    files = own_files(domain.backup_xml() or "")
    if files is not None:
        begun = _begun(parts, domain, "pull", files.point_id)
        return replace(begun, standing=stands, pull=files)
    if not any(_MARK in domain.xml(inactive=stored) for stored in (False, True)):
        return entry
    truth = truths.look(domain)
    known = {Path(disk.overlay) for disk in stands}
    marked = {
        disk.target: (disk, top)
        for view in truth.views
        for disk, top in truths.ours(view)
        if top not in known
    }
    if not marked:
        return entry
    points = {
        name["point_id"] for _, top in marked.values() if (name := OVERLAY_NAME.fullmatch(top.name))
    }
    if len(points) != 1:
        raise CaptureError(f"{domain.name} runs on overlays of several captures")
    chains = [_from_names(parts, disk.target, top) for disk, top in marked.values()]
    return replace(
        _begun(parts, domain, "external", points.pop()),
        disks=tuple(chain[0] for chain in chains),
        standing=(*stands, *(chain[1] for chain in chains if len(chain) > 1)),
        aim="home",
        memory=_memory_beside(marked.values()),
    )


def _begun(parts: Parts, domain: Domain, engine: str, point_id: str) -> Entry:
    return Entry(VERSION, engine, point_id, domain.uuid, domain.name, parts.host.uri, ())


def _memory_beside(overlays: Iterable[tuple[Disk, Path]]) -> str:
    """The file of a capture with memory whose journal is lost."""
    found = (overlay.with_suffix(".memory") for _, overlay in overlays)
    return next((str(path) for path in found if path.exists()), "")


def _from_names(parts: Parts, target: str, overlay: Path) -> tuple[JournalDisk, ...]:
    """The overlay, and below it one that stood when it came, if there is one. The base as the
    overlay itself names it, which must be the one that its file name says."""
    info = parts.images.info(overlay, "qcow2")
    mark = OVERLAY_NAME.fullmatch(overlay.name)
    if info.backing_file is None or info.backing_format is None or mark is None:
        raise CaptureError(f"{overlay} has no base image")
    base = Path(info.backing_file)
    below = OVERLAY_NAME.fullmatch(base.name)
    stood = below is not None and base.parent == overlay.parent and below["base"] == mark["base"]
    is_block = base.is_block_device()
    if not (is_block or stood) and base != overlay.parent / mark["base"]:
        raise CaptureError(f"{overlay} does not lie on the image that its name says")
    disk = JournalDisk(
        target=target,
        base=str(base),
        base_format=info.backing_format,
        base_kind="block" if is_block else "file",
        overlay=str(overlay),
        phase="taken",
    )
    if not stood:
        return (disk,)
    (lower, *deeper) = _from_names(parts, target, base)
    if deeper:
        raise CaptureError(f"{overlay} lies on more overlays than drvm leaves")
    return disk, replace(lower, phase="standing")
