"""Restored UEFI variables meet a firmware that fits them, or the restore is refused beforehand."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from drvm.host.model import Host
from drvm.restore.machine import flash
from drvm.restore.machine.flash import rebuild_to_fit
from drvm.restore.machine.source import parse
from tests.unit.restore.machines import clone_of, machine

KIB = 1024
SPEC = dataclasses.replace(clone_of("uefi_q35"), nvram_path="/restored/nvram.fd")
SMALL, LARGE = bytes(128 * KIB), bytes(528 * KIB)


@dataclasses.dataclass
class FirmwareHost:
    chosen: Path | None
    uri: str = "qemu:///system"
    remote: bool = False

    def firmware_file(self, domain_xml: str) -> Path | None:
        return self.chosen


@pytest.fixture
def builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Firmware of two builds, with the sizes of OVMF's own."""
    found = {}
    for name, size_kib in (("2M", 2048 - 128), ("4M", 4096 - 528)):
        found[name] = tmp_path / f"OVMF_CODE_{name}.fd"
        found[name].write_bytes(bytes(size_kib * KIB))
    monkeypatch.setattr(flash, "_LOADER", flash.re.compile(f"{tmp_path}/[A-Za-z0-9_]+\\.fd"))
    return found


def original(loader: Path | str) -> str:
    xml = machine("uefi_q35")
    tree = parse(xml)
    old = tree.findtext("os/loader")
    assert old
    return xml.replace(old, str(loader))


def made(xml: str, chosen: Path | None, nvram: bytes | None) -> tuple[str | None, tuple[str, ...]]:
    """The loader that the machine is given, and the problems."""
    host: Host = FirmwareHost(chosen)  # type: ignore[assignment]
    definition, problems = rebuild_to_fit(host, xml, SPEC, nvram)
    return parse(definition.xml).findtext("os/loader"), problems


def test_a_firmware_that_fits_is_left_to_libvirt(builds: dict[str, Path]) -> None:
    for chosen, nvram in (("4M", LARGE), ("2M", SMALL)):
        assert made(original(builds["2M"]), builds[chosen], nvram)[1] == ()
        assert not made(original(builds["2M"]), builds[chosen], nvram)[0]


def test_a_machine_of_another_build_gets_that_build_where_the_target_has_it(
    builds: dict[str, Path],
) -> None:
    host: Host = FirmwareHost(builds["4M"])  # type: ignore[assignment]
    definition, problems = rebuild_to_fit(host, original(builds["2M"]), SPEC, SMALL)
    system = parse(definition.xml).find("os")
    assert system is not None
    loader = system.find("loader")
    assert loader is not None
    assert (loader.text, loader.get("readonly")) == (str(builds["2M"]), "yes")
    assert system.get("firmware") is None
    assert system.findtext("nvram") == "/restored/nvram.fd"
    assert problems == ()


@pytest.mark.parametrize(
    "loader", ["/usr/share/OVMF/../../../etc/shadow", "/etc/shadow", "/usr/share/OVMF/gone.fd", ""]
)
def test_a_build_that_the_target_lacks_is_a_problem_before_anything_is_written(
    builds: dict[str, Path], loader: str
) -> None:
    host: Host = FirmwareHost(builds["4M"])  # type: ignore[assignment]
    definition, problems = rebuild_to_fit(host, original(loader), SPEC, SMALL)
    assert len(problems) == 1 and "128.0 KiB" in problems[0] and str(builds["4M"]) in problems[0]
    assert "/etc" not in definition.xml and "/usr" not in definition.xml


def test_what_can_not_be_found_out_does_not_stand_in_the_way(builds: dict[str, Path]) -> None:
    gone = builds["4M"].with_name("gone.fd")
    for chosen, nvram in ((None, SMALL), (gone, SMALL), (builds["4M"], None)):
        assert made(original(builds["2M"]), chosen, nvram) == (None, ())


def test_variables_in_a_qcow2_count_with_the_size_that_the_guest_sees(
    builds: dict[str, Path],
) -> None:
    qcow2 = b"QFI\xfb" + bytes(20) + (528 * KIB).to_bytes(8, "big") + bytes(999)
    assert made(original(builds["2M"]), builds["4M"], qcow2)[1] == ()


@pytest.mark.parametrize(
    ("path", "usual"),
    [
        ("/usr/share/OVMF/OVMF_CODE.fd", True),
        ("/usr/share/edk2/ovmf/OVMF_CODE.fd", True),
        ("/usr/share/OVMF/../x.fd", False),
        ("/usr/share/OVMF/.x.fd", False),
        ("/usr/share/OVMFx/x.fd", False),
        ("/usr/share/OVMF/x.fd/", False),
        ("/home/me/x.fd", False),
    ],
)
def test_only_firmware_of_the_distribution_can_be_named(path: str, usual: bool) -> None:
    assert (flash._LOADER.fullmatch(path) is not None) == usual
