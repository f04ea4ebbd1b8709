"""The engine for machines that are off: their images are read as they lie there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from drvm.core.errors import CaptureError
from drvm.core.pace import Pace
from drvm.host.images import in_use
from drvm.host.model import DomainState
from drvm.snapshot import checkpoints, domainxml, outside, standing
from drvm.snapshot.capture import CaptureRequest, FrozenMachine
from drvm.snapshot.checkpoints import STANDING_OVERLAY
from drvm.snapshot.disks import select
from drvm.snapshot.parts import Parts, readable, require_local
from drvm.snapshot.reading import Reading
from drvm.snapshot.recovery import finish_earlier


class OfflineEngine:
    """Nothing is made, no checkpoint either, and nothing is locked. An overlay that stands stays
    where it is: the next point of the running machine is a full read. If the machine is started
    while it is read, it starts, and the reading fails."""

    name = "offline"

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    @contextlib.contextmanager
    def capture(self, request: CaptureRequest) -> Iterator[FrozenMachine]:
        parts = self._parts
        require_local(parts.host)
        domain = parts.host.domain(request.vm)
        with parts.journal.lock(domain.uuid, domain.name), contextlib.ExitStack() as exports:
            finish_earlier(parts, domain)
            stood = standing.settle(parts, domain, request)
            definition = stood.on_own_images(domain.xml(inactive=True, secure=True))
            machine = domainxml.read(definition)
            selection = select(machine, request.exclude_disks)
            images = tuple(stood.image(parts, source) for source in selection.captured)
            if request.changed_blocks == STANDING_OVERLAY:
                found = standing.hints(stood, domain, request, images)
            else:
                found = checkpoints.hints(domain, request, images)
            hints = {
                image.target: checkpoints.confirmed(found[image.target], image.info)
                for image in images
            }
            reading = Reading(Pace(request.read_bandwidth_mib_s, parts.clock))
            disks = readable(images, parts.processes, parts.clock, exports, reading, hints)
            taken_at = parts.clock.now()
            state = outside.look(machine, parts.host.places)
            saved = domain.has_managed_save()
            # asked after the images were first looked at: a start from here on is seen there
            if domain.state() is not DomainState.SHUTOFF:
                raise CaptureError(f"{domain.name} is not off")
            for image in images:
                if in_use(image.info.path):
                    raise CaptureError(
                        f"{image.info.path} is in use", hint="another program has it open"
                    )
            warnings = [*stood.warnings, *selection.warnings, *state.warnings]
            if saved:
                warnings.append("only crash-consistent: the memory that was saved is not captured")
            parts.trace("reading")
            yield FrozenMachine(
                name=domain.name,
                uuid=domain.uuid,
                taken_at=taken_at,
                consistency="crash" if saved else "offline",
                engine=self.name,
                disks=disks,
                definition_xml=definition,
                nvram=state.nvram,
                tpm=state.tpm,
                warnings=tuple(warnings),
            )
