"""Standing overlays: what a machine runs on between captures where its policy says so.

The overlay of a point stays, so the clusters that it holds are what was written since that point,
and nothing else is: the name of its file is the lineage. It is believed only as the first image of
its disk, right on the image that it was put on, and for exactly its own point. Every other state
costs a full read, never data. See ``docs/adr/016-standing-overlays.md``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from drvm.core.errors import CaptureError, HostError
from drvm.core.extents import ExtentKind
from drvm.core.units import format_bytes
from drvm.host.model import Domain
from drvm.host.nbd import NbdExport, nbd_overlaid
from drvm.snapshot import truth as truths
from drvm.snapshot.capture import CaptureRequest, ParentPoint
from drvm.snapshot.chainxml import on_own_images
from drvm.snapshot.checkpoints import STANDING_OVERLAY, Hint, Image, identity
from drvm.snapshot.disks import Source
from drvm.snapshot.journal import Aim, Entry, JournalDisk
from drvm.snapshot.parts import Parts
from drvm.snapshot.space import allocated_bytes, free_bytes
from drvm.snapshot.truth import Truth


@dataclass(frozen=True, slots=True)
class Standing:
    """What a capture finds standing and goes on with, by target."""

    disks: Mapping[str, JournalDisk] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def on_own_images(self, text: str) -> str:
        """The domain's XML as if nothing stood."""
        return on_own_images(text, self.disks.values())

    def image(self, parts: Parts, source: Source) -> Image:
        """``source`` as ``select`` finds it when nothing stands."""
        disk = self.disks.get(source.target)
        if disk is None:
            return Image(source.target, parts.images.chain(source.path, source.format))
        return Image(source.target, parts.images.chain(Path(disk.overlay), "qcow2"), stands=True)


def found(parts: Parts, domain: Domain) -> Standing:
    """What stands now. Changes nothing."""
    entry = parts.journal.read(domain.uuid)
    if entry is None or not entry.standing:
        return Standing()
    truth = truths.look(domain)
    return Standing({d.target: d for d in entry.standing if stands(parts, d, truth)})


def settle(parts: Parts, domain: Domain, request: CaptureRequest) -> Standing:
    """Before a capture: what the request does not want any more, and what there is no room for,
    is folded back into its image; what no longer stands as it should, too, or is forgotten with
    a warning where that is not for drvm to do. The caller holds the machine's lock, and nothing is
    half-done. Raises ``CleanupFailed``, and ``CaptureError`` for an internal snapshot that would
    be lost."""
    entry = parts.journal.read(domain.uuid)
    if entry is None:
        return Standing()
    entry, warnings = _let_go(parts, domain, entry)
    short = parts.room().shortage(entry) if entry.standing else ""
    if short:
        warnings.append(f"what stood was folded back: {short}")
    going = request.exclude_disks
    if short or request.changed_blocks != STANDING_OVERLAY:
        going = frozenset(disk.target for disk in entry.standing)
    entry = replace(entry, commit_bandwidth_mib_s=request.commit_bandwidth_mib_s)
    entry = fold(parts, entry, going)
    return Standing({disk.target: disk for disk in entry.standing}, tuple(warnings))


def stands(parts: Parts, disk: JournalDisk, truth: Truth) -> bool:
    """Whether the overlay is the first image of its disk, live and stored, right on its base."""
    overlay, base = Path(disk.overlay), Path(disk.base)
    views = [found for view in truth.views if (found := view.disk(disk.target)) is not None]
    if not views or any(view.top != overlay for view in views):
        return False
    if any(len(view.layers) > 1 and view.layers[1].path != base for view in views):
        return False
    try:
        return parts.images.info(overlay, "qcow2").backing_file == str(base)
    except HostError:
        return False


def fold(parts: Parts, entry: Entry, targets: Iterable[str]) -> Entry:
    """From rest: put the machine back on its own images of ``targets``. Returns what stands then.

    Raises ``CleanupFailed`` as ``PutBack.run``; then the journal says what is half-done.
    """
    targets = frozenset(targets)
    for disk in entry.standing:
        if disk.target in targets and Path(disk.overlay).exists():
            _refuse_to_lose_snapshots(parts, disk)
    while targets & {disk.target for disk in entry.standing}:
        going = entry.folding(targets)
        parts.journal.write(going)
        parts.trace("fold-home-journaled")
        parts.put_back().run(going)
        entry = parts.journal.read(entry.vm_uuid) or replace(going, disks=(), standing=())
    return entry


