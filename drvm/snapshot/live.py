"""What the engines for machines that run share: a capture from its lock to its release."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from drvm.core.errors import CaptureError
from drvm.core.pace import Pace
from drvm.host.model import Domain, DomainState
from drvm.snapshot import domainxml, outside
from drvm.snapshot.capture import CaptureRequest, FrozenDisk, FrozenMachine
from drvm.snapshot.checkpoints import Hint, Image
from drvm.snapshot.disks import Selection
from drvm.snapshot.domainxml import Machine
from drvm.snapshot.freeze import Instant
from drvm.snapshot.journal import Entry
from drvm.snapshot.outside import Outside
from drvm.snapshot.parts import Parts, guest_facts, require_local
from drvm.snapshot.reading import Reading
from drvm.snapshot.recovery import finish_earlier
from drvm.snapshot.release import Release
from drvm.snapshot.space import SpaceWatch
from drvm.snapshot.watchdog import Watchdog


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything that is known before anything is touched. ``keep``: whether the overlays stand
    when the point is good."""

    machine: Machine
    definition_xml: str
    images: tuple[Image, ...]
    entry: Entry
    hints: Mapping[str, Hint]
    outside: Outside
    warnings: tuple[str, ...]
    keep: bool = False


@contextlib.contextmanager
def locked(parts: Parts, request: CaptureRequest) -> Iterator[tuple[Domain, Watchdog]]:
    """The machine, which no other drvm works on meanwhile, with a watchdog over its freezes; what
    an earlier capture left has been put right."""
    require_local(parts.host)
    domain = parts.host.domain(request.vm)
    with (
        parts.journal.lock(domain.uuid, domain.name),
        parts.watchdog(domain.uuid, request.freeze_timeout_s) as watch,
    ):
        finish_earlier(parts, domain)
        yield domain, watch


@contextlib.contextmanager
def journaled(parts: Parts, entry: Entry) -> Iterator[Release]:
    """There is room for it, the journal tells of it, and it is put back when this is left."""
    parts.room().require(entry)
    release = Release(parts, entry)
    parts.journal.write(entry)
    try:
        yield release
    finally:
        release.run()


@contextlib.contextmanager
def watched(
    parts: Parts, domain: Domain, request: CaptureRequest, release: Release
) -> Iterator[Reading]:
    """How disks are read while the room that the guest needs is watched, and whether an end is
    wanted."""

    def trouble() -> str:
        parts.heed()
        return release.trouble()

    with SpaceWatch(domain.name, trouble, release.early) as space:
        yield Reading(Pace(request.read_bandwidth_mib_s, parts.clock), space.still_frozen)


def require_running(domain: Domain) -> DomainState:
    """Running or paused. Raises ``CaptureError``."""
    state = domain.state()
    if state not in (DomainState.RUNNING, DomainState.PAUSED):
        raise CaptureError(f"{domain.name} does not run")
    return state


def unstored(definition_xml: str, selection: Selection) -> list[str]:
    """A warning for each captured disk that the machine's definition does not have."""
    stored = domainxml.read(definition_xml)
    targets = [s.target for s in selection.captured if stored.disk(s.target) is None]
    return [f"{target} is plugged in only until the next start" for target in targets]


def frozen_machine(
    parts: Parts,
    domain: Domain,
    prepared: Prepared,
    instant: Instant,
    disks: Callable[[], tuple[FrozenDisk, ...]],
    problem: str,
    memory: Callable[[], FrozenDisk | None] = lambda: None,
) -> FrozenMachine:
    """``disks`` is called when what lies outside of the disks has been looked at, which can't
    wait. ``problem``: why there is no checkpoint, or nothing."""
    state = outside.at_instant(prepared.outside, prepared.machine, parts.host.places, parts.clock)
    return FrozenMachine(
        name=domain.name,
        uuid=domain.uuid,
        taken_at=instant.taken_at,
        consistency=instant.consistency,
        engine=prepared.entry.engine,
        disks=disks(),
        definition_xml=prepared.definition_xml,
        nvram=state.nvram,
        tpm=state.tpm,
        guest=guest_facts(domain, instant, parts.clock),
        frozen_s=instant.frozen_s,
        warnings=(
            *prepared.warnings,
            *state.warnings,
            *instant.warnings,
            *filter(None, [problem]),
        ),
        memory=memory(),
    )
