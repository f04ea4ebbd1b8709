"""The default engine: external snapshot, read the frozen base, commit, pivot.

For machines that run or are paused; qcow2, raw and block devices. Between entering and leaving,
the guest writes to an overlay next to its image; where the policy wants it, also after leaving
(``standing``). Why the commit is shallow: ``docs/adr/005``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from drvm.core.errors import CaptureError
from drvm.host.model import Domain, DomainState
from drvm.snapshot import checkpoints, domainxml, memory, outside, standing
from drvm.snapshot.capture import CaptureRequest, FrozenDisk, FrozenMachine
from drvm.snapshot.checkpoints import STANDING_OVERLAY
from drvm.snapshot.disks import Source, memory_path, overlay_path, select, snapshot_xml
from drvm.snapshot.domainxml import Machine
from drvm.snapshot.freeze import Instant
from drvm.snapshot.journal import VERSION, Entry, JournalDisk
from drvm.snapshot.live import (
    Prepared,
    frozen_machine,
    journaled,
    locked,
    require_running,
    unstored,
    watched,
)
from drvm.snapshot.parts import Parts, readable, refuse_jobs
from drvm.snapshot.reading import Reading
from drvm.snapshot.standing import Standing
from drvm.snapshot.watchdog import Watch


class ExternalEngine:
    name = "external"

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    @contextlib.contextmanager
    def capture(self, request: CaptureRequest) -> Iterator[FrozenMachine]:
        """See ``Engine``. SIGKILL at any time leaves a journal that recovery works off."""
        parts = self._parts
        with locked(parts, request) as (domain, watch):
            prepared = self._prepare(domain, request)
            with journaled(parts, prepared.entry) as release:
                parts.trace("overlays-journaled")
                self._make_overlays(prepared)
                problem = checkpoints.renew(domain, request, prepared.images)
                parts.trace("checkpoint-made")
                instant = self._snapshot(domain, request, prepared, watch)
                watch.end()
                with (
                    watched(parts, domain, request, release) as reading,
                    contextlib.ExitStack() as exports,
                ):
                    disks = partial(self._disks, prepared, exports, reading)
                    ram = partial(_memory, parts, prepared, reading)
                    machine = frozen_machine(parts, domain, prepared, instant, disks, problem, ram)
                    parts.trace("reading")
                    yield machine
                if prepared.keep:
                    self._keep(domain, prepared)

    # -- before anything is touched -----------------------------------------------------------
    def _prepare(self, domain: Domain, request: CaptureRequest) -> Prepared:
        parts = self._parts
        state = require_running(domain)
        if request.memory:
            memory.refuse(domain, request)
        _refuse_foreign_work(domain, domainxml.read(domain.xml()))
        stood = standing.settle(parts, domain, request)
        machine = domainxml.read(stood.on_own_images(domain.xml()))
        definition = stood.on_own_images(domain.xml(inactive=True, secure=True))
        selection = select(machine, request.exclude_disks)
        images = tuple(stood.image(parts, source) for source in selection.captured)
        disks = tuple(self._planned(s, request, machine, stood) for s in selection.captured)
        warnings = unstored(definition, selection)
        wanted = request.changed_blocks == STANDING_OVERLAY
        keep = wanted and not standing.barred(domain, images)
        if wanted and not keep:
            warnings.append("no overlay is left standing: the machine has internal snapshots")
        prepared = Prepared(
            machine=machine,
            definition_xml=definition,
            images=images,
            entry=Entry(
                version=VERSION,
                engine=self.name,
                point_id=request.point_id,
                vm_uuid=domain.uuid,
                vm_name=domain.name,
                uri=parts.host.uri,
                disks=disks,
                commit_bandwidth_mib_s=request.commit_bandwidth_mib_s,
                was_running=state is DomainState.RUNNING,
                standing=tuple(stood.disks.values()),
                memory=self._memory_path(selection.captured[0], request, machine),
            ),
            hints=(
                standing.hints(stood, domain, request, images)
                if wanted
                else checkpoints.hints(domain, request, images)
            ),
            keep=keep,
            outside=outside.look(machine, parts.host.places),
            warnings=(*stood.warnings, *selection.warnings, *warnings),
        )
        if request.memory:
            memory.require_room(domain, prepared.entry, parts.overlay_reserve_bytes)
        return prepared

    def _memory_path(self, source: Source, request: CaptureRequest, machine: Machine) -> str:
        if not request.memory:
            return ""
        return str(memory_path(source, request.point_id, machine.uuid, self._parts.overlay_dir))

    def _planned(
        self, source: Source, request: CaptureRequest, machine: Machine, stood: Standing
    ) -> JournalDisk:
        """Named for the machine's own image, but on top of what stands there."""
        overlay = overlay_path(source, request.point_id, machine.uuid, self._parts.overlay_dir)
        below = stood.disks.get(source.target)
        if below is not None:
            return JournalDisk(source.target, below.overlay, "qcow2", "file", str(overlay))
        return JournalDisk(
            target=source.target,
            base=str(source.path),
            base_format=source.format,
            base_kind="block" if source.is_block else "file",
            overlay=str(overlay),
        )

    # -- the instant --------------------------------------------------------------------------
    def _make_overlays(self, prepared: Prepared) -> None:
        for disk, image in zip(prepared.entry.disks, prepared.images, strict=True):
            self._parts.images.create_overlay(
                Path(disk.overlay),
                Path(disk.base),
                disk.base_format,
                image.info.virtual_size_bytes,
            )
        self._parts.trace("overlays-made")

    def _snapshot(
        self, domain: Domain, request: CaptureRequest, prepared: Prepared, watch: Watch
    ) -> Instant:
        parts = self._parts
        overlays = {disk.target: Path(disk.overlay) for disk in prepared.entry.disks}
        entry = prepared.entry.in_phase("requested")
        xml = snapshot_xml(prepared.machine, request.point_id, overlays, entry.memory)
        if entry.memory:
            return self._with_memory(domain, entry, xml)

        def freezing(frozen: bool) -> None:
            parts.journal.write(replace(entry, frozen=frozen))
            parts.trace("snapshot-requested")

        def take(quiesce: bool) -> None:
            parts.trace("snapshot-taking")  # frozen by now, where libvirtd does not do it
            domain.create_disk_snapshot(xml, quiesce=quiesce)

        instant = parts.taking(
            domain,
            request,
            parts.clock,
            watch,
            take=take,
            was_taken=lambda: self._was_taken(domain, entry),
            freezing=freezing,
        )
        parts.journal.write(replace(entry.in_phase("taken"), frozen=instant.unsure))
        parts.trace("snapshot-taken")
        return instant

    def _with_memory(self, domain: Domain, entry: Entry, xml: str) -> Instant:
        """The instant is the end of the call. What the guest has not written yet is in its
        memory; the disks alone are as after a power cut."""
        parts = self._parts
        parts.journal.write(entry)
        parts.trace("snapshot-requested")
        with memory.watched(parts, domain, entry):
            domain.create_disk_snapshot(xml, quiesce=False, memory=True)
        taken_at = parts.clock.now()
        parts.journal.write(entry.in_phase("taken"))
        parts.trace("snapshot-taken")
        return Instant(taken_at, "crash")

    def _was_taken(self, domain: Domain, entry: Entry) -> bool:
        machine = domainxml.read(domain.xml())
        return any(
            disk.names(Path(planned.overlay)) for disk in machine.disks for planned in entry.disks
        )

    def _keep(self, domain: Domain, prepared: Prepared) -> None:
        """The point is good: from here on, also after a crash, its overlays stand. A crash before
        this is written leaves those of the parent point standing, and costs a full read; so does
        a journal that can't be written."""
        where = standing.aim(self._parts, prepared.images)
        entry = self._parts.journal.read(domain.uuid) or prepared.entry
        with contextlib.suppress(CaptureError):
            self._parts.journal.write(replace(entry, aim=where))
        self._parts.trace("aim-journaled")

    # -- what is read -------------------------------------------------------------------------
    def _disks(
        self, prepared: Prepared, exports: contextlib.ExitStack, reading: Reading
    ) -> tuple[FrozenDisk, ...]:
        parts = self._parts
        hints = {
            image.target: checkpoints.confirmed(
                prepared.hints[image.target], parts.images.info(image.info.path, image.info.format)
            )
            for image in prepared.images
        }
        return readable(prepared.images, parts.processes, parts.clock, exports, reading, hints)


def _memory(parts: Parts, prepared: Prepared, reading: Reading) -> FrozenDisk | None:
    return memory.stored(parts, prepared.entry, reading) if prepared.entry.memory else None


def _refuse_foreign_work(domain: Domain, machine: Machine) -> None:
    """Somebody else's snapshot or job would be in our way, and ours in theirs."""
    refuse_jobs(domain, machine)
    external = domain.external_snapshot_names()
    if external:
        raise CaptureError(
            f"{domain.name} has the external snapshot {external[0]}",
            hint="merge and delete it first, or let the policy say engine: pull",
        )
