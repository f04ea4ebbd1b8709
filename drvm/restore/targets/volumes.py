"""Disks as volumes of a storage pool, by nothing but libvirt: also on another machine.

The bytes of the volume are written in their order, so a qcow2 is made here, as a stream. A volume
that an interrupted restore has left is gone on with behind what of it is right:
docs/adr/051-restores-that-go-on-elsewhere.md.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np

from drvm.chunker.blocks import BLOCK_BYTES
from drvm.core.clock import Clock
from drvm.core.errors import DamageFound, HostError, RestoreError
from drvm.core.progress import Progress, Trace
from drvm.host.storage import Hole, Piece, Storage, Volume
from drvm.repository.diskmap import DiskMap
from drvm.repository.reader import read_disk
from drvm.repository.repository import Repository
from drvm.repository.window import WINDOW_LEAVES, load_window, stored_bytes
from drvm.restore.targets.images import PlannedImage, in_another_generation
from drvm.restore.targets.qcow2_file import Bits, cluster_bytes, gapless, like
from drvm.restore.targets.volume_lease import KEPT
from drvm.restore.targets.volume_proof import Placed, Proven, prove, written_out

_CELL_BYTES = 64 * 1024


class VolumeRestorer:
    """Fills volumes of one host. ``verify``: whatever was written is read back and compared."""

    def __init__(
        self, repository: Repository, storage: Storage, clock: Clock, *, verify: bool = False
    ) -> None:
        self.clock = clock
        self._repository = repository
        self._storage = storage
        self._verify = verify

    def restore(
        self, image: PlannedImage, progress: Progress, trace: Trace, *, resumed: bool = False
    ) -> int:
        """Make the volume and write the whole disk; returns the bytes written of it. ``resumed``:
        it may be there, as an earlier restore has left it.

        Every block is verified before it is sent. Raises ``DamageFound``, ``RestoreError`` and
        ``HostUnreachable``, having removed the volume, unless it ends by what a later restore may
        go on after (``KEPT``). A crash leaves it.
        """
        try:
            return self._restore(image, progress, trace, resumed=resumed)
        except DamageFound:
            again = in_another_generation(self._repository, image)
            if again is None:
                raise
            return self._restore(again, progress, trace, resumed=False)

    def discard(self, pool: str, name: str, error: BaseException | None) -> None:
        """Remove a volume where something else went wrong: that is what is told, and the lease
        knows of what can't be removed. A host that is lost is not asked again."""
        if not isinstance(error, KEPT):
            with contextlib.suppress(HostError):
                self._storage.remove(pool, name)

    def place(self, pool: str, path: Path, data: bytes, *, resumed: bool = False) -> None:
        """A small new volume with these bytes. An error removes it again."""
        if resumed:
            self._storage.remove(pool, path.name)
        with self._new_volume(pool, path, len(data)):
            self._storage.upload(pool, path.name, len(data), [data])

    def _restore(
        self, image: PlannedImage, progress: Progress, trace: Trace, *, resumed: bool
    ) -> int:
        assert image.pool is not None
        disk_map = self._repository.disk_map(image.disk)
        length, place = _layout(image, disk_map)
        target, name = image.disk.target, image.path.name
        try:
            with self._volume(image.pool, image.path, length, resumed) as (volume, is_new):
                trace(f"volume-{'made' if is_new else 'taken-over'}-{target}")
                # what a device held before is over: all of it reads as it should
                whole = length if volume.is_file else volume.size_bytes
                start = Proven()
                if not is_new:
                    start = self._proven(image, disk_map, place, whole, progress)
                total = stored_bytes(disk_map, start.leaves)
                progress.stage(f"restoring {target}", total)
                stored = read_disk(
                    disk_map, self._repository.packs, self._repository.hasher, start.leaves
                )
                placed = place(_told(stored, progress))
                left = (one for one in placed if one[0] >= start.length)
                pieces = gapless(left, whole, start.length)
                if volume.is_file and not is_new:
                    pieces = written_out(pieces, start.length, start.dirty)
                pieces = _traced(pieces, lambda: trace(f"volume-begun-{target}"))
                self._send(image.pool, name, start.length, whole - start.length, pieces, progress)
                self._compare_size(image.pool, name, whole)
                trace(f"volume-filled-{target}")
        except HostError as error:
            hint = error.hint or f"look at the room in pool {image.pool}"
            message = f"disk {target} can't be restored: {error.message}"
            if error.retryable:
                raise type(error)(message, hint=hint) from None
            raise RestoreError(message, hint=hint) from None
        return total

    def _proven(
        self,
        image: PlannedImage,
        disk_map: DiskMap,
        place: Callable[[Placed], Placed],
        length: int,
        progress: Progress,
    ) -> Proven:
        assert image.pool is not None
        progress.stage(f"looking at what {image.path.name} holds", length)
        with closing(self._storage.download(image.pool, image.path.name, length)) as back:
            return prove(disk_map, self._repository.hasher, place, length, back, progress)

    def _send(
        self,
        pool: str,
        name: str,
        offset: int,
        length: int,
        pieces: Iterable[Piece],
        progress: Progress,
    ) -> None:
        if not length:
            return
        if not self._verify:
            self._storage.upload(pool, name, length, pieces, offset=offset)
            return
        sent, received = Digest(), Digest()
        self._storage.upload(pool, name, length, sent.of(pieces), offset=offset)
        progress.stage(f"reading {name} back", length)
        with closing(self._storage.download(pool, name, length, offset=offset)) as back:
            for piece in received.of(back):
                progress.advance(piece.length if isinstance(piece, Hole) else len(piece))
        if sent.value() != received.value():
            raise RestoreError(
                f"volume {name} does not read back as it was written",
                hint="the network, or the storage of that host, changes what it is given",
            )

    def _compare_size(self, pool: str, name: str, length: int) -> None:
        found = self._storage.volume(pool, name)
        if found is None or found.size_bytes < length:
            there = "is gone" if found is None else f"has {found.size_bytes} bytes of {length}"
            raise HostError(f"volume {name} {there}, after all of it was written")

    @contextlib.contextmanager
    def _volume(
        self, pool: str, path: Path, length: int, resumed: bool
    ) -> Iterator[tuple[Volume, bool]]:
        """And whether it is new, as ``_new_volume``. One that is there and can't be what a restore
        has left is made anew."""
        found = self._storage.volume(pool, path.name) if resumed else None
        if found is not None:
            fits = found.size_bytes <= length if found.is_file else found.size_bytes >= length
            if fits and found.path == str(path):
                try:
                    yield found, False
                except BaseException as error:
                    self.discard(pool, path.name, error)
                    raise
                return
            self._storage.remove(pool, path.name)
        with self._new_volume(pool, path, length) as volume:
            yield volume, True

    @contextlib.contextmanager
    def _new_volume(self, pool: str, path: Path, length: int) -> Iterator[Volume]:
        """It stays if all goes well. ``path`` is where the plan says that it is."""
        name = path.name
        volume = self._storage.create(pool, name, length)
        try:
            if volume.path != str(path):
                raise RestoreError(f"volume {name} came to be {volume.path} instead of {path}")
            if volume.size_bytes < length:
                raise RestoreError(f"volume {name} has {volume.size_bytes} bytes of {length}")
            yield volume
        except BaseException as error:
            self.discard(pool, name, error)
            raise


