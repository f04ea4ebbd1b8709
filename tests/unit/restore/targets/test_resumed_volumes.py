"""An interrupted restore into a volume goes on behind what of it is right, whatever it holds."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from drvm.chunker.blocks import LEAF_BYTES
from drvm.core.clock import SystemClock
from drvm.core.errors import Interrupted, RestoreError
from drvm.core.process import SystemProcesses
from drvm.core.progress import NoProgress, no_trace
from drvm.core.units import MIB
from drvm.host.storage import Hole, Piece
from drvm.restore.targets.images import PlannedImage
from drvm.restore.targets.volume_proof import written_out
from drvm.restore.targets.volumes import VolumeRestorer
from tests.fakes.memory_storage import MemoryStorage
from tests.unit.repository.conftest import Vault, cheap_key_derivation, new_vault
from tests.unit.repository.test_round_trip import noise

__all__ = ["cheap_key_derivation"]  # a fixture

LONG = pytest.mark.long
FORMATS = ("raw", "qcow2")
LEAVES = 3
EACH = MIB
CONTENT = b"".join(
    noise(EACH, n) + bytes(LEAF_BYTES - 2 * EACH) + noise(EACH, 100 + n) for n in range(LEAVES - 1)
) + noise(2 * MIB + 700, 99)
STORED = 2 * LEAVES * MIB + 4096


@pytest.fixture(scope="module")
def vault() -> Vault:
    """Tests change nothing in it."""
    vault = new_vault()
    vault.save([CONTENT], step=1 << 24)
    return vault


class Breaking(MemoryStorage):
    """An upload is broken off when ``most`` bytes of data have come."""

    most = 1 << 60
    taken = 0

    def upload(
        self, pool: str, name: str, length: int, pieces: Iterable[Piece], *, offset: int = 0
    ) -> None:
        def until() -> Iterable[Piece]:
            for piece in pieces:
                if not isinstance(piece, Hole):
                    self.taken += len(piece)
                yield piece
                if self.taken > self.most:
                    raise Interrupted("by a signal")

        super().upload(pool, name, length, until(), offset=offset)


def planned(vault: Vault, storage: MemoryStorage, image_format: str) -> PlannedImage:
    (point,) = vault.repository.points().points
    root = "/dev" if storage.block else "/pools"
    path = Path(root, "default", f"vm-vda-0123456789ab.{image_format}")
    kind = "logical" if storage.block else "dir"
    disk = point.manifest.disks[0]
    return PlannedImage(disk, path, image_format, pool="default", pool_kind=kind)


def restored(vault: Vault, storage: MemoryStorage, image: PlannedImage, **options: Any) -> int:
    restorer = VolumeRestorer(vault.repository, storage, SystemClock(), **options)
    return restorer.restore(image, NoProgress(), no_trace, resumed=True)


def held(storage: MemoryStorage, image: PlannedImage) -> bytearray:
    return storage.pools["default"][image.path.name]


@pytest.fixture(scope="module")
def whole(vault: Vault) -> dict[str, bytes]:
    """The bytes of the volume, by its format."""
    made = {}
    for image_format in FORMATS:
        storage = MemoryStorage()
        image = planned(vault, storage, image_format)
        restored(vault, storage, image)
        made[image_format] = bytes(held(storage, image))
    return made


def test_the_volumes_are_the_disk(whole, tmp_path):
    for image_format in FORMATS:
        (tmp_path / image_format).write_bytes(whole[image_format])
    argv = ["qemu-img", "compare", "-q", "-f", "raw", "-F", "qcow2"]
    SystemProcesses().run([*argv, *(str(tmp_path / one) for one in FORMATS)], timeout_s=60)
    assert whole["raw"][: len(CONTENT)] == CONTENT


@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize(
    ("share", "verify"),
    [(0.5, False), *(pytest.param(n, v, marks=LONG) for n in (0.02, 0.6, 0.9) for v in (0, 1))],
)
def test_what_was_written_is_not_written_again(vault, whole, image_format, share, verify):
    """But for the leaf in which it broke off."""
    storage = Breaking()
    image = planned(vault, storage, image_format)
    storage.most = int(share * STORED)
    with pytest.raises(Interrupted):
        restored(vault, storage, image)
    first, storage.most = storage.taken, 1 << 60
    written = restored(vault, storage, image, verify=bool(verify))
    assert written <= STORED - first + 3 * MIB
    assert storage.taken - first <= STORED - first + 8 * MIB
    assert held(storage, image) == whole[image_format]


@pytest.mark.parametrize("image_format", FORMATS)
def test_a_volume_that_is_whole_is_only_read(vault, whole, image_format):
    storage = MemoryStorage()
    image = planned(vault, storage, image_format)
    storage.pools["default"][image.path.name] = bytearray(whole[image_format])
    calls: list[str] = []
    storage.before = lambda operation, *_: calls.append(operation)
    assert restored(vault, storage, image) == 0
    assert "upload" not in calls and held(storage, image) == whole[image_format]


@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(n, marks=LONG) for n in range(2, 16))])
def test_nothing_that_it_holds_is_believed(vault, whole, image_format, seed):
    """Garbage anywhere, also where there must be nothing; cut off anywhere; of another size."""
    source, storage = random.Random(seed), MemoryStorage()
    image = planned(vault, storage, image_format)
    there = bytearray(whole[image_format])
    for _ in range(source.choice([0, 1, 3])):
        at = source.choice([source.randrange(len(there)), source.randrange(1 << 20)])
        there[at : at + 5000] = source.choice([b"?" * 5000, bytes(5000)])
    cut = source.choice([len(there), source.randrange(len(there)), len(there) + 5000, 0])
    there = there[:cut] + bytes(max(0, cut - len(there)))
    storage.pools["default"][image.path.name] = there
    restored(vault, storage, image)
    assert held(storage, image) == whole[image_format]


@pytest.mark.parametrize("share", [0.5, pytest.param(0.99, marks=LONG)])
def test_a_device_is_gone_on_with(vault, whole, share):
    """A double stands for a logical pool: there is no device-mapper where this runs."""
    storage = Breaking(block=True)
    image = planned(vault, storage, "raw")
    storage.most = int(share * STORED)
    with pytest.raises(Interrupted):
        restored(vault, storage, image)
    storage.most = 1 << 60
    assert restored(vault, storage, image) <= STORED * (1 - share) + 3 * MIB
    there = held(storage, image)
    assert there[: len(whole["raw"])] == whole["raw"] and not any(there[len(whole["raw"]) :])


def test_an_interrupted_restore_leaves_its_volume_and_a_failed_one_none(vault):
    for error, left in ((Interrupted("by a signal"), 1), (RestoreError("no"), 0)):
        storage = MemoryStorage()

        def before(operation: str, *_: str, error: Exception = error) -> None:
            if operation == "upload":
                raise error

        storage.before = before
        with pytest.raises(type(error)):
            restored(vault, storage, planned(vault, storage, "raw"))
        assert len(storage.pools["default"]) == left


@pytest.mark.parametrize("end", [0, 5, 100, 150, 1 << 22, 1 << 30])
def test_holes_are_written_as_far_as_something_may_be_there(end):
    pieces: list[Piece] = [Hole(100), b"x" * 50, Hole(3 << 20), b"y", Hole(7)]
    out = list(written_out(pieces, 0, end))
    flat = [b"\0" * p.length if isinstance(p, Hole) else bytes(p) for p in pieces]
    assert b"".join(bytes(p.length) if isinstance(p, Hole) else bytes(p) for p in out) == b"".join(
        flat
    )
    at = 0
    for piece in out:
        length = piece.length if isinstance(piece, Hole) else len(piece)
        assert not isinstance(piece, Hole) or at >= min(end, at + 1)
        at += length
