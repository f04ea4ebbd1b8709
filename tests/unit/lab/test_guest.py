from __future__ import annotations

import stat
from pathlib import Path

import pytest
from defusedxml.ElementTree import fromstring

from drvm.lab.guest import domain_xml, wait_for_text, workspace
from tests.fakes.clock import FakeClock


def test_a_definition_names_both_disks_with_their_formats_and_discards(tmp_path: Path) -> None:
    root = fromstring(domain_xml("a", tmp_path, virt_type="qemu"))
    disks = [
        (
            disk.find("target").get("dev"),
            disk.find("driver").get("type"),
            disk.find("source").get("file"),
        )
        for disk in root.iter("disk")
    ]
    assert disks == [
        ("vda", "qcow2", f"{tmp_path}/root.qcow2"),
        ("vdb", "raw", f"{tmp_path}/data.raw"),
    ]
    assert [disk.find("driver").get("discard") for disk in root.iter("disk")] == ["unmap"] * 2
    assert root.find("devices/interface") is None


def test_a_machine_with_uefi_has_no_secure_boot_and_a_tpm(tmp_path: Path) -> None:
    root = fromstring(domain_xml("a", tmp_path, virt_type="qemu", uefi=True))
    feature = root.find("os/firmware/feature")
    assert root.find("os").get("firmware") == "efi"
    assert feature.attrib == {"enabled": "no", "name": "secure-boot"}
    assert root.find("devices/tpm/backend").attrib == {"type": "emulator", "version": "2.0"}
    assert fromstring(domain_xml("a", tmp_path, virt_type="qemu")).find("devices/tpm") is None


def test_names_with_markup_in_them_stay_names() -> None:
    xml = domain_xml("a<b>&'\"", Path("/tmp/'<x>"), virt_type="kvm", network="n'et")
    root = fromstring(xml)
    assert root.findtext("name") == "a<b>&'\""
    assert root.find("devices/interface/source").get("network") == "n'et"
    assert root.find("devices/disk/source").get("file") == "/tmp/'<x>/root.qcow2"


def test_a_workspace_lets_others_pass_but_not_list_and_goes_with_all_it_holds(
    tmp_path: Path,
) -> None:
    with pytest.raises(KeyError), workspace("lab", tmp_path) as directory:
        assert stat.S_IMODE(directory.stat().st_mode) == 0o711
        (directory / "file").write_text("x")
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_waiting_for_text_ends_when_it_stands_in_the_file(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"\xff boot\nready\n")
    assert wait_for_text(log, "ready", 0, FakeClock())


def test_waiting_for_text_ends_when_the_time_is_up(tmp_path: Path) -> None:
    clock = FakeClock()
    assert not wait_for_text(tmp_path / "absent", "ready", 5, clock)
    assert 5 <= clock.monotonic_s() < 6