def hints(
    standing: Standing, domain: Domain, request: CaptureRequest, images: Sequence[Image]
) -> dict[str, Hint]:
    """What the overlays promise, by target."""
    internal = domain.snapshot_names()
    found = {}
    for image in images:
        disk = standing.disks.get(image.target)
        doubt = _doubt(image, disk, request.parent)
        if internal and not doubt:
            doubt = "the machine has internal snapshots"
        found[image.target] = Hint(doubt=doubt) if doubt else Hint(overlaid=True)
    return found


def barred(domain: Domain, images: Sequence[Image]) -> bool:
    """A machine with internal snapshots stays on the images that it is on: one may be in the
    overlay that would go, and none can be reverted below one that comes."""
    return bool(domain.snapshot_names() or any(image.info.snapshots for image in images))


def aim(parts: Parts, images: Sequence[Image]) -> Aim:
    """How a capture ends whose point is good and whose overlays are to stand: ``home`` where there
    is no room to write what stood into its base in the middle of the chain (QEMU 7.2 writes
    zeroes there in full), or where that can't be known."""
    try:
        for image in images:
            if image.stands and not image.own.path.is_block_device():
                needed_bytes = parts.overlay_reserve_bytes + _growth_bytes(parts, image)
                if free_bytes(image.own.path.parent) < needed_bytes:
                    return "home"
    except (HostError, OSError):
        return "home"
    return "forward"


def _doubt(image: Image, disk: JournalDisk | None, parent: ParentPoint | None) -> str:
    if parent is None:
        return "there is no earlier point"
    if disk is None or disk.point_id != parent.id:
        return f"there is no standing overlay of the point {parent.id}"
    if image.target not in parent.sizes_bytes:
        return "the parent point has not this disk"
    if not disk.identity or disk.identity != identity(image):
        return "the image is another one, or was changed below its standing overlay"
    if parent.sizes_bytes[image.target] != image.info.virtual_size_bytes:
        return "the disk was resized"
    return ""


def _let_go(parts: Parts, domain: Domain, entry: Entry) -> tuple[Entry, list[str]]:
    """Of ``entry`` what still stands, and words about the rest."""
    truth, warnings = truths.look(domain), []
    for disk in entry.standing:
        if stands(parts, disk, truth):
            continue
        taken = replace(disk, phase="taken")
        if Path(disk.overlay).exists() and not parts.put_back().is_foreign(entry, taken):
            entry = fold(parts, entry, [disk.target])
            warnings.append(f"{disk.target} no longer stood on its overlay and was put back")
            continue
        remaining = tuple(other for other in entry.standing if other.target != disk.target)
        entry = replace(entry, standing=remaining)
        if remaining:
            parts.journal.write(entry)
        else:
            parts.journal.remove(entry.vm_uuid)
        warnings.append(f"{disk.target} was taken off its standing overlay {disk.overlay}")
    return entry, warnings


def _growth_bytes(parts: Parts, image: Image) -> int:
    """What the base may grow by at most when the overlay on it is committed in the middle."""
    with NbdExport(parts.processes, image.info.path, image.info.format, overlay=True) as export:
        held = sum(e.length for e in nbd_overlaid(export.socket) if e.kind is ExtentKind.DATA)
    return min(held, image.own.virtual_size_bytes - image.own.allocated_bytes)


def _refuse_to_lose_snapshots(parts: Parts, disk: JournalDisk) -> None:
    names = parts.images.info(Path(disk.overlay), "qcow2").snapshots
    if names:
        raise CaptureError(
            f"the standing overlay of {disk.target} holds the internal snapshot {names[0]},"
            f" which would be lost with its {format_bytes(allocated_bytes(Path(disk.overlay)))}",
            hint="delete the snapshot first (virsh snapshot-delete)",
        )
