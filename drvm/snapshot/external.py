"""The default engine: external snapshot, read the frozen base, commit, pivot.

For machines that run or are paused; qcow2, raw and block devices. Between entering and leaving,
the guest writes to an overlay next to its image. Why the commit is shallow: ``docs/adr/005``.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from drvm.core.errors import AgentError, CaptureError, HostError
from drvm.core.units import format_bytes
from drvm.host.model import Domain, DomainState
from drvm.snapshot import checkpoints, domainxml, guestview
from drvm.snapshot.capture import CaptureRequest, Consistency, FrozenMachine
from drvm.snapshot.checkpoints import Hint, Image
from drvm.snapshot.disks import Source, overlay_path, select, snapshot_xml
from drvm.snapshot.domainxml import Machine
from drvm.snapshot.journal import VERSION, Entry, JournalDisk
from drvm.snapshot.parts import (
    Parts,
    freeze,
    read_nvram,
    require_local,
    state_warnings,
)
from drvm.snapshot.recovery import finish_earlier

_LIBVIRTS_AGENT_TIMEOUT_S = -2
_THAW_TRIES = 3
_THAW_PAUSE_S = 0.5


@dataclass(frozen=True, slots=True)
class _Prepared:
    """Everything that is known before anything is touched."""

    machine: Machine
    definition_xml: str
    images: tuple[Image, ...]
    entry: Entry
    hints: Mapping[str, Hint]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Instant:
    taken_at: dt.datetime
    consistency: Consistency
    frozen_s: float = 0.0
    warnings: tuple[str, ...] = ()


class ExternalEngine:
    name = "external"

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    @contextlib.contextmanager
    def capture(self, request: CaptureRequest) -> Iterator[FrozenMachine]:
        """See ``Engine``. SIGKILL at any time leaves a journal that recovery works off."""
        parts = self._parts
        require_local(parts.host)
        domain = parts.host.domain(request.vm)
        with parts.journal.lock(domain.uuid, domain.name):
            finish_earlier(parts, domain)
            prepared = self._prepare(domain, request)
            parts.journal.write(prepared.entry)
            try:
                parts.trace("overlays-journaled")
                self._make_overlays(prepared)
                problem = checkpoints.renew(domain, request, prepared.images)
                parts.trace("checkpoint-made")
                instant = self._snapshot(domain, request, prepared)
                with contextlib.ExitStack() as exports:
                    machine = self._frozen(domain, prepared, instant, exports, problem)
                    parts.trace("reading")
                    yield machine
            finally:
                entry = parts.journal.read(domain.uuid) or prepared.entry
                parts.put_back().run(entry, bandwidth_mib_s=request.commit_bandwidth_mib_s)

    # -- before anything is touched -----------------------------------------------------------
    def _prepare(self, domain: Domain, request: CaptureRequest) -> _Prepared:
        parts = self._parts
        if domain.state() not in (DomainState.RUNNING, DomainState.PAUSED):
            raise CaptureError(f"{domain.name} does not run")
        machine = domainxml.read(domain.xml())
        definition = domain.xml(inactive=True, secure=True)
        _refuse_foreign_work(domain, machine)
        selection = select(machine, request.exclude_disks)
        images = tuple(
            Image(s.target, parts.images.chain(s.path, s.format)) for s in selection.captured
        )
        disks = tuple(self._planned(s, request, machine) for s in selection.captured)
        stored = domainxml.read(definition)
        unstored = [s.target for s in selection.captured if stored.disk(s.target) is None]
        warnings = [f"{target} is plugged in only until the next start" for target in unstored]
        return _Prepared(
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
            ),
            hints=checkpoints.hints(domain, request, images),
            warnings=(*selection.warnings, *warnings, *state_warnings(machine)),
        )

    def _planned(self, source: Source, request: CaptureRequest, machine: Machine) -> JournalDisk:
        overlay = overlay_path(source, request.point_id, machine.uuid, self._parts.overlay_dir)
        self._require_room(overlay.parent)
        return JournalDisk(
            target=source.target,
            base=str(source.path),
            base_format=source.format,
            base_kind="block" if source.is_block else "file",
            overlay=str(overlay),
        )

    def _require_room(self, directory: Path) -> None:
        """A guest whose overlay can't grow is paused by QEMU: better not to begin."""
        free_bytes = shutil.disk_usage(directory).free
        reserve_bytes = self._parts.overlay_reserve_bytes
        if free_bytes < reserve_bytes:
            raise CaptureError(
                f"{directory} has {format_bytes(free_bytes)} free, and what the guest writes"
                f" during a backup needs at least {format_bytes(reserve_bytes)}",
                hint="make room there",
            )

    # -- the instant --------------------------------------------------------------------------
    def _make_overlays(self, prepared: _Prepared) -> None:
        for disk, image in zip(prepared.entry.disks, prepared.images, strict=True):
            self._parts.images.create_overlay(
                Path(disk.overlay),
                Path(disk.base),
                disk.base_format,
                image.info.virtual_size_bytes,
            )
        self._parts.trace("overlays-made")

    def _snapshot(self, domain: Domain, request: CaptureRequest, prepared: _Prepared) -> _Instant:
        parts = self._parts
        overlays = {disk.target: Path(disk.overlay) for disk in prepared.entry.disks}
        xml = snapshot_xml(prepared.machine, request.point_id, overlays)
        reason = self._why_not_quiesce(domain, request)
        entry = replace(prepared.entry.in_phase("requested"), frozen=reason is None)
        parts.journal.write(entry)
        parts.trace("snapshot-requested")
        instant = None
        if reason is None:
            instant, reason = self._quiesced_snapshot(domain, request, xml, entry)
        if instant is None:
            if request.require_filesystem:
                raise CaptureError(
                    f"the file systems of {domain.name} can't be frozen: {reason}",
                    hint="the policy asks for it; is qemu-guest-agent running in the guest?",
                )
            instant = _Instant(
                parts.clock.now(), "crash", warnings=(f"only crash-consistent: {reason}",)
            )
            domain.create_disk_snapshot(xml, quiesce=False)
        still_frozen = entry.frozen and bool(instant.warnings)
        parts.journal.write(replace(entry.in_phase("taken"), frozen=still_frozen))
        parts.trace("snapshot-taken")
        return instant

    def _why_not_quiesce(self, domain: Domain, request: CaptureRequest) -> str | None:
        """Asked before anything happens: an agent that does not answer is not sent a freeze,
        which it might obey when nobody thaws any more."""
        if domain.state() is DomainState.PAUSED:
            return "the machine is paused"
        try:
            domain.agent_ping(timeout_s=request.freeze_timeout_s)
        except AgentError as problem:
            return problem.message
        if domain.filesystems_frozen():
            raise CaptureError(
                f"the file systems of {domain.name} are frozen by somebody else",
                hint="if nobody does it on purpose: virsh domfsthaw",
            )
        return None

    def _quiesced_snapshot(
        self, domain: Domain, request: CaptureRequest, xml: str, entry: Entry
    ) -> tuple[_Instant | None, str]:
        """Freeze, snapshot and thaw in one call of libvirtd's. No instant and the reason where
        the agent failed; then the guest has been thawed as far as its agent answers."""
        clock = self._parts.clock
        domain.set_agent_timeout(request.freeze_timeout_s)
        try:
            taken_at, start_s = clock.now(), clock.monotonic_s()
            try:
                domain.create_disk_snapshot(xml, quiesce=True)
                frozen_s = clock.monotonic_s() - start_s
                return _Instant(taken_at, "filesystem", frozen_s), ""
            except AgentError as problem:
                thawed = self._thaw(domain)
                frozen_s = clock.monotonic_s() - start_s
                if not self._was_taken(domain, entry):
                    return None, problem.message
                # libvirtd froze and took the snapshot, but its thaw failed
                words = f"the thaw was late: {problem.message}"
                if not thawed:
                    words = f"the guest may still be frozen: {problem.message}"
                return _Instant(taken_at, "filesystem", frozen_s, (words,)), ""
        finally:
            with contextlib.suppress(HostError):
                domain.set_agent_timeout(_LIBVIRTS_AGENT_TIMEOUT_S)

    def _thaw(self, domain: Domain) -> bool:
        for _ in range(_THAW_TRIES):
            frozen = domain.filesystems_frozen()
            if frozen is False:
                return True
            if frozen:
                with contextlib.suppress(AgentError):
                    domain.thaw()
                    continue
            self._parts.clock.sleep(_THAW_PAUSE_S)
        return False

    def _was_taken(self, domain: Domain, entry: Entry) -> bool:
        machine = domainxml.read(domain.xml())
        return any(
            disk.names(Path(planned.overlay)) for disk in machine.disks for planned in entry.disks
        )

    # -- what is read -------------------------------------------------------------------------
    def _frozen(
        self,
        domain: Domain,
        prepared: _Prepared,
        instant: _Instant,
        exports: contextlib.ExitStack,
        problem: str,
    ) -> FrozenMachine:
        parts = self._parts
        hints = {
            image.target: checkpoints.confirmed(
                prepared.hints[image.target], parts.images.info(image.info.path, image.info.format)
            )
            for image in prepared.images
        }
        return FrozenMachine(
            name=domain.name,
            uuid=domain.uuid,
            taken_at=instant.taken_at,
            consistency=instant.consistency,
            engine=self.name,
            disks=freeze(prepared.images, parts.processes, parts.clock, exports, hints),
            definition_xml=prepared.definition_xml,
            nvram=read_nvram(prepared.machine.nvram),
            guest=guestview.ask(domain) if instant.consistency == "filesystem" else {},
            frozen_s=instant.frozen_s,
            warnings=(*prepared.warnings, *instant.warnings, *filter(None, [problem])),
        )


def _refuse_foreign_work(domain: Domain, machine: Machine) -> None:
    """Somebody else's snapshot or job would be in our way, and ours in theirs."""
    hint = "wait until it is done, or end it; drvm touches nothing that it did not make"
    if domain.has_domain_job():
        raise CaptureError(f"{domain.name} has a backup, save or migration under way", hint=hint)
    for disk in machine.disks:
        if disk.top is None:
            continue
        if disk.mirror is not None or domain.block_job(disk.target) is not None:
            raise CaptureError(f"{disk.target} of {domain.name} has a block job", hint=hint)
    external = domain.external_snapshot_names()
    if external:
        raise CaptureError(
            f"{domain.name} has the external snapshot {external[0]}",
            hint="merge and delete it first; drvm touches nothing that it did not make",
        )
