"""Definitions as libvirt writes them, each path of the original host beginning with /orig."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

from drvm.restore.machine.definition import Definition, DefinitionSpec, Identity
from drvm.restore.machine.disks import DiskImage
from drvm.restore.machine.source import parse

MARKER = "/orig/"
NAMES = ("bios_i440fx", "uefi_q35", "many_disks", "passthrough")
DISKS = {
    "bios_i440fx": ("vda",),
    "uefi_q35": ("vda",),
    "many_disks": ("vda", "sda", "sdb", "sdc", "sdd"),
    "passthrough": ("vda",),
}
CLONE = Identity("copy-of-it", "7d10c0de-0000-4000-8000-0123456789ab", keep_macs=False)

_TOP_LEVEL = (
    "name uuid genid title description metadata memory currentMemory maxMemory memtune blkiotune "
    "vcpu vcpus iothreads iothreadids defaultiothread cputune os sysinfo features cpu clock "
    "on_poweroff on_reboot on_crash on_lockfailure pm devices"
)
_DEVICES = (
    "disk controller interface serial parallel console channel input hub graphics audio sound "
    "video watchdog memballoon rng tpm panic vsock iommu memory"
)


def machine(name: str) -> str:
    return (Path(__file__).parent / f"{name}.xml").read_text()


def images(name: str) -> dict[str, DiskImage]:
    return {target: DiskImage(f"/restored/{target}.qcow2", "qcow2") for target in DISKS[name]}


def clone_of(name: str) -> DefinitionSpec:
    return DefinitionSpec(CLONE, images(name))


def assert_harmless(definition: Definition, spec: DefinitionSpec) -> ET.Element:
    """Whatever the original was: nothing in the result reaches for the host that restores."""
    domain = parse(definition.xml)
    assert MARKER not in definition.xml
    assert domain.findtext("name") == spec.identity.name
    assert domain.findtext("uuid") == spec.identity.uuid
    assert {child.tag for child in domain} <= set(_TOP_LEVEL.split())
    devices = domain.find("devices")
    assert devices is not None
    assert {child.tag for child in devices} <= set(_DEVICES.split())
    ours = {image.path for image in spec.disks.values()} | {"/dev/urandom", spec.nvram_path}
    for element in domain.iter():
        if element.tag in ("title", "description", "entry"):
            continue
        for value in (*element.attrib.values(), element.text or ""):
            if "/" in value:
                assert value in ours or _is_name(element, value), (element.tag, value)
    for source in domain.iter("source"):
        assert set(source.attrib) in ({"file"}, {"network"}, {"bridge"}, {"network", "portgroup"})
    for chardev in ("serial", "parallel", "console"):
        assert {found.get("type") for found in devices.iterfind(chardev)} <= {"pty"}
    for listen in domain.iter("listen"):
        assert listen.attrib == {"type": "address", "address": "127.0.0.1"}
    return domain


def _is_name(element: ET.Element, value: str) -> bool:
    """Slashes that are no path: a time zone, the URL that names an operating system."""
    if element.tag.endswith("}os"):
        return value.startswith(("http://", "https://"))
    return element.tag == "clock" and not value.startswith("/") and "." not in value
