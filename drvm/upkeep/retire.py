"""Retiring packs: what still is needed of them is moved, and the collector takes the rest.

Packs that are mostly dead, small and old, or read again and again by a machine's latest point are
condemned first, then the points concerned are written anew (drvm/upkeep/rewrite.py), and each old
generation ends when its new one is good. Bounded in what one run reads and writes; nothing depends
on when, or whether, it is done. docs/adr/027-collection.md.
"""

from __future__ import annotations

import datetime as dt
import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from drvm.chunker.blocks import BLOCK_BYTES, LEAF_BLOCKS, leaf_count
from drvm.chunker.frames import FRAME_BLOCKS
from drvm.chunker.runs import decode_leaf
from drvm.core.errors import DamageFound, ObjectMissing, PacksCondemned, UnknownPoint
from drvm.core.progress import NoProgress, Progress, Trace, no_trace
from drvm.core.units import MIB
from drvm.repository.generations import Decided, Generation, Status
from drvm.repository.layout import pack_object
from drvm.repository.manifest import Manifest
from drvm.repository.nodes import Node
from drvm.repository.packs import BlobRef
from drvm.repository.points import Point, condemn
from drvm.repository.repository import Repository
from drvm.repository.window import WINDOW_LEAVES
from drvm.store.first_versions import is_locked
from drvm.upkeep.retention import SETTLED
from drvm.upkeep.rewrite import rewrite_point
from drvm.upkeep.survey import Survey

_MAX_ORDINALS = 1 << 18


@dataclass(frozen=True, slots=True)
class RetireRules:
    """``most_bytes``: of stored data that one run may write anew. ``dead_share``: a pack with a
    smaller living part is mostly dead. ``small_least``: so many small packs that one machine's
    latest point needs are worth to be made one. ``reads``: how often a pack may be read, as a
    multiple of its frames. ``sample``: packs that one run looks into, others in their turn, and of
    small ones that go together; ``most_leaves``: that it reads for either, of packs and of latest
    points; ``most_points``: that it writes.

    ``age`` and ``settled``: no younger pack is retired, no younger generation replaced, by the
    store's time; the latter is changed by tests only."""

    most_bytes: int
    dead_share: float = 0.3
    small_bytes: int = 4 * MIB
    small_least: int = 16
    reads: float = 2.0
    sample: int = 1024
    most_leaves: int = 50_000
    most_points: int = 256
    age: dt.timedelta = dt.timedelta(days=1)
    settled: dt.timedelta = SETTLED


@dataclass(frozen=True, slots=True)
class Retiring:
    """Packs that go together or not at all. ``write_bytes``: what of them lives, about."""

    packs: tuple[bytes, ...]
    write_bytes: int
    why: str


@dataclass(frozen=True, slots=True)
class RetirePlan:
    """``points`` need any of the packs. The newest come first: it needs most of the blocks, and
    the others find them where it put them."""

    groups: tuple[Retiring, ...] = ()
    points: tuple[Generation, ...] = ()

    @property
    def packs(self) -> frozenset[bytes]:
        return frozenset(name for group in self.groups for name in group.packs)

    @property
    def write_bytes(self) -> int:
        return sum(group.write_bytes for group in self.groups)


@dataclass(slots=True)
class Retired:
    """What became true so far. ``failed``: points that could not be written anew, and why; their
    old generations stay."""

    condemned: int = 0
    rewritten: int = 0
    failed: int = 0


def plan_retire(
    repository: Repository, found: Survey, rules: RetireRules, progress: Progress | None = None
) -> RetirePlan:
    """Reads only. ``found`` must be a survey that nothing speaks against. Raises the store's
    errors, and ``DamageFound``."""
    progress, found = progress or NoProgress(), found.without_damaged()
    progress.stage("looking for packs to retire")
    old = {
        name: info.size_bytes
        for name, info in found.packs.items()
        if name in found.needed and found.now - info.modified >= rules.age
    }
    sample = _Sample(_slice(sorted(old), found.now, rules.sample), rules.most_leaves)
    need = repository.generations.need(sample.look)
    latest: dict[str, Manifest] = {}
    for generation, decided in found.attempts:
        manifest = _manifest(repository, generation, decided)
        if manifest is None:
            continue
        need.add(manifest)
        known = latest.get(manifest.vm_uuid)
        if decided.status is Status.OK and (known is None or known.created < manifest.created):
            latest[manifest.vm_uuid] = manifest
    groups = [*_dead(repository, sample, old, rules)]
    for manifest in _in_turn(latest, found.now, rules.most_leaves):
        groups += _read_badly(repository, manifest, old, rules)
    return _chosen(repository, found, groups, rules)


