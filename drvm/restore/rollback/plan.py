"""What turning a machine back will do, as a value. docs/adr/041-in-place.md."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from drvm.core.errors import (
    CaptureError,
    HostError,
    PreflightFailed,
    RestoreError,
    UnknownVm,
)
from drvm.host.images import forbids_writers
from drvm.host.model import Domain, DomainState
from drvm.host.nbd import await_unused, sweep_exports
from drvm.repository.listings import present_packs
from drvm.repository.manifest import Disk, Manifest
from drvm.repository.repository import Repository
from drvm.restore.machine.source import parse
from drvm.restore.plan import chosen_disks, read_definition
from drvm.restore.rollback.outside import OutsidePlan, plan_outside
from drvm.restore.targets.images import PlannedImage
from drvm.restore.targets.partial import SERVERS_END_S
from drvm.snapshot import domainxml, standing
from drvm.snapshot.disks import Source, select
from drvm.snapshot.domainxml import Machine
from drvm.snapshot.parts import Parts, require_local
from drvm.snapshot.rollbacks import Rollback


@dataclass(frozen=True, slots=True)
class RollbackPlan:
    """``images``: what is written, the machine's own; ``tops``: what its disks are read from
    until overlays that stand are folded. ``named``: target -> image, as the definition has it.
    ``outside``: of its state outside the disks; ``None`` where some disks only are turned back.
    ``again``: what an earlier try has noted. ``warnings``: what stays as it is."""

    manifest: Manifest
    vm_uuid: str
    vm_name: str
    images: tuple[PlannedImage, ...]
    tops: tuple[PlannedImage, ...]
    named: dict[str, str]
    outside: OutsidePlan | None
    again: Rollback | None
    warnings: tuple[str, ...] = field(default=())


def plan_rollback(
    repository: Repository, manifest: Manifest, parts: Parts, disks: frozenset[str] | None
) -> RollbackPlan:
    """Raises ``PreflightFailed`` with every problem at once; nothing is changed."""
    require_local(parts.host)
    wanted = {disk.target: disk for disk in chosen_disks(manifest, disks)}
    domain = parts.host.find_domain(manifest.vm_uuid)
    if domain is None:
        raise PreflightFailed(
            f"{manifest.vm} can't be turned back in place",
            problems=[f"{parts.host.uri} has no machine with its UUID {manifest.vm_uuid}"],
            hint=f"drvm restore {manifest.id} makes it anew",
        )
    found = [*_not_at_rest(domain), *_lost(repository, manifest)]
    stood = standing.found(parts, domain)
    definition = stood.on_own_images(domain.xml(inactive=True, secure=True))
    machine = domainxml.read(definition)
    limit_s = SERVERS_END_S if sweep_exports(parts.clock) else 0.0
    images, tops, named = [], [], {}
    users = _users(parts, machine.uuid)
    for source in _sources(machine, set(wanted), found):
        image = _image(source, wanted[source.target], manifest)
        try:
            top = stood.image(parts, source).info
            own = parts.images.info(source.path, source.format)
        except HostError as problem:
            found.append(f"{source.target}: {problem.message}")
            continue
        found += [*_unfit(image, own.virtual_size_bytes), *_used(image, users)]
        if not await_unused(image.path, parts.clock, limit_s):
            found.append(f"{source.target}: {image.path} is in use by another program")
        elif forbids_writers(image.path):
            found.append(
                f"{source.target}: another program relies on {image.path}, such as a machine whose "
                "disk lies on it: shut that down first"
            )
        images.append(image)
        named[source.target] = str(source.path)
        tops.append(PlannedImage(image.disk, top.path, top.format, image.point))
    if found:
        raise PreflightFailed(
            f"{domain.name} can't be turned back in place", problems=list(dict.fromkeys(found))
        )
    everything = wanted.keys() == {disk.target for disk in manifest.disks}
    outside = plan_outside(repository, manifest, machine, parts.host.places) if everything else None
    warnings = _left(repository, manifest, machine, definition, set(wanted))
    again = parts.journal.rollbacks.read(machine.uuid)
    return RollbackPlan(
        manifest,
        machine.uuid,
        machine.name,
        tuple(images),
        tuple(tops),
        named,
        outside,
        again if again is not None and again.concerns(machine, parts.images) else None,
        (*warnings, *(outside.warnings if outside is not None else ())),
    )


def _users(parts: Parts, own_uuid: str) -> dict[Path, tuple[str, ...]]:
    """Image -> the other machines that have it as a disk, or below one. Of one that is off no lock
    tells. What can't be looked at is nobody's."""
    found: dict[Path, tuple[str, ...]] = {}
    for domain in parts.host.domains():
        if domain.uuid == own_uuid:
            continue
        with contextlib.suppress(CaptureError, HostError, RestoreError, UnknownVm):
            xml = domain.xml(inactive=True)
            tops = [disk.layers[0] for disk in domainxml.read(xml).disks]
            for layer in (*tops, *_by_pool(parts, xml)):
                for path in _chain(parts, layer):
                    found[path] = tuple(dict.fromkeys((*found.get(path, ()), domain.name)))
    return found


def _by_pool(parts: Parts, xml: str) -> Iterator[domainxml.Layer]:
    """Disks that are named by their pool."""
    for disk in parse(xml).iterfind("devices/disk"):
        source, driver = disk.find("source"), disk.find("driver")
        pool, name = (source.get("pool"), source.get("volume")) if source is not None else ("", "")
        if pool and name:
            with contextlib.suppress(HostError):  # there is no such pool now
                volume = parts.host.storage.volume(pool, name)
                if volume is not None:
                    kind = driver.get("type") if driver is not None else None
                    yield domainxml.Layer("volume", Path(volume.path), kind)


def _used(image: PlannedImage, users: Mapping[Path, Sequence[str]]) -> list[str]:
    return [
        f"{image.disk.target}: a disk of the VM {name!r} is {image.path}, or lies on it: give that "
        "VM an image of its own first"
        for name in users.get(image.path, ())
    ]


def _chain(parts: Parts, top: domainxml.Layer) -> list[Path]:
    if top.path is None:
        return []
    try:
        layers = parts.images.chain(top.path, top.format or "raw")
    except HostError:
        return [Path(os.path.realpath(top.path))]
    return [Path(os.path.realpath(layer.path)) for layer in layers]


def _not_at_rest(domain: Domain) -> list[str]:
    if domain.state() is not DomainState.SHUTOFF:
        return [f"it is {domain.state().value}: shut it down first (virsh shutdown {domain.name})"]
    if domain.has_managed_save():
        return [
            "its memory was saved to disk and needs the disks as they are: start it and shut it "
            f"down, or give the memory up (virsh managedsave-remove {domain.name})"
        ]
    return []


def _lost(repository: Repository, manifest: Manifest) -> list[str]:
    """Better known now than half-way."""
    lost = repository.need(manifest) - present_packs(repository.store)
    if not lost:
        return []
    return [
        f"{len(lost)} packs that the point needs are not there, such as {min(lost).hex()}: "
        "take another point (drvm check tells which are whole)"
    ]


def _sources(machine: Machine, wanted: set[str], found: list[str]) -> tuple[Source, ...]:
    """The images of the wanted disks; what stands in the way is added to ``found``."""
    there = {disk.target for disk in machine.disks}
    found += [
        f"it has no disk {target} now: leave it out (--disk), or attach one of its size"
        for target in sorted(wanted - there)
    ]
    try:
        captured = select(machine, frozenset(there - wanted)).captured
    except CaptureError as problem:
        if wanted & there:
            found.append(problem.message)
        return ()
    lost = wanted & there - {source.target for source in captured}
    found += [f"{target} is a read-only or removable medium now" for target in sorted(lost)]
    return captured


def _image(source: Source, disk: Disk, manifest: Manifest) -> PlannedImage:
    """Symbolic links that the definition names are followed, as QEMU does."""
    path = Path(os.path.realpath(source.path))
    return PlannedImage(disk, path, source.format, (manifest.vm_uuid, manifest.id))


def _unfit(image: PlannedImage, size_bytes: int) -> list[str]:
    target = image.disk.target
    if size_bytes != image.size_bytes:
        return [
            f"{target} has {size_bytes} bytes, and {image.size_bytes} in the point: resize it, or "
            "restore the machine as a whole (--replace)"
        ]
    return []


def _left(
    repository: Repository,
    manifest: Manifest,
    machine: Machine,
    definition: str,
    wanted: set[str],
) -> list[str]:
    """What is not turned back."""
    known = {disk.target for disk in manifest.disks}
    warnings = [
        f"{disk.target} is not in the point and stays as it is"
        for disk in machine.disks
        if disk.target not in known and disk.device == "disk" and not disk.readonly
    ]
    if known - wanted:
        others = ", ".join(sorted(known - wanted))
        warnings.append(f"{others}, and what the machine keeps outside its disks, stay as they are")
    if manifest.definition is not None:
        try:
            same = _canonical(read_definition(repository, manifest)) == _canonical(definition)
        except RestoreError as problem:
            return [*warnings, f"its definition stays as it is: {problem.message}"]
        if not same:
            warnings.append(
                "its definition is not the one of the point, and stays as it is: "
                f"drvm show {manifest.id} --xml"
            )
    return warnings


def _canonical(text: str) -> list[tuple[str, dict[str, str], str]]:
    return [(e.tag, dict(e.attrib), (e.text or "").strip()) for e in parse(text).iter()]
