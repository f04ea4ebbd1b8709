"""A qcow2 that comes as a stream is sound, and the guest reads from it what was stored."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drvm.core.process import SystemProcesses
from drvm.core.units import MIB
from drvm.host.storage import Hole
from drvm.restore.targets.qcow2_file import Qcow2, cluster_bytes, gapless, like

BLOCK = 4096


def written(image: Qcow2, stored: list[tuple[int, bytes]], path: Path) -> None:
    pieces = gapless(image.placed((at, memoryview(data)) for at, data in stored), image.length)
    with path.open("wb") as file:
        for piece in pieces:
            if isinstance(piece, Hole):
                assert piece.length > 0
                file.seek(piece.length, 1)
            else:
                file.write(piece)
        file.truncate()
        assert file.tell() == image.length == path.stat().st_size


def packed(size_bytes: int, cluster: int, stored: list[tuple[int, bytes]]) -> np.ndarray:
    bits = np.zeros(-(-size_bytes // cluster), dtype=np.bool_)
    for at, data in stored:
        bits[at // cluster : -(-(at + len(data)) // cluster)] = True
    return np.packbits(bits)


def assert_sound(image: Qcow2, stored: list[tuple[int, bytes]], directory: Path) -> None:
    path, plain, back = (directory / name for name in ("made.qcow2", "plain", "back"))
    for old in (path, plain, back):
        old.unlink(missing_ok=True)
    written(image, stored, path)
    with plain.open("wb") as file:
        for at, data in stored:
            file.seek(at)
            file.write(data)
        file.truncate(image.size_bytes)
    processes = SystemProcesses()
    processes.run(["qemu-img", "check", "-q", "-f", "qcow2", str(path)], timeout_s=60)
    argv = ["qemu-img", "compare", "-q", "-f", "raw", "-F", "qcow2", str(plain), str(path)]
    processes.run(argv, timeout_s=60)


@st.composite
def disks(draw: st.DrawFn) -> tuple[int, list[tuple[int, bytes]]]:
    """A size in sectors, and ranges of whole blocks, cut at the end."""
    size_bytes = draw(st.integers(1, 4096)) * draw(st.sampled_from([512, 4096, MIB]))
    blocks = -(-size_bytes // BLOCK)
    places = draw(st.sets(st.integers(0, blocks - 1), max_size=20))
    stored, at = [], 0
    for place in sorted(places):
        if place * BLOCK < at:
            continue
        count = draw(st.integers(1, 40))
        data = random.Random(place).randbytes(min(count * BLOCK, size_bytes - place * BLOCK))
        stored.append((place * BLOCK, data))
        at = place * BLOCK + len(data)
    return size_bytes, stored


@settings(max_examples=25)
@given(disks(), st.sampled_from([16, 17, 20, 21]), st.booleans(), st.booleans())
def test_any_disk_is_read_back_from_a_sound_image(tmp_path_factory, disk, bits, extended, lazy):
    size_bytes, stored = disk
    allocated = packed(size_bytes, 1 << bits, stored)
    image = Qcow2(size_bytes, allocated, 1 << bits, extended_l2=extended, lazy_refcounts=lazy)
    assert_sound(image, stored, tmp_path_factory.getbasetemp())


def test_a_file_with_several_refcount_blocks_is_sound(tmp_path: Path) -> None:
    size_bytes = 9 << 28
    stored = [(at, b"x" * BLOCK) for at in range(0, size_bytes, 64 * 1024)]
    image = Qcow2(size_bytes, packed(size_bytes, 1 << 16, stored))
    assert image.length > 32768 * (1 << 16)
    path = tmp_path / "made.qcow2"
    written(image, stored, path)
    argv = ["qemu-img", "check", "-q", "-f", "qcow2", str(path)]
    SystemProcesses().run(argv, timeout_s=60)


def test_what_the_original_was_like_stays_within_bounds() -> None:
    assert cluster_bytes({}) == 1 << 16
    for said, made in (("512", 16), ("131072", 17), ("2097152", 21), ("999999999", 21)):
        assert cluster_bytes({"cluster_size": said}) == 1 << made
    for nonsense in ("-1", "", "9" * 5000, "²"):
        assert cluster_bytes({"cluster_size": nonsense}) == 1 << 16
    for size_bytes, made in ((1 << 44, 16), ((1 << 44) + 1, 17), (1 << 49, 21), (1 << 60, 21)):
        assert cluster_bytes({}, size_bytes) == 1 << made
    none = np.zeros(1, dtype=np.uint8)
    image = like(MIB, none, {"extended_l2": "on", "lazy_refcounts": "on"}, 1 << 17)
    assert (image.extended_l2, image.lazy_refcounts, image.cluster_bytes) == (True, True, 1 << 17)


def test_what_is_placed_twice_or_behind_the_end_is_refused() -> None:
    for placed in ([(0, b"ab"), (1, b"c")], [(3, b"ab")]):
        with pytest.raises(AssertionError):
            list(gapless([(at, memoryview(data)) for at, data in placed], 4))
