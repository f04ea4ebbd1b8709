"""Going forward from a capture whose point is good: its overlay stays, and the one that stood
under it is written into its base and goes.

The guest does not notice: what is in the middle of its chain is committed without a pivot. As in
``truth``, the decision is a pure function of what libvirt says, so that leaving a capture and
recovering from a crash are one and the same; every step may be done again.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from pathlib import Path

from drvm.core.errors import CleanupFailed, HostError
from drvm.host.model import BlockJob
from drvm.snapshot.chainxml import without_layer
from drvm.snapshot.domainxml import Disk, Machine
from drvm.snapshot.journal import Entry, JournalDisk
from drvm.snapshot.overlays import Overlays, sync
from drvm.snapshot.truth import Truth


class Action(enum.Enum):
    COMMIT = "commit the overlay that stood into its base"
    WAIT = "wait for the commit"
    MERGE = "the machine does not run: write the overlay that stood into its base"
    REDEFINE = "take the overlay that stood out of the stored definition"
    DONE = "remove the overlay that stood, which nothing uses"
    HOME = "the disk is gone from the machine: write both overlays into the base"
    FOREIGN = "leave it alone"


@dataclass(frozen=True, slots=True)
class Step:
    """``reason`` says for ``FOREIGN`` what stands in the way."""

    action: Action
    reason: str = ""


def next_step(
    upper: JournalDisk,
    stood: JournalDisk,
    truth: Truth,
    *,
    job: BlockJob | None,
    upper_lies_on: Path | None,
) -> Step:
    """What brings the disk nearer to ``upper`` on the base of ``stood``. ``job``: what runs on
    the disk; ``upper_lies_on``: as the overlay's own header says."""
    live = None if truth.live is None else truth.live.disk(upper.target)
    stored = None if truth.stored is None else truth.stored.disk(upper.target)
    overlay, middle, base = Path(upper.overlay), Path(stood.overlay), Path(stood.base)
    if live is not None and live.names(overlay):
        return _running(live, stored, (overlay, middle, base), job)
    if any(_names(truth.live, path) for path in (overlay, middle, base)):
        return Step(Action.FOREIGN, f"somebody else took {overlay.name} out of use")
    if stored is not None and stored.top == overlay:
        if truth.saved and truth.live is None:
            return Step(Action.FOREIGN, "its memory was saved on the overlay: start it first")
        if upper_lies_on == middle:
            return Step(Action.MERGE)
        if upper_lies_on == base:
            return Step(Action.REDEFINE if stored.names(middle) else Action.DONE)
        return Step(Action.FOREIGN, f"{overlay.name} no longer lies on {middle.name}")
    if any(_names(truth.stored, path) for path in (overlay, middle, base)):
        return Step(Action.FOREIGN, f"somebody else took {overlay.name} out of use")
    return Step(Action.HOME)


def _running(
    live: Disk, stored: Disk | None, chain: tuple[Path, Path, Path], job: BlockJob | None
) -> Step:
    overlay, middle, base = chain
    below = [layer.path for layer in live.layers[1:]]
    if live.top != overlay:
        return Step(Action.FOREIGN, f"somebody else made a snapshot on top of {overlay.name}")
    if live.mirror is not None:
        return Step(Action.FOREIGN, f"somebody else runs a block job ({live.mirror.job}) on it")
    if below[:2] == [middle, base]:
        if job is None:
            return Step(Action.COMMIT)
        if job.kind == "commit":
            return Step(Action.WAIT)
        return Step(Action.FOREIGN, f"somebody else runs a block job ({job.kind}) on it")
    if below[:1] != [base] or middle in below:
        return Step(Action.FOREIGN, f"{overlay.name} no longer lies on {middle.name}")
    if stored is None or not stored.names(middle):
        return Step(Action.DONE)
    if stored.top == overlay:
        return Step(Action.REDEFINE)
    return Step(Action.FOREIGN, f"it runs on {overlay.name}, but is defined on {stored.top}")


