"""File systems of drvm's own that fill up or can't be written: nothing is begun without a journal,
and nothing that was begun waits for one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from drvm.core.errors import CaptureError, HostError
from drvm.core.process import Processes
from drvm.lab import guest as lab
from drvm.snapshot.parts import Parts
from tests.bare import Bare, bare_machine
from tests.capturing import assert_back_on_its_disks, capture, digest, make_parts
from tests.guests import unique_name
from tests.loops import loop_device
from tests.small import fill, small_file_system

pytestmark = pytest.mark.guest

SMALL_BYTES = 256 * 1024


@pytest.fixture(scope="module")
def machine(libvirt_uri: str, processes: Processes) -> Iterator[Bare]:
    with bare_machine(processes, "state") as made:
        yield made


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    with small_file_system(tmp_path / "state", SMALL_BYTES) as directory:
        yield directory


@pytest.fixture
def parts(libvirt_uri: str, state: Path, processes: Processes) -> Parts:
    return make_parts(libvirt_uri, state, processes)


def read_only(state: Path, processes: Processes) -> None:
    processes.run(["mount", "-o", "remount,ro", str(state)], timeout_s=30)


@pytest.mark.parametrize("why", ["full", "read-only"])
def test_without_a_journal_nothing_is_touched(
    why: str, machine: Bare, parts: Parts, state: Path, processes: Processes
) -> None:
    if why == "full":
        fill(state, 0)
    else:
        read_only(state, processes)
    with pytest.raises(CaptureError, match="can't be written") as raised:  # noqa: SIM117
        with capture(parts, machine.name):
            pytest.fail("captured")
    assert "state_dir" in raised.value.hint
    assert_back_on_its_disks(machine, parts)


def test_a_journal_that_fills_up_meanwhile_keeps_no_guest_on_its_overlay(
    machine: Bare, parts: Parts, state: Path
) -> None:
    with capture(parts, machine.name) as frozen:
        fill(state, 0)
        machine.io("vda", "write -P 70 1M 1M")
        assert len({digest(disk) for disk in frozen.disks}) >= 1
    assert_back_on_its_disks(machine, parts)
    machine.io("vda", "read -P 70 1M 1M")


@pytest.mark.long
@pytest.mark.parametrize("why", ["full", "read-only"])
def test_a_directory_for_overlays_that_takes_none_costs_the_guest_nothing(
    why: str, libvirt_uri: str, tmp_path: Path, processes: Processes
) -> None:
    image = tmp_path / "device.raw"
    processes.run(["qemu-img", "create", "-q", "-f", "raw", str(image), "8M"], timeout_s=30)
    overlays = lab.IMAGES / unique_name("overlays")
    with (
        small_file_system(overlays, SMALL_BYTES),
        loop_device(image, processes) as device,
        bare_machine(processes, "device", devices={"vdc": device}) as machine,
    ):
        made = make_parts(libvirt_uri, tmp_path / "state", processes)
        parts = dataclasses.replace(made, overlay_dir=overlays, overlay_reserve_bytes=0)
        if why == "full":
            fill(overlays, 0)
        else:
            read_only(overlays, processes)
        with pytest.raises(HostError), capture(parts, machine.name):
            pytest.fail("captured")
        assert_back_on_its_disks(machine, parts)
        assert not any("drvm-" in path.name for path in overlays.iterdir())
