"""The OVF beside exported disks: valid by the standard, and never more than the allow list."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import pytest

from drvm.core.errors import RestoreError
from drvm.core.process import SystemProcesses
from drvm.repository.manifest import Disk, Manifest
from drvm.restore.export import digests
from drvm.restore.export.machine import ExportedMachine, exported_machine
from drvm.restore.export.ovf import DescribedDisk, envelope
from drvm.restore.machine.source import parse
from tests.unit.restore.export.envelopes import VMW, checked_envelope, items
from tests.unit.restore.hostile import DISARMED, REFUSED
from tests.unit.restore.machines import NAMES, images, machine

WHEN = "2026-01-01T00:00:00Z"


def point(definition: str, targets: tuple[str, ...], **more: object) -> Manifest:
    disks = tuple(Disk(target, 1 << 20, "qcow2", "full-read", 0, 0, 0) for target in targets)
    return Manifest(
        id="0123456789abcdef",
        vm="web1",
        vm_uuid="11111111-2222-4333-8444-555555555555",
        created=WHEN,
        finished=WHEN,
        consistency="offline",
        engine="test",
        host="here",
        drvm_version="0",
        disks=disks,
        **more,  # type: ignore[arg-type]
    )


def exported(definition: str, targets: tuple[str, ...], **more: object) -> ExportedMachine:
    manifest = point(definition, targets, **more)
    return exported_machine(definition, manifest, "web1", manifest.disks)


def write(
    directory: Path, one: ExportedMachine, image_format: str = "vdi", disks: int | None = None
) -> Path:
    described = []
    for target in one.disks[:disks]:
        path = directory / f"web1-{target}.{image_format}"
        argv = ["qemu-img", "create", "-q", "-f", image_format, str(path), "1M"]
        SystemProcesses().run(argv, timeout_s=60)
        file_bytes = path.stat().st_size
        described.append(DescribedDisk(target, path.name, image_format, 1 << 20, file_bytes))
    ovf = directory / "web1.ovf"
    ovf.write_bytes(envelope(one, described))
    files = [ovf, *(directory / disk.name for disk in described)]
    sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    (directory / "web1.mf").write_bytes(digests.written(sums))
    return ovf


@pytest.mark.parametrize("name", NAMES)
def test_machines_as_libvirt_writes_them_become_valid_packages(name, tmp_path):
    one = exported(machine(name), tuple(images(name)))
    root = checked_envelope(write(tmp_path, one))
    tree = parse(machine(name))
    assert items(root, 3)[0]["VirtualQuantity"] == (tree.findtext("vcpu") or "").strip()
    assert len(items(root, 17)) == len(images(name))
    kinds = [card.get("type") for card in tree.iterfind("devices/interface")]
    on_networks = [kind for kind in kinds if kind in ("network", "bridge", "direct")]
    assert len(on_networks) <= len(items(root, 10)) <= len(kinds)
    text = (tmp_path / "web1.ovf").read_text() + "\n".join(one.notes)
    assert "/orig" not in text


def test_uefi_with_secure_boot_and_topology_are_said_as_vmware_says_them(tmp_path):
    xml = """<domain type='kvm'><name>a</name><memory unit='GiB'>3</memory><vcpu>8</vcpu>
      <os firmware='efi'><type arch='x86_64' machine='q35'>hvm</type>
      <firmware><feature enabled='yes' name='secure-boot'/></firmware></os>
      <cpu mode='host-model'><topology sockets='2' dies='1' cores='2' threads='2'/></cpu>
      <devices><disk type='file' device='disk'><source file='/x'/><target dev='vda' bus='virtio'/>
      </disk><interface type='network'><mac address='52:54:00:00:00:01'/><source network='lan'/>
      <model type='virtio'/></interface><tpm model='tpm-crb'><backend type='emulator'/></tpm>
      </devices></domain>"""
    one = exported(xml, ("vda",), guest={"os_id": "debian"})
    assert (one.memory_mib, one.cpus, one.cores_per_socket) == (3072, 8, 4)
    assert (one.efi, one.secure_boot, one.system) == (True, True, "linux")
    root = checked_envelope(write(tmp_path, one))
    config = {
        element.get(f"{VMW}key"): element.get(f"{VMW}value")
        for element in root.iter(f"{VMW}Config")
    }
    assert config == {"firmware": "efi", "bootOptions.efiSecureBootEnabled": "true"}
    assert root.find(f".//{VMW}CoresPerSocket").text == "4"
    words = "\n".join(one.notes)
    for lost in ("TPM", "52:54:00:00:00:01", "SATA", "BOOTX64.EFI", "E1000"):
        assert lost in words


def test_more_disks_than_a_controller_takes_get_a_second_one(tmp_path):
    targets = tuple(f"vd{chr(97 + n // 26)}{chr(97 + n % 26)}" for n in range(31))
    disks = "".join(
        "<disk type='file' device='disk'><source file='/x'/>"
        f"<target dev='{target}' bus='virtio'/></disk>"
        for target in targets
    )
    xml = f"""<domain type='kvm'><name>a</name><memory>262144</memory><vcpu>1</vcpu>
      <os><type>hvm</type></os><devices>{disks}</devices></domain>"""
    root = checked_envelope(write(tmp_path, exported(xml, targets)))
    assert len(items(root, 20)) == 2


def test_a_hostile_network_name_gets_into_no_description(tmp_path):
    xml = """<domain type='kvm'><name>a</name><memory>262144</memory><vcpu>99999999</vcpu>
      <os><type>hvm</type></os><devices><interface type='network'>
      <source network='a&quot;/&gt;&lt;x'/></interface><interface type='bridge'>
      <source bridge='br0'/></interface></devices></domain>"""
    one = exported(xml, ())
    assert set(one.networks) <= {"network", "br0"}
    assert one.cpus == 1
    assert dataclasses.asdict(one)["disks"] == ()


@pytest.mark.parametrize("name", sorted(DISARMED))
def test_of_a_hostile_definition_nothing_gets_into_the_description(name):
    text = envelope(exported(DISARMED[name], ("vda",)), []).decode()
    assert "/orig/" not in text
    assert not [word for word in ("shadow", "evil", "10.9.8.7") if word in text]


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_can_not_be_read_is_not_described(name):
    with pytest.raises(RestoreError):
        exported(REFUSED[name], ("vda",))


def test_a_machine_without_a_size_of_memory_is_refused():
    xml = """<domain type='kvm'><name>a</name><memory unit='KiB'>0</memory>
      <os><type>hvm</type></os><devices/></domain>"""
    with pytest.raises(RestoreError, match="memory"):
        exported(xml, ())
