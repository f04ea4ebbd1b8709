"""A disk goes onto a device that nobody uses, also when its turn comes: whole devices and parts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from drvm.core.process import SystemProcesses
from drvm.host.storage import Volume
from drvm.restore.targets import block_device
from drvm.restore.targets.block_device import device_problems
from drvm.restore.targets.images import PlannedImage
from tests.fakes.chain_host import FakeDomain, FakeHost
from tests.loops import loop_device

MIB = 1 << 20
UUID = "00000000-0000-4000-8000-000000000001"


class Host(FakeHost):
    """With one pool, whose volume ``lv`` is ``device``."""

    remote = False
    device = ""

    @property
    def storage(self) -> Any:
        def volume(pool: str, name: str) -> Volume | None:
            there = (pool, name) == ("vg", "lv")
            return Volume(name, self.device, False, MIB, MIB) if there else None

        return SimpleNamespace(volume=volume)


@pytest.fixture
def devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, Path]]:
    """A device and, as the kernel tells it, a partition of it."""
    for name in ("whole", "part"):
        (tmp_path / name).write_bytes(bytes(MIB))
    processes = SystemProcesses()
    with (
        loop_device(tmp_path / "whole", processes) as whole,
        loop_device(tmp_path / "part", processes) as part,
    ):
        inner = tmp_path / "sys" / "sda" / "sda1"
        inner.mkdir(parents=True)
        (inner / "partition").write_text("1\n")
        (inner.parent / "dev").write_text(f"{number(whole)}\n")
        told = tmp_path / "sys" / "numbers"
        told.mkdir()
        (told / number(whole)).symlink_to(inner.parent)
        (told / number(part)).symlink_to(inner)
        monkeypatch.setattr(block_device, "_NUMBERS", told)
        yield whole, part


def number(device: Path) -> str:
    status = device.stat()
    return f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"


def image(target: str, device: Path) -> PlannedImage:
    disk: Any = SimpleNamespace(target=target, size_bytes=MIB)
    return PlannedImage(disk, device, "raw", device=True)


def problems(host: Host, *images: PlannedImage, replaced: str | None = None) -> str:
    there: Any = host
    return "; ".join(device_problems(images, there, replaced))


@pytest.mark.parametrize("turned", [False, True])
def test_what_overlaps_the_disk_of_a_machine_is_refused(
    devices: tuple[Path, Path], turned: bool
) -> None:
    mine, theirs = reversed(devices) if turned else devices
    host = Host(FakeDomain("web1", UUID, {"vda": [str(theirs)]}))
    assert "'web1' has it as a disk" in problems(host, image("vda", mine))
    assert problems(host, image("vda", mine), replaced=UUID) == ""
    assert problems(Host(), image("vda", mine)) == ""


def test_two_disks_never_overlap(devices: tuple[Path, Path]) -> None:
    whole, part = devices
    told = problems(Host(), image("vda", whole), image("vdb", part))
    assert told.count("another disk goes there too") == 2


def test_a_machine_that_names_a_volume_has_its_device(devices: tuple[Path, Path]) -> None:
    domain = FakeDomain("web1", UUID, {})
    xml = "<domain><devices><disk><source pool='vg' volume='lv'/></disk></devices></domain>"
    domain.xml = lambda **_: xml  # type: ignore[method-assign]
    host = Host(domain)
    host.device = str(devices[1])
    assert "'web1' has it as a disk" in problems(host, image("vda", devices[1]))