def run_retire(
    repository: Repository,
    plan: RetirePlan,
    done: Retired,
    *,
    level: int,
    trace: Trace = no_trace,
    progress: Progress | None = None,
) -> None:
    """A crash leaves packs condemned, which does no harm, and points good by their old generation,
    their new one, or both; the packs go by later runs once no generation needs them. Raises the
    store's errors, with ``done`` telling what was done before."""
    for name in sorted(plan.packs):
        condemn(repository.store, name)
        trace("pack-condemned")
        done.condemned += 1
    for generation in plan.points:
        try:
            manifest = _manifest(repository, generation, repository.generations.decided(generation))
            if manifest is None:
                continue
            point = Point(manifest, generation.generation)
            rewrite_point(
                repository, point, plan.packs, level=level, progress=progress, trace=trace
            )
        except UnknownPoint:  # ended meanwhile
            continue
        except (DamageFound, PacksCondemned):
            done.failed += 1
            continue
        repository.generations.end(generation, trace)
        done.rewritten += 1


def _slice(names: Sequence[bytes], now: dt.datetime, most: int) -> frozenset[bytes]:
    """Another part of them every day, each in its turn; all, if they are few."""
    slices = math.ceil(len(names) / most)
    day = now.date().toordinal()
    return frozenset(n for n in names if int.from_bytes(n[:8], "big") % slices == day % slices)


def _in_turn(
    latest: Mapping[str, Manifest], now: dt.datetime, most_leaves: int
) -> Iterator[Manifest]:
    """Of other machines every day, one after the other, as long as their disks have no more leaves
    than may be read; of one at least."""
    order = sorted(latest)
    first = now.date().toordinal() % max(1, len(order))
    read = 0
    for identity in order[first:] + order[:first]:
        leaves = sum(leaf_count(disk.size_bytes) for disk in latest[identity].streams)
        if read and read + leaves > most_leaves:
            return
        read += leaves
        yield latest[identity]


def _manifest(repository: Repository, generation: Generation, decided: Decided) -> Manifest | None:
    """``None`` for what was given up, or ended since. Raises ``DamageFound`` where it is not what
    the final names."""
    if decided.status is Status.ABORTED:
        return None
    try:
        return repository.generations.manifest(generation, decided.manifest_sha256)
    except ObjectMissing:
        return None


class _Sample:
    """Where the blocks of some packs are named. ``beyond``: packs of which not all was seen."""

    def __init__(self, names: frozenset[bytes], most_leaves: int) -> None:
        self.names = names
        self.leaves: dict[BlobRef, tuple[bytes, ...]] = {}
        self.beyond: set[bytes] = set()
        self._most_leaves = most_leaves

    def look(self, node: Node) -> None:
        for child in node.children.values():
            if self.names.isdisjoint(child.packs):
                continue
            assert isinstance(child.ref, BlobRef)
            if len(self.leaves) < self._most_leaves:
                self.leaves[child.ref] = child.packs
            elif child.ref not in self.leaves:
                self.beyond.update(child.packs)


def _dead(
    repository: Repository, sample: _Sample, sizes: dict[bytes, int], rules: RetireRules
) -> Iterator[Retiring]:
    """Packs of which hardly anything is named any more, the deadest first. Only packs of blocks:
    where nodes lie in a pack is not looked at."""
    alive: dict[bytes, npt.NDArray[np.bool_]] = {}
    for ref, packs in sample.leaves.items():
        leaf = _leaf(repository, ref, packs)
        for number, name in enumerate(packs):
            if name in sample.names and name not in sample.beyond:
                _mark(repository, alive, name, leaf[1][leaf[0] == number])
    found = []
    for name, marks in alive.items():
        blocks = int(repository.packs.open(name).frames.plain_bytes.sum()) // BLOCK_BYTES
        share = float(marks.sum()) / max(1, blocks)
        if marks.any() and share < rules.dead_share:
            why = f"{share:.0%} of it is needed"
            found.append((share, Retiring((name,), int(sizes[name] * share), why)))
    return (group for _, group in sorted(found, key=lambda item: item[0]))


_I64 = npt.NDArray[np.int64]


def _leaf(repository: Repository, ref: BlobRef, packs: tuple[bytes, ...]) -> tuple[_I64, _I64]:
    """(pack, ordinal) of its blocks. The last one of a disk has fewer than it could have."""
    try:
        leaf = decode_leaf(repository.packs.blob(ref), packs, LEAF_BLOCKS)
    except ValueError as error:
        raise DamageFound(f"a disk map is damaged: {error}") from None
    return leaf.pack, leaf.ordinal


