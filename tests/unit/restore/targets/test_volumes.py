"""Disks arrive in volumes whole, or not at all."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drvm.chunker.blocks import LEAF_BYTES
from drvm.core.clock import SystemClock
from drvm.core.errors import DamageFound, HostError, HostUnreachable, RestoreError
from drvm.core.process import SystemProcesses
from drvm.core.progress import NoProgress, no_trace
from drvm.core.units import MIB
from drvm.host.storage import Hole, Piece
from drvm.repository.layout import pack_object
from drvm.restore.targets.images import PlannedImage
from drvm.restore.targets.volumes import Digest, VolumeRestorer
from tests.fakes.memory_storage import EXTENT_BYTES, MemoryStorage
from tests.unit.repository.conftest import Vault, cheap_key_derivation, new_vault
from tests.unit.repository.test_round_trip import noise

__all__ = ["cheap_key_derivation"]  # a fixture

CONTENT = noise(2 * MIB) + bytes(LEAF_BYTES) + noise(MIB + 700, 1)
WHOLE = CONTENT + bytes(-len(CONTENT) % 512)


@pytest.fixture
def vault() -> Vault:
    vault = new_vault()
    vault.save([CONTENT], step=1 << 24)
    return vault


def planned(vault: Vault, storage: MemoryStorage, image_format: str) -> PlannedImage:
    (point,) = vault.repository.points().points
    root = "/dev" if storage.block else "/pools"
    path = Path(root, "default", f"vm-vda-0123456789ab.{image_format}")
    kind = "logical" if storage.block else "dir"
    disk = point.manifest.disks[0]
    return PlannedImage(disk, path, image_format, pool="default", pool_kind=kind)


def restored(vault: Vault, storage: MemoryStorage, image: PlannedImage, **options: Any) -> int:
    restorer = VolumeRestorer(vault.repository, storage, SystemClock(), **options)
    return restorer.restore(image, NoProgress(), no_trace)


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_a_disk_arrives_as_it_was(vault, tmp_path, image_format, verify):
    storage = MemoryStorage()
    image = planned(vault, storage, image_format)
    assert restored(vault, storage, image, verify=verify) >= 3 * MIB
    made, plain = tmp_path / "made", tmp_path / "plain"
    held = storage.pools["default"][image.path.name]
    size_bytes = int.from_bytes(held[24:32]) if image_format == "qcow2" else len(held)
    assert size_bytes == len(WHOLE)
    made.write_bytes(held)
    plain.write_bytes(WHOLE)
    argv = ["qemu-img", "compare", "-q", "-f", image_format, "-F", "raw"]
    SystemProcesses().run([*argv, str(made), str(plain)], timeout_s=60)


def test_a_device_is_written_to_its_end(vault):
    """A double stands for a logical pool: there is no device-mapper where this runs."""
    storage = MemoryStorage(block=True)
    image = planned(vault, storage, "raw")
    restored(vault, storage, image)
    held = storage.pools["default"][image.path.name]
    assert held[: len(WHOLE)] == WHOLE
    assert len(held) % EXTENT_BYTES == 0 and not any(held[len(WHOLE) :])


def test_a_volume_that_exists_is_left_alone(vault):
    storage = MemoryStorage()
    image = planned(vault, storage, "raw")
    storage.pools["default"][image.path.name] = bytearray(b"somebody's")
    with pytest.raises(RestoreError, match="exists already"):
        restored(vault, storage, image)
    assert storage.pools["default"][image.path.name] == b"somebody's"


def test_a_volume_in_another_place_than_planned_is_refused_and_removed(vault):
    storage = MemoryStorage()
    image = planned(vault, storage, "raw")
    elsewhere = dataclasses.replace(image, path=Path("/elsewhere", image.path.name))
    with pytest.raises(RestoreError, match="came to be"):
        restored(vault, storage, elsewhere)
    assert storage.names("default") == frozenset()


def test_damage_leaves_no_volume(vault):
    storage = MemoryStorage()
    image = planned(vault, storage, "qcow2")
    for name in sorted(vault.repository.disk_map(image.disk).packs()):
        data = bytearray(vault.store.get(pack_object(name)))
        data[40] ^= 1
        vault.store.delete(pack_object(name))
        vault.store.put(pack_object(name), bytes(data))
    with pytest.raises(DamageFound):
        restored(vault, storage, image)
    assert storage.names("default") == frozenset()


@pytest.mark.parametrize("error", [HostError("no room"), HostUnreachable("gone")])
def test_a_failed_upload_is_told_by_its_kind_and_leaves_no_volume_where_it_can(vault, error):
    def before(operation: str, *_: str) -> None:
        if operation == "upload":
            raise error

    storage = MemoryStorage(before=before)
    kind = HostUnreachable if isinstance(error, HostUnreachable) else RestoreError
    with pytest.raises(kind, match=r"disk vda can't be restored: (no room|gone)"):
        restored(vault, storage, planned(vault, storage, "raw"))
    assert len(storage.names("default")) == (kind is HostUnreachable), "a lost host is not asked"


def test_a_volume_that_reads_back_as_something_else_is_found_and_removed(vault):
    storage = MemoryStorage()
    image = planned(vault, storage, "raw")

    def before(operation: str, *_: str) -> None:
        if operation == "download":
            storage.pools["default"][image.path.name][MIB] ^= 1

    storage.before = before
    with pytest.raises(RestoreError, match="does not read back"):
        restored(vault, storage, image, verify=True)
    assert storage.names("default") == frozenset()


def cut(data: bytes, random_: random.Random) -> list[Piece]:
    """In pieces of any length; those of zeroes are holes, at times."""
    pieces: list[Piece] = []
    while data:
        count = random_.choice([1, 100, 4096, 65536, 200_000])
        part, data = data[:count], data[count:]
        pieces.append(part if any(part) or random_.random() < 0.3 else Hole(len(part)))
    return pieces


@given(
    st.lists(st.tuples(st.booleans(), st.integers(1, 300_000)), min_size=1, max_size=6),
    st.integers(0, 1 << 32),
    st.integers(0, 1 << 30),
)
def test_digests_know_the_bytes_and_not_how_they_are_cut(parts, seed, place):
    random_ = random.Random(seed)
    data = b"".join(random_.randbytes(n) if full else bytes(n) for full, n in parts)

    def digest(content: bytes) -> bytes:
        made = Digest()
        for _ in made.of(cut(content, random_)):
            pass
        return made.value()

    assert digest(data) == digest(data)
    at = place % len(data)
    other = bytearray(data)
    other[at] ^= 1
    assert digest(bytes(other)) != digest(data)
    assert digest(data + bytes(1)) != digest(data)