def _layout(image: PlannedImage, disk_map: DiskMap) -> tuple[int, Callable[[Placed], Placed]]:
    """How long the volume's file is, and where in it what is stored of the disk goes."""
    if image.format == "raw":
        return image.size_bytes, lambda stored: stored
    options = image.disk.image_options if image.disk.format == "qcow2" else {}
    cluster = cluster_bytes(options, image.size_bytes)
    made = like(image.size_bytes, allocated_clusters(disk_map, cluster), options, cluster)
    return made.length, made.placed


class Digest:
    """Of the bytes of a volume, alike for holes and for zeroes, however they are cut."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._cell = bytearray()
        self._zeroes = 0

    def of(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        """The same pieces, counted as they go by."""
        for piece in pieces:
            if isinstance(piece, Hole):
                self._hole(piece.length)
            else:
                self._data(memoryview(piece))
            yield piece

    def value(self) -> bytes:
        self._end_cell()
        self._hash.update(b"%d" % self._zeroes)
        return self._hash.digest()

    def _hole(self, length: int) -> None:
        if self._cell:
            first = min(length, _CELL_BYTES - len(self._cell))
            self._data(memoryview(bytes(first)))
            length -= first
        cells, rest = divmod(length, _CELL_BYTES)
        self._zeroes += cells
        if rest:
            self._cell += bytes(rest)

    def _data(self, data: memoryview) -> None:
        while len(data):
            count = min(len(data), _CELL_BYTES - len(self._cell))
            self._cell += data[:count]
            data = data[count:]
            if len(self._cell) == _CELL_BYTES:
                self._end_cell()

    def _end_cell(self) -> None:
        """Cells of zeroes are counted, others are taken with the number of those before."""
        if not self._cell:
            return
        if len(self._cell) == _CELL_BYTES and not np.frombuffer(self._cell, dtype=np.uint8).any():
            self._zeroes += 1
        else:
            self._hash.update(b"%d:" % self._zeroes + self._cell)
            self._zeroes = 0
        self._cell = bytearray()


def allocated_clusters(disk_map: DiskMap, cluster: int) -> Bits:
    """A bit for each cluster of the disk that holds anything. Reads every leaf."""
    per_cluster = cluster // BLOCK_BYTES
    packed = []
    for first in range(0, disk_map.leaves, WINDOW_LEAVES):
        window = load_window(disk_map, first, WINDOW_LEAVES)
        bits = np.zeros(-(-window.blocks // per_cluster), dtype=np.bool_)
        for start, blocks in window.stored():
            bits[start // per_cluster : -(-(start + blocks) // per_cluster)] = True
        packed.append(np.packbits(bits))
    return np.concatenate([*packed, np.zeros(0, dtype=np.uint8)])


def _told(
    stored: Iterator[tuple[int, memoryview]], progress: Progress
) -> Iterator[tuple[int, memoryview]]:
    for offset, data in stored:
        yield offset, data
        progress.advance(len(data))


def _traced(pieces: Iterator[Piece], begun: Callable[[], None]) -> Iterator[Piece]:
    """``begun`` is called when some of the data has been sent."""
    for piece in pieces:
        yield piece
        if begun is not _nothing and not isinstance(piece, Hole):
            begun()
            begun = _nothing


def _nothing() -> None:
    pass