def _names(machine: Machine | None, path: Path) -> bool:
    return machine is not None and any(disk.names(path) for disk in machine.disks)


class Fold:
    def __init__(self, overlays: Overlays) -> None:
        self._overlays = overlays

    def advance(self, entry: Entry, target: str) -> tuple[Entry, bool]:
        """One step for one disk, and whether it was the last. Raises ``CleanupFailed`` for what
        only people can decide."""
        upper, stood = _of(entry.disks, target), _of(entry.standing, target)
        found = self.next_step(entry, target)
        match found.action:
            case Action.FOREIGN:
                raise CleanupFailed(found.reason)
            case Action.HOME:
                return self._overlays.note(replace(entry, aim="home")), True
            case Action.COMMIT:
                self._commit(entry, stood)
            case Action.WAIT:
                self._wait(entry, target)
            case Action.MERGE:
                self._merge(upper, stood)
            case Action.REDEFINE:
                self._overlays.redefine(
                    entry, target, lambda text: without_layer(text, target, Path(stood.overlay))
                )
            case Action.DONE:
                return self._end(entry, upper, stood), True
        return entry, False

    def next_step(self, entry: Entry, target: str) -> Step:
        """Changes nothing."""
        upper, stood = _of(entry.disks, target), _of(entry.standing, target)
        truth = self._overlays.truth(entry, target)
        job = None
        if truth.live is not None and truth.live.disk(target) is not None:
            job = self._overlays.domain(entry).block_job(target)
        return next_step(
            upper, stood, truth, job=job, upper_lies_on=self._lies_on(Path(upper.overlay))
        )

    def _lies_on(self, overlay: Path) -> Path | None:
        if not overlay.exists():
            return None
        below = self._overlays.images.info(overlay, "qcow2").backing_file
        return None if below is None else Path(below)

    def _commit(self, entry: Entry, stood: JournalDisk) -> None:
        target, trace = stood.target, self._overlays.trace
        trace(f"fold-begins-{target}")
        self._overlays.domain(entry).commit_below_start(
            target,
            top=Path(stood.overlay),
            base=Path(stood.base),
            bandwidth_mib_s=entry.commit_bandwidth_mib_s,
        )
        trace(f"fold-started-{target}")
        self._wait(entry, target)

    def _wait(self, entry: Entry, target: str) -> None:
        """Until the job is gone. A failed one leaves the chain as it was."""
        self._overlays.wait_for_commit(entry, target)
        if self.next_step(entry, target).action is Action.COMMIT:
            raise HostError("its commit ended without effect; is there room for it?")
        self._overlays.trace(f"fold-committed-{target}")

    def _merge(self, upper: JournalDisk, stood: JournalDisk) -> None:
        """Crash half-way: the commit may be done again, and until the header of the upper
        overlay is changed, it lies on one that holds all that it held."""
        base, trace = Path(stood.base), self._overlays.trace
        trace(f"fold-merge-begins-{upper.target}")
        self._overlays.images.commit_offline(Path(stood.overlay), base)
        sync(base)
        trace(f"fold-merged-{upper.target}")
        self._overlays.images.rebase(Path(upper.overlay), base, stood.base_format)
        sync(Path(upper.overlay))
        trace(f"fold-rebased-{upper.target}")

    def _end(self, entry: Entry, upper: JournalDisk, stood: JournalDisk) -> Entry:
        """Nothing names the overlay that stood: its file goes, and then the journal's word."""
        if Path(stood.overlay).exists():
            self._overlays.remove(entry, stood)
        self._overlays.trace(f"folded-{upper.target}")
        lowered = replace(
            upper, base=stood.base, base_format=stood.base_format, base_kind=stood.base_kind
        )
        return self._overlays.note(
            replace(
                entry,
                disks=tuple(lowered if disk is upper else disk for disk in entry.disks),
                standing=tuple(disk for disk in entry.standing if disk is not stood),
            )
        )


def _of(disks: tuple[JournalDisk, ...], target: str) -> JournalDisk:
    return next(disk for disk in disks if disk.target == target)
