"""An interrupted restore onto a block device goes on, whatever the device held before."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from drvm.chunker.blocks import LEAF_BYTES
from drvm.core.errors import Interrupted
from drvm.core.process import SystemProcesses
from drvm.core.progress import NoProgress, Trace, no_trace
from drvm.core.units import MIB
from drvm.host.rawfile import RawFileWriter
from drvm.restore.targets.block_device import DeviceRestorer, planned_device
from drvm.restore.targets.images import PlannedImage
from tests.killing import end_at, killed_at
from tests.loops import loop_device
from tests.unit.repository.conftest import Vault, cheap_key_derivation, new_vault
from tests.unit.repository.test_round_trip import noise

__all__ = ["cheap_key_derivation"]  # a fixture

LONG = pytest.mark.long
CONTENT = noise(9 * MIB) + bytes(LEAF_BYTES) + noise(5 * MIB + 700, 1)
STORED = 14 * MIB + 4096
WHOLE = CONTENT + bytes(2 * MIB - 700)


@pytest.fixture(scope="module")
def vault() -> Vault:
    """Tests change nothing in it."""
    vault = new_vault()
    vault.save([CONTENT], step=1 << 24)
    return vault


@pytest.fixture
def image(vault: Vault, tmp_path: Path) -> Iterator[PlannedImage]:
    """Onto a device that is larger than the disk, and full of something else."""
    (tmp_path / "device").write_bytes(b"\xaa" * len(WHOLE))
    (point,) = vault.repository.points().points
    with loop_device(tmp_path / "device", SystemProcesses()) as device:
        yield planned_device(point.manifest.disks[0], device, point.manifest)


def restored(vault: Vault, image: PlannedImage, trace: Trace = no_trace) -> int:
    return DeviceRestorer(vault.repository, trace).restore(image, NoProgress())


@pytest.mark.parametrize(
    ("step", "most"),
    [
        ("begun", STORED),
        pytest.param("written", 0, marks=LONG),
        ("durable", 0),
    ],
)
def test_a_restore_that_was_killed_at_any_step_goes_on(vault, image, step, most):
    killed_at(f"device-{step}-vda", lambda trace: restored(vault, image, trace))
    assert restored(vault, image) <= most
    assert image.path.read_bytes() == WHOLE


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_what_was_written_is_not_written_again(vault, image, share, monkeypatch):
    original, done = RawFileWriter.write, 0

    def write(self: RawFileWriter, offset: int, data: memoryview) -> None:
        nonlocal done
        original(self, offset, data)
        done += len(data)
        if done > share * STORED:
            raise Interrupted("by a signal")

    with monkeypatch.context() as patch:
        patch.setattr(RawFileWriter, "write", write)
        with pytest.raises(Interrupted):
            restored(vault, image)
    again = restored(vault, image)
    assert again + done <= STORED + MIB, "a piece may be under way in each thread"
    assert image.path.read_bytes() == WHOLE


def test_garbage_on_it_is_healed(vault, image):
    restored(vault, image)
    with image.path.open("r+b") as stream:
        for at in (3 * MIB + 123, 20 * MIB, len(CONTENT) - 900, len(CONTENT) + 5000):
            stream.seek(at)
            stream.write(b"?" * 900)
    assert restored(vault, image) <= 3 * 4096
    assert image.path.read_bytes() == WHOLE


@LONG
@pytest.mark.parametrize("delay_ms", range(0, 40, 2))
def test_a_restore_that_is_killed_at_any_time_and_again_ends_right(vault, image, delay_ms):
    for _ in range(3):
        work = lambda trace: restored(vault, image, trace)  # noqa: E731
        end_at("device-begun-vda", work, delay_ms / 1000 or 0.0005)
    restored(vault, image)
    assert image.path.read_bytes() == WHOLE