def _mark(
    repository: Repository, alive: dict[bytes, npt.NDArray[np.bool_]], name: bytes, ordinals: _I64
) -> None:
    if name not in alive:
        frames = len(repository.packs.open(name).frames.offset)
        alive[name] = np.zeros(min(frames * FRAME_BLOCKS, _MAX_ORDINALS), dtype=np.bool_)
    marks = alive[name]
    marks[ordinals[ordinals < len(marks)]] = True


def _read_badly(
    repository: Repository, manifest: Manifest, sizes: dict[bytes, int], rules: RetireRules
) -> Iterator[Retiring]:
    """Packs that a restore of this point reads many times over, and small ones, if they are many.
    ``sizes``: of those that are old enough."""
    reads: dict[bytes, int] = {}
    for disk in manifest.streams:
        disk_map = repository.disk_map(disk)
        for start in range(0, disk_map.leaves, WINDOW_LEAVES):
            frames: dict[bytes, set[int]] = {}
            for index in range(start, min(start + WINDOW_LEAVES, disk_map.leaves)):
                leaf = disk_map.leaf(index)
                for number, name in enumerate(leaf.packs if leaf is not None else ()):
                    assert leaf is not None
                    here = np.unique(leaf.ordinal[leaf.pack == number] // FRAME_BLOCKS)
                    frames.setdefault(name, set()).update(here.tolist())
            for name, numbers in frames.items():
                reads[name] = reads.get(name, 0) + len(numbers)
    small = tuple(sorted(n for n in reads if n in sizes and sizes[n] < rules.small_bytes))
    together = itertools.accumulate(sizes[name] for name in small[: rules.sample])
    small = small[: sum(total <= rules.most_bytes for total in together)]
    for name, count in reads.items():
        if name in sizes and count > rules.reads * len(repository.packs.open(name).frames.offset):
            why = f"a restore of {manifest.vm} reads its frames {count} times"
            yield Retiring((name,), sizes[name], why)
    if len(small) >= rules.small_least:
        why = f"one of {len(small)} small ones that {manifest.vm} needs"
        yield Retiring(small, sum(sizes[name] for name in small), why)


def _chosen(
    repository: Repository, found: Survey, groups: Iterable[Retiring], rules: RetireRules
) -> RetirePlan:
    """As many groups as may be, in their order: within the bounds, none that is locked, and none
    that a generation needs which may not be replaced yet."""
    locked = functools.partial(is_locked, repository.store, now=found.now)
    groups = [g for g in groups if not any(locked(pack_object(name)) for name in g.packs)]
    count = itertools.accumulate(len(group.packs) for group in groups)
    groups = [g for g, packs in zip(groups, count, strict=True) if packs <= 4 * rules.sample]
    masks = _masks(repository, found, [name for group in groups for name in group.packs])
    taken: list[Retiring] = []
    points: dict[Generation, None] = {}
    left_bytes, first = rules.most_bytes, 0
    for group in groups:
        bits = ((1 << len(group.packs)) - 1) << first
        first += len(group.packs)
        concerned = [item for item in masks if item[2] & bits]
        more = {generation for generation, _, _ in concerned} - points.keys()
        fixed = any(
            decided.status is not Status.OK
            or found.now - generation.stored < rules.settled
            or locked(generation.name)
            for generation, decided, _ in concerned
        )
        too_much = len(points) + len(more) > rules.most_points or group.write_bytes > left_bytes
        if fixed or too_much or not concerned:
            continue
        taken.append(group)
        points |= dict.fromkeys(more)
        left_bytes -= group.write_bytes
    ordered = sorted(points, key=lambda generation: generation.stored, reverse=True)
    return RetirePlan(tuple(taken), tuple(ordered))


def _masks(
    repository: Repository, found: Survey, names: Sequence[bytes]
) -> list[tuple[Generation, Decided, int]]:
    """Which of these packs each generation needs, by bits. What points share is looked at once."""
    bits: dict[bytes, int] = {}
    for number, name in enumerate(names):
        bits[name] = bits.get(name, 0) | 1 << number
    known: dict[BlobRef, int] = {}
    masks = []
    for generation, decided in found.attempts if names else ():
        manifest = _manifest(repository, generation, decided)
        if manifest is None:
            continue
        mask = 0
        for blob in manifest.blobs():
            mask |= bits.get(blob.ref().pack, 0)
        for disk in manifest.streams:
            mask |= repository.disk_map(disk).fold(lambda name: bits.get(name, 0), known)
        masks.append((generation, decided, mask))
    return masks
