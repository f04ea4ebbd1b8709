"""Images come back whole and sparse, or not at all; nothing of an attempt stays behind."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from drvm.chunker.blocks import LEAF_BYTES
from drvm.core.clock import SystemClock
from drvm.core.errors import DamageFound, HostError, RestoreError
from drvm.core.process import SystemProcesses
from drvm.core.progress import NoProgress
from drvm.core.units import MIB
from drvm.host.rawfile import RawFileWriter
from drvm.repository.layout import pack_object, point_object
from drvm.restore.targets.images import ImageRestorer, PlannedImage
from drvm.upkeep.rewrite import rewrite_point
from tests.unit.repository.conftest import Vault, cheap_key_derivation, new_vault
from tests.unit.repository.test_round_trip import noise

__all__ = ["cheap_key_derivation"]  # a fixture

CONTENT = noise(2 * MIB) + bytes(LEAF_BYTES) + noise(MIB + 700, 1)


@pytest.fixture
def vault() -> Vault:
    vault = new_vault()
    vault.save([CONTENT], step=1 << 24)
    return vault


class Counted(NoProgress):
    def __init__(self) -> None:
        self.total = self.done = 0
        self._lock = threading.Lock()

    def stage(self, title: str, total_bytes: int | None = None) -> None:
        assert total_bytes is not None
        self.total += total_bytes

    def advance(self, done_bytes: int) -> None:
        with self._lock:
            self.done += done_bytes


def planned(vault: Vault, directory: Path, image_format: str) -> PlannedImage:
    (point,) = vault.repository.points().points
    return PlannedImage(point.manifest.disks[0], directory / f"disk.{image_format}", image_format)


def restorer(vault: Vault) -> ImageRestorer:
    return ImageRestorer(vault.repository, SystemProcesses(), SystemClock())


@pytest.mark.parametrize("image_format", ["raw", "qcow2", "vdi", "vhdx"])
def test_an_image_comes_back_whole_and_sparse(vault, tmp_path, image_format):
    image, progress = planned(vault, tmp_path, image_format), Counted()
    written = restorer(vault).restore(image, progress)
    assert progress.done == progress.total > written > 3 * MIB
    assert image.path.stat().st_blocks * 512 < 7 * MIB
    raw = image.path
    if image_format != "raw":
        raw = tmp_path / "raw"
        argv = ["qemu-img", "convert", "-f", image_format, "-O", "raw", str(image.path), str(raw)]
        SystemProcesses().run(argv, timeout_s=60)
    content = raw.read_bytes()
    assert content[: len(CONTENT)] == CONTENT
    assert content[len(CONTENT) :] == bytes(image.size_bytes - len(CONTENT))
    assert {path.name for path in tmp_path.iterdir()} == {image.path.name, raw.name}


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_damage_leaves_no_image(vault, tmp_path, image_format):
    for name, (data, modified) in list(vault.store.objects.items()):
        if name.startswith("packs/") and len(data) > MIB:
            vault.store.objects[name] = data[:5000] + b"?" + data[5001:], modified
    with pytest.raises(DamageFound, match="of the disk"):
        restorer(vault).restore(planned(vault, tmp_path, image_format), NoProgress())
    assert list(tmp_path.iterdir()) == []


def test_a_point_that_was_written_anew_since_it_was_planned_is_restored_as_it_is(vault, tmp_path):
    """As a collector does it that retires packs: into others, under the same id."""
    (old,) = vault.repository.points().points
    image = replace(planned(vault, tmp_path, "raw"), point=(old.manifest.vm_uuid, old.id))
    need = vault.repository.need(old.manifest)
    rewrite_point(vault.repository, old, need, level=1)
    vault.store.delete(point_object(old.manifest.vm_uuid, old.id, old.generation))
    for name in need:
        vault.store.delete(pack_object(name))
    again = vault.reopen()
    restorer(again).restore(image, NoProgress())
    assert image.path.read_bytes()[: len(CONTENT)] == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == [image.path.name]


@pytest.mark.parametrize("verb", ["__init__", "write", "flush"])
def test_an_error_of_the_target_leaves_no_image_and_no_thread(vault, tmp_path, monkeypatch, verb):
    def fails(*_: object) -> None:
        raise HostError("no room")

    monkeypatch.setattr(RawFileWriter, verb, fails)
    with pytest.raises(RestoreError, match="disk vda can't be restored: no room") as found:
        restorer(vault).restore(planned(vault, tmp_path, "raw"), NoProgress())
    assert "health" in found.value.hint
    assert list(tmp_path.iterdir()) == []
    assert not [t for t in threading.enumerate() if t.name.startswith("restore")]
