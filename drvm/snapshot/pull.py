"""The engine for machines whose disk chain must not change: QEMU itself serves the instant.

A libvirt pull backup (``virDomainBackupBegin``) keeps what the guest overwrites in scratch files
and serves the disks, as they were, on a socket; the guest goes on with its own images. For
machines that run or are paused; qcow2, raw and block devices. See ``docs/adr/017-pull-engine.md``.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from drvm.core.errors import CaptureError, HostError, HostUnreachable
from drvm.host.model import Domain, DomainState
from drvm.host.places import StatePlaces
from drvm.snapshot import checkpoints, domainxml, outside, standing
from drvm.snapshot.capture import CaptureRequest, FrozenMachine
from drvm.snapshot.checkpoints import Hint, Image
from drvm.snapshot.disks import scratch_path, select
from drvm.snapshot.domainxml import Machine
from drvm.snapshot.freeze import Instant
from drvm.snapshot.journal import VERSION, Entry, PullFiles
from drvm.snapshot.live import (
    Prepared,
    frozen_machine,
    journaled,
    locked,
    require_running,
    unstored,
    watched,
)
from drvm.snapshot.parts import Parts, refuse_jobs
from drvm.snapshot.pulled import pulled
from drvm.snapshot.pullxml import backup_xml
from drvm.snapshot.watchdog import Watch

_MAX_SOCKET_PATH_BYTES = 107
_MAX_TRIES = 4
_NAMED_DISK = re.compile(r"disk '(\w+)'", re.ASCII)


@dataclass(frozen=True, slots=True)
class Begun:
    """``hints``: those that libvirt took. ``problem``: why there is no checkpoint."""

    hints: Mapping[str, Hint]
    problem: str


class PullEngine:
    name = "pull"

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    @contextlib.contextmanager
    def capture(self, request: CaptureRequest) -> Iterator[FrozenMachine]:
        """See ``Engine``. SIGKILL at any time leaves a journal that recovery works off, and a
        backup job that goes on until then."""
        parts = self._parts
        with locked(parts, request) as (domain, watch):
            prepared, files = self._prepare(domain, request)
            with journaled(parts, prepared.entry) as release:
                parts.trace("scratch-journaled")
                self._make_scratch(prepared, files)
                instant, begun = self._take(domain, request, prepared, files, watch)
                watch.end()
                with watched(parts, domain, request, release) as reading:
                    images, socket = prepared.images, Path(files.socket)
                    disks = partial(
                        pulled, domain, images, socket, begun.hints, reading, parts.clock
                    )
                    machine = frozen_machine(parts, domain, prepared, instant, disks, begun.problem)
                    parts.trace("reading")
                    yield machine

    # -- before anything is touched -----------------------------------------------------------
    def _prepare(self, domain: Domain, request: CaptureRequest) -> tuple[Prepared, PullFiles]:
        parts = self._parts
        state = require_running(domain)
        refuse_jobs(domain, domainxml.read(domain.xml()))
        # nothing stands while this engine works, so what stood goes home first
        stood = standing.settle(parts, domain, replace(request, changed_blocks="full-read"))
        machine = domainxml.read(domain.xml())
        definition = domain.xml(inactive=True, secure=True)
        selection = select(machine, request.exclude_disks)
        images = tuple(
            Image(s.target, parts.images.chain(s.path, s.format)) for s in selection.captured
        )
        point_id, overlay_dir = request.point_id, parts.overlay_dir
        files = PullFiles(
            socket=str(_socket_path(parts.host.places, domain, point_id)),
            scratches={
                s.target: str(scratch_path(s, point_id, machine.uuid, overlay_dir))
                for s in selection.captured
            },
        )
        prepared = Prepared(
            machine=machine,
            definition_xml=definition,
            images=images,
            entry=Entry(
                version=VERSION,
                engine=self.name,
                point_id=point_id,
                vm_uuid=domain.uuid,
                vm_name=domain.name,
                uri=parts.host.uri,
                disks=(),
                was_running=state is DomainState.RUNNING,
                pull=files,
            ),
            hints=checkpoints.hints(domain, request, images),
            outside=outside.look(machine, parts.host.places),
            warnings=(*stood.warnings, *selection.warnings, *unstored(definition, selection)),
        )
        return prepared, files

    # -- the instant --------------------------------------------------------------------------
    def _make_scratch(self, prepared: Prepared, files: PullFiles) -> None:
        for image in prepared.images:
            scratch = Path(files.scratches[image.target])
            size_bytes = image.info.virtual_size_bytes
            self._parts.images.create_scratch(scratch, image.info.path, size_bytes)
        self._parts.trace("scratch-made")

    def _take(
        self,
        domain: Domain,
        request: CaptureRequest,
        prepared: Prepared,
        files: PullFiles,
        watch: Watch,
    ) -> tuple[Instant, Begun]:
        parts = self._parts
        problem, wanted = "", None
        try:
            wanted = checkpoints.prepare(domain, request, prepared.images)
        except HostUnreachable:
            raise
        except HostError as error:
            problem = checkpoints.unmade(error.message)
        parts.trace("checkpoints-pruned")
        begun: list[Begun] = []

        def freezing(frozen: bool) -> None:
            parts.journal.write(replace(prepared.entry, frozen=frozen))
            parts.trace("backup-requested")

        def take(_freezing_itself: bool) -> None:
            begun.append(begin(domain, prepared.machine, files, prepared.hints, wanted))
            parts.trace("backup-begun")

        instant = parts.taking(
            domain,
            request,
            parts.clock,
            watch,
            take=take,
            was_taken=None,
            freezing=freezing,
        )
        parts.journal.write(replace(prepared.entry, frozen=instant.unsure))
        parts.trace("backup-taken")
        return instant, replace(begun[0], problem=problem or begun[0].problem)


def _socket_path(places: StatePlaces | None, domain: Domain, point_id: str) -> Path:
    """Where QEMU may make it and libvirt removes what is left of it."""
    directory = None if places is None else domain.own_directory(places.machines)
    if directory is None:
        raise CaptureError(
            f"libvirt keeps no directory for {domain.name} that drvm knows of",
            hint="pull works with qemu:///system; let the policy say engine: external",
        )
    path = directory / f"drvm-{point_id}.nbd"
    if len(os.fsencode(path)) > _MAX_SOCKET_PATH_BYTES:
        raise CaptureError(
            f"{path} is too long for a socket", hint="let the policy say engine: external"
        )
    return path


def begin(
    domain: Domain,
    machine: Machine,
    files: PullFiles,
    wanted: Mapping[str, Hint],
    checkpoint: str | None,
) -> Begun:
    """Begin the job, and make the checkpoint. What libvirt does not take is left out: first the
    bitmap of the disk that it names, or every bitmap, then the checkpoint. The guest may be frozen
    meanwhile: a refusal takes it less than 0.2 s, a job of somebody else's would make it wait 30 s.
    """
    hints, refusal, problem = dict(wanted), "", ""
    for _ in range(_MAX_TRIES):
        job = domain.domain_job()
        if job is not None:
            raise CaptureError(
                f"{domain.name} has another job under way since a moment ago ({job})",
                hint="try again when it is done",
            )
        try:
            domain.backup_begin(backup_xml(machine, files, hints), checkpoint)
            return Begun(hints, problem)
        except HostUnreachable:
            raise
        except HostError as error:
            refusal = error.message
        doubtful = _doubtful(hints, refusal)
        if not doubtful and checkpoint is None:
            break
        if not doubtful:
            checkpoint, problem = None, checkpoints.unmade(refusal)
        hints |= {target: Hint(doubt=f"libvirt says: {refusal}") for target in doubtful}
    raise CaptureError(f"libvirt begins no backup of {domain.name}: {refusal}")


def _doubtful(hints: Mapping[str, Hint], message: str) -> list[str]:
    """The disks whose bitmaps may be to blame."""
    marked = [target for target, hint in hints.items() if hint.bitmap is not None]
    named = [target for target in marked if target in _NAMED_DISK.findall(message)]
    return named or marked
