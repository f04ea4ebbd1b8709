"""What is true of a machine's disk now, and what follows from it.

The journal says what drvm meant to do; libvirt's XML says what is. The decision is a pure
function of both, so that leaving a capture and recovering from a crash are one and the same.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from pathlib import Path

from drvm.core.errors import HostError, UnknownVm
from drvm.host.model import Domain, DomainState
from drvm.snapshot.disks import OVERLAY_NAME
from drvm.snapshot.domainxml import Disk, Machine, read
from drvm.snapshot.journal import JournalDisk

_LOOKS = 10


@dataclass(frozen=True, slots=True)
class Truth:
    """``live`` is ``None`` while the machine is off, ``stored`` where it has no definition.
    ``saved``: its memory lies in a managed save, which needs the disks as they are."""

    live: Machine | None
    stored: Machine | None
    saved: bool = False

    @property
    def views(self) -> tuple[Machine, ...]:
        return tuple(view for view in (self.live, self.stored) if view is not None)


class Action(enum.Enum):
    COMMIT = "commit the overlay into its base"
    PIVOT = "wait for the commit, then put the guest back on its base"
    REDEFINE = "put the base back into the stored definition"
    MERGE = "the machine does not run: write the overlay into its base"
    DONE = "remove the overlay, which nothing uses"
    FOREIGN = "leave it alone"


@dataclass(frozen=True, slots=True)
class Step:
    """``reason`` says for ``FOREIGN`` what stands in the way."""

    action: Action
    reason: str = ""


def look(domain: Domain | None) -> Truth:
    """The machine as libvirt knows it. Raises ``HostError`` if it never stands still."""
    if domain is None:
        return Truth(None, None)
    try:
        for _ in range(_LOOKS):
            before = domain.state()
            live = read(domain.xml())
            stored = read(domain.xml(inactive=True))
            saved = domain.has_managed_save()
            if domain.state() is before:
                if before is DomainState.SHUTOFF:
                    return Truth(None, stored, saved)
                return Truth(live, stored, saved)
    except UnknownVm:
        return Truth(None, None)
    raise HostError(f"{domain.name} changes its state all the time")


def names(truth: Truth, path: Path) -> bool:
    """Whether a chain of the machine, live or stored, names the image."""
    return any(disk.names(path) for view in truth.views for disk in view.disks)


def next_step(
    disk: JournalDisk, truth: Truth, *, overlay_exists: bool, base_used_elsewhere: bool
) -> Step:
    """What brings the disk nearer to its base. ``base_used_elsewhere``: another machine's
    definition names the base."""
    overlay, base = Path(disk.overlay), Path(disk.base)
    live = None if truth.live is None else truth.live.disk(disk.target)
    stored = None if truth.stored is None else truth.stored.disk(disk.target)
    if live is not None and live.names(overlay):
        return _running_on_overlay(live, overlay, base)
    if stored is not None and stored.top == overlay:
        return _stored_on_overlay(disk, truth, live, base)
    if names(truth, overlay):
        return Step(Action.FOREIGN, f"somebody else made a snapshot on top of {overlay.name}")
    if not overlay_exists:
        return Step(Action.DONE)
    if names(truth, base):
        return _nothing_names_overlay(disk)
    return _nothing_names_either(disk, base_used_elsewhere=base_used_elsewhere)


def _running_on_overlay(live: Disk, overlay: Path, base: Path) -> Step:
    if live.top != overlay:
        return Step(Action.FOREIGN, f"somebody else made a snapshot on top of {overlay.name}")
    if len(live.layers) > 1 and live.layers[1].path != base:
        return Step(Action.FOREIGN, f"{overlay.name} no longer lies on {base.name}")
    if live.mirror is None:
        return Step(Action.COMMIT)
    # while a job that failed is put away, libvirt 9.0 writes no kind
    if live.mirror.job not in ("active-commit", "") or live.mirror.path != base:
        return Step(Action.FOREIGN, f"somebody else runs a block job ({live.mirror.job}) on it")
    return Step(Action.PIVOT)


def _stored_on_overlay(disk: JournalDisk, truth: Truth, live: Disk | None, base: Path) -> Step:
    if truth.live is not None and any(other.names(base) for other in truth.live.disks):
        if live is not None and live.top == base and disk.phase in ("pivoting", "merged"):
            return Step(Action.REDEFINE)
        return Step(Action.FOREIGN, f"it runs on {base.name}, but is defined on {disk.overlay}")
    if truth.saved and truth.live is None:
        return Step(Action.FOREIGN, "its memory was saved on the overlay: start it first")
    return Step(Action.MERGE)


def _nothing_names_overlay(disk: JournalDisk) -> Step:
    """The base is in use, the overlay is not: fine if it never was, or if that was our work."""
    if disk.phase in ("planned", "requested", "pivoting", "merged"):
        return Step(Action.DONE)
    return Step(
        Action.FOREIGN,
        f"somebody else put it back on its base; {disk.overlay} may hold what the guest wrote",
    )


def _nothing_names_either(disk: JournalDisk, *, base_used_elsewhere: bool) -> Step:
    """The disk was unplugged, or the machine undefined: the overlay may hold the newest data."""
    if disk.phase == "planned":
        return Step(Action.DONE)
    if base_used_elsewhere or disk.phase == "pivoting":
        return Step(
            Action.FOREIGN,
            f"the disk was taken away in the meantime; {disk.overlay} may hold what it last held",
        )
    return Step(Action.MERGE)


def ours(machine: Machine) -> list[tuple[Disk, Path]]:
    """Disks on an overlay that bears drvm's mark."""
    return [
        (disk, disk.top)
        for disk in machine.disks
        if disk.top is not None and OVERLAY_NAME.fullmatch(disk.top.name) is not None
    ]
