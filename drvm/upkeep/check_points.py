"""The points of a repository during a check: what of which point can't be had back."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from drvm.chunker.blocks import BLOCK_BYTES
from drvm.core.errors import DamageFound
from drvm.core.progress import Progress
from drvm.repository.checks import Arc
from drvm.repository.manifest import Disk, StoredBlob
from drvm.repository.points import Listing, Point
from drvm.repository.repository import Repository
from drvm.upkeep.check_maps import MapCheck
from drvm.upkeep.check_packs import CheckedPacks

RANGES_KEPT = 500_000
"""Of all disks together. Beyond, and beyond so many of one disk, the rest is only counted."""
_ROUNDS = 5


@dataclass(frozen=True, slots=True)
class DiskHit:
    """``ranges``: (offset, length) in bytes of the disk, in order; ``more_ranges`` were left out.
    ``lost_bytes`` counts all of them."""

    target: str
    size_bytes: int
    lost_bytes: int
    ranges: tuple[tuple[int, int], ...]
    more_ranges: int


@dataclass(frozen=True, slots=True)
class PointHit:
    """A point that can't be restored as a whole. ``parts``: what is lost beside bytes of disks and
    of a memory: ``manifest`` (then nothing can be restored and nothing else is known),
    ``definition``, ``nvram``, or a file of the TPM."""

    id: str
    vm_uuid: str
    vm: str = ""
    created: str = ""
    parts: tuple[str, ...] = ()
    disks: tuple[DiskHit, ...] = ()


@dataclass(slots=True)
class PointCheck:
    """Looks at one point after the other. One thread."""

    repository: Repository
    packs: CheckedPacks
    arc: Arc
    progress: Progress
    maps: MapCheck = field(init=False)
    ranges_left: int = RANGES_KEPT

    def __post_init__(self) -> None:
        repository = self.repository
        self.maps = MapCheck(
            self.packs, repository.packs, repository.tables, repository.hasher, self.arc
        )

    def all(self, points: Iterable[Point]) -> tuple[PointHit, ...]:
        """Again from the start as long as packs turn out to be bad that were taken for good: what
        relies on them may have been passed by."""
        points = tuple(points)
        title = f"looking at the disk maps of {len(points)} points"
        mapped = sum(disk.size_bytes for point in points for disk in point.manifest.streams)
        for _ in range(_ROUNDS):
            self.progress.stage(title, mapped)
            known = len(self.packs.faults)
            self.ranges_left = RANGES_KEPT
            self.maps.begin_again()
            hits = tuple(hit for point in points if (hit := self.point(point)) is not None)
            if len(self.packs.faults) == known:
                break
        return hits

    def point(self, point: Point) -> PointHit | None:
        """A point that was removed meanwhile is not hit; one that was written anew is looked at
        as it is now."""
        hit = self._look(point)
        if hit is None:
            return None
        now = self.repository.current(point)
        if now is None or now.generation == point.generation:
            return hit if now is not None else None
        return self._look(now)

    def _look(self, point: Point) -> PointHit | None:
        manifest = point.manifest
        named = {"definition": manifest.definition, "nvram": manifest.nvram, **manifest.tpm}
        parts = tuple(name for name, blob in named.items() if not self._readable(blob))
        disks = tuple(hit for disk in manifest.streams if (hit := self._disk(disk)) is not None)
        if not parts and not disks:
            return None
        return PointHit(manifest.id, manifest.vm_uuid, manifest.vm, manifest.created, parts, disks)

    def _readable(self, blob: StoredBlob | None) -> bool:
        if blob is None:
            return True
        pack = blob.ref().pack
        for _ in range(2):
            try:
                self.repository.blob(blob)
                return True
            except DamageFound as error:
                self.repository.packs.forget(pack)
                reason = error.message
        self.packs.blame(pack, reason)
        return False

    def _disk(self, disk: Disk) -> DiskHit | None:
        lost = self.maps.disk(self.repository.disk_map(disk))
        self.progress.advance(disk.size_bytes)
        if not lost.count:
            return None
        kept = min(len(lost.spans) // 2, self.ranges_left)
        self.ranges_left -= kept
        ranges = []
        for start, blocks in zip(lost.spans[0 : 2 * kept : 2], lost.spans[1::2], strict=False):
            offset = start * BLOCK_BYTES
            ranges.append((offset, min(blocks * BLOCK_BYTES, disk.size_bytes - offset)))
        cut = max(0, lost.end * BLOCK_BYTES - disk.size_bytes)
        lost_bytes = lost.blocks * BLOCK_BYTES - cut
        more = lost.count - kept
        return DiskHit(disk.target, disk.size_bytes, lost_bytes, tuple(ranges), more)


def without_manifest(listing: Listing) -> tuple[PointHit, ...]:
    """Points of which no generation can be read."""
    good = {point.id for point in listing.points}
    lost = sorted({(uuid, point_id) for uuid, point_id, _ in listing.damaged})
    return tuple(
        PointHit(point_id, uuid, parts=("manifest",))
        for uuid, point_id in lost
        if point_id not in good
    )
