"""Definitions as libvirt writes them, rebuilt."""

from __future__ import annotations

import dataclasses
import itertools
import re
import xml.etree.ElementTree as ET

import pytest

from drvm.core.errors import RestoreError
from drvm.restore.machine.definition import DefinitionSpec, Identity, VirtType, random_mac, rebuild
from drvm.restore.machine.disks import DiskImage
from drvm.restore.machine.nics import NetworkUse
from drvm.restore.machine.source import parse
from tests.unit.restore.machines import CLONE, NAMES, assert_harmless, clone_of, images, machine


def _find(root: ET.Element, path: str) -> ET.Element:
    found = root.find(path)
    assert found is not None, path
    return found


def _original(name: str) -> Identity:
    tree = parse(machine(name))
    return Identity(tree.findtext("name", ""), tree.findtext("uuid", ""), keep_macs=True)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("isolate_to", [None, "drill-net"])
@pytest.mark.parametrize("virt_type", [None, "qemu"])
def test_a_rebuilt_machine_holds_nothing_of_the_original_host(
    name: str, isolate_to: str | None, virt_type: VirtType | None
) -> None:
    spec = dataclasses.replace(clone_of(name), isolate_to=isolate_to, virt_type=virt_type)
    assert_harmless(rebuild(machine(name), spec), spec)


@pytest.mark.parametrize("name", NAMES)
def test_a_clone_has_no_identifier_of_the_original(name: str) -> None:
    tree = parse(machine(name))
    made = rebuild(machine(name), clone_of(name)).xml.lower()
    assert tree.findtext("uuid", "-") not in made
    for mac in tree.iterfind("devices/interface/mac"):
        assert mac.get("address", "-") not in made


@pytest.mark.parametrize("name", NAMES)
def test_a_replacement_keeps_name_uuid_and_macs(name: str) -> None:
    spec = DefinitionSpec(_original(name), images(name), isolate_to="drill-net")
    made = assert_harmless(rebuild(machine(name), spec), spec)
    old = [mac.get("address") for mac in parse(machine(name)).iterfind("devices/interface/mac")]
    assert [mac.get("address") for mac in made.iterfind("devices/interface/mac")] == old


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("virt_type", [None, "qemu"])
def test_rebuilding_a_rebuilt_definition_changes_nothing(
    name: str, virt_type: VirtType | None
) -> None:
    spec = dataclasses.replace(
        clone_of(name),
        identity=dataclasses.replace(CLONE, keep_macs=True),
        nvram_path="/restored/nvram.fd",
        virt_type=virt_type,
    )
    once = rebuild(machine(name), spec)
    again = rebuild(once.xml, spec)
    assert again.xml == once.xml
    assert again.dropped == ()


def test_a_plain_machine_keeps_its_hardware() -> None:
    made = parse(rebuild(machine("bios_i440fx"), clone_of("bios_i440fx")).xml)
    assert made.findtext("memory") == "262144"
    assert _find(made, "os/type").attrib == {"arch": "x86_64", "machine": "pc-i440fx-7.2"}
    assert [boot.get("dev") for boot in made.iterfind("os/boot")] == ["hd", "cdrom"]
    assert made.findtext("cpu/model") == "qemu64"
    assert _find(made, "devices/disk/driver").attrib == {
        "name": "qemu",
        "type": "qcow2",
        "cache": "none",
        "io": "native",
        "discard": "unmap",
    }
    assert made.findtext("devices/disk/serial") == "WD-4711"
    assert _find(made, "devices/disk/address").get("slot") == "0x05"
    assert _find(made, "devices/channel/target").get("name") == "org.qemu.guest_agent.0"
    assert _find(made, "devices/interface/source").attrib == {"network": "lan"}
    assert (
        "http://debian.org/debian/12"
        in rebuild(machine("bios_i440fx"), clone_of("bios_i440fx")).xml
    )


def test_what_was_dropped_is_said() -> None:
    dropped = rebuild(machine("passthrough"), clone_of("passthrough")).dropped
    for expected in (
        "qemu:commandline (would run QEMU with any option, past libvirt)",
        "hostdev pci 0000:3b:00.0",
        "hostdev usb 046d:c52b",
        "hostdev mdev vfio-pci",
        "filesystem mount",
        "shmem",
        "lease",
        "smartcard",
        "memory nvdimm (its model can't be restored)",
        "input evdev (its type can't be restored)",
        "os kernel, initrd, cmdline (files of the original host: it now boots from its disks)",
        "tpm (its secrets are in a device of the original host)",
    ):
        assert any(line.startswith(expected) for line in dropped), expected


@pytest.mark.parametrize("device", ["hostdev pci", "hostdev usb", "filesystem mount", "shmem"])
def test_how_to_get_back_a_device_of_the_host_is_said_with_it(device: str) -> None:
    dropped = rebuild(machine("passthrough"), clone_of("passthrough")).dropped
    lines = [line for line in dropped if line.startswith(device)]
    assert lines and all("virsh attach-device" in line for line in lines)


def test_secrets_of_the_original_host_are_left_out_with_the_reason() -> None:
    original = machine("uefi_q35").replace(
        "</devices>",
        "<disk type='network' device='disk'><source protocol='rbd' name='p/i'>"
        "<auth username='a'><secret type='ceph' uuid='x'/></auth>"
        "<encryption format='luks'><secret type='passphrase' uuid='y'/></encryption></source>"
        "<target dev='vdz'/></disk></devices>",
    )
    spec = clone_of("uefi_q35")
    spec = dataclasses.replace(spec, disks={**spec.disks, "vdz": DiskImage("/r/z", "raw")})
    made = rebuild(original, spec)
    assert "secret" not in made.xml
    for part in ("auth", "encryption"):
        (line,) = [line for line in made.dropped if line.startswith(f"disk vdz/source/{part} (")]
        assert "secret of the original host" in line


def test_a_password_of_the_screen_is_dropped_and_never_shown() -> None:
    made = rebuild(machine("bios_i440fx"), clone_of("bios_i440fx"))
    assert "hunter2" not in made.xml + "".join((*made.dropped, *made.changed))
    assert any("password" in line for line in made.dropped)


def test_a_drive_for_removable_media_stays_and_is_empty() -> None:
    made = parse(rebuild(machine("bios_i440fx"), clone_of("bios_i440fx")).xml)
    drive = _find(made, "devices/disk[@device='cdrom']")
    assert drive.find("source") is None
    assert _find(drive, "target").get("dev") == "hda"


def test_each_disk_lies_in_its_restored_image_whatever_it_was_before() -> None:
    made = parse(rebuild(machine("many_disks"), clone_of("many_disks")).xml)
    found = {
        _find(disk, "target").get("dev"): _find(disk, "source").attrib
        for disk in made.iterfind("devices/disk[@device='disk']")
    }
    assert found == {
        target: {"file": f"/restored/{target}.qcow2"} for target in images("many_disks")
    }


def test_a_disk_that_was_not_restored_is_left_out_and_said() -> None:
    spec = DefinitionSpec(CLONE, {"vda": DiskImage("/restored/vda.raw", "raw")})
    made = rebuild(machine("many_disks"), spec)
    assert "disk sda (no image of it is restored)" in made.dropped
    assert len(parse(made.xml).findall("devices/disk[@device='disk']")) == 1


def test_an_image_that_no_disk_claims_is_refused() -> None:
    spec = DefinitionSpec(CLONE, {**images("bios_i440fx"), "vdz": DiskImage("/r/z", "raw")})
    with pytest.raises(RestoreError, match="no disk vdz"):
        rebuild(machine("bios_i440fx"), spec)


def test_uefi_is_asked_for_without_secure_boot_where_the_original_had_none() -> None:
    made = parse(rebuild(machine("uefi_q35"), clone_of("uefi_q35")).xml)
    system = _find(made, "os")
    assert system.get("firmware") == "efi"
    assert system.find("loader") is None
    assert system.find("nvram") is None
    assert _find(system, "firmware/feature").attrib == {"enabled": "no", "name": "secure-boot"}


def test_secure_boot_stays_secure() -> None:
    original = machine("uefi_q35").replace("<loader ", "<loader secure='yes' ")
    made = parse(rebuild(original, clone_of("uefi_q35")).xml)
    assert _find(made, "os/loader").attrib == {"secure": "yes"}
    assert _find(made, "os/firmware/feature").get("enabled") == "yes"


def test_restored_nvram_is_used_from_where_it_lies() -> None:
    spec = dataclasses.replace(clone_of("uefi_q35"), nvram_path="/restored/nvram.fd")
    made = parse(rebuild(machine("uefi_q35"), spec).xml)
    nvram = _find(made, "os/nvram")
    assert (nvram.text, nvram.attrib) == ("/restored/nvram.fd", {})


def test_the_generation_id_is_always_a_new_one() -> None:
    spec = DefinitionSpec(_original("uefi_q35"), images("uefi_q35"))
    genid = _find(parse(rebuild(machine("uefi_q35"), spec).xml), "genid")
    assert genid.text is None


def test_the_smbios_uuid_is_the_machine_s_own() -> None:
    made = parse(rebuild(machine("uefi_q35"), clone_of("uefi_q35")).xml)
    assert made.findtext("sysinfo/system/entry[@name='uuid']") == CLONE.uuid
    assert made.findtext("sysinfo/system/entry[@name='serial']", "").startswith("ds=nocloud")


def test_without_kvm_nothing_that_only_kvm_gives_is_left() -> None:
    spec = dataclasses.replace(clone_of("uefi_q35"), virt_type="qemu")
    made = parse(rebuild(machine("uefi_q35"), spec).xml)
    assert made.get("type") == "qemu"
    assert _find(made, "cpu").get("mode") == "maximum"
    assert _find(made, "cpu/topology").get("cores") == "2"
    assert made.find("features/hyperv") is None
    assert made.find("features/kvm") is None
    assert made.find("clock/timer[@name='hypervclock']") is None
    assert made.find("clock/timer[@name='rtc']") is not None


def test_machine_and_cpu_can_be_chosen_anew() -> None:
    spec = dataclasses.replace(clone_of("uefi_q35"), machine="q35", cpu="host-model")
    made = rebuild(machine("uefi_q35"), spec)
    assert _find(parse(made.xml), "os/type").get("machine") == "q35"
    assert _find(parse(made.xml), "cpu").get("mode") == "host-model"
    assert "machine: q35 instead of pc-q35-7.2" in made.changed


def test_a_clone_gets_no_mac_that_somebody_else_has() -> None:
    others = frozenset({"52:54:00:00:00:01", "52:54:00:00:00:02"})
    spec = dataclasses.replace(clone_of("bios_i440fx"), taken_macs=others)
    offered = (f"52:54:00:00:00:{number:02X}" for number in itertools.count(1))
    made = parse(rebuild(machine("bios_i440fx"), spec, new_mac=lambda: next(offered)).xml)
    macs = {mac.get("address", "") for mac in made.iterfind("devices/interface/mac")}
    assert macs and not macs & others


def test_a_cpu_model_is_chosen_by_its_name_and_checked() -> None:
    for name in ("uefi_q35", "bios_i440fx"):
        spec = dataclasses.replace(clone_of(name), cpu="Nehalem")
        without = re.sub("(?s)<cpu mode.*?</cpu>", "", machine(name))
        for original in (machine(name), without):
            (cpu,) = parse(rebuild(original, spec).xml).findall("cpu")
            assert (cpu.get("mode"), cpu.get("check")) == ("custom", "partial")
            assert cpu.findtext("model") == "Nehalem"


def test_a_cpu_that_is_no_name_is_refused() -> None:
    with pytest.raises(RestoreError, match="not the name of a CPU"):
        rebuild(machine("uefi_q35"), dataclasses.replace(clone_of("uefi_q35"), cpu="a,b=/c"))


def test_networks_are_mapped_and_listed() -> None:
    spec = dataclasses.replace(
        clone_of("uefi_q35"), networks={"br0": "network:lan", "eno1": "bridge:br7"}
    )
    made = rebuild(machine("uefi_q35"), spec)
    first, second = parse(made.xml).findall("devices/interface")
    assert (first.get("type"), _find(first, "source").attrib) == ("network", {"network": "lan"})
    assert (second.get("type"), _find(second, "source").attrib) == ("bridge", {"bridge": "br7"})
    assert made.networks == (
        NetworkUse("br0", "network", "lan"),
        NetworkUse("eno1", "bridge", "br7"),
    )


def test_a_bare_name_keeps_a_bridge_a_bridge() -> None:
    spec = dataclasses.replace(clone_of("uefi_q35"), networks={"br0": "br9"})
    nic = _find(parse(rebuild(machine("uefi_q35"), spec).xml), "devices/interface")
    assert _find(nic, "source").attrib == {"bridge": "br9"}
    assert _find(nic, "virtualport").attrib == {"type": "openvswitch"}
    assert _find(nic, "vlan/tag").get("id") == "42"


def test_a_card_that_only_the_original_host_could_connect_is_dropped_with_advice() -> None:
    made = rebuild(machine("uefi_q35"), clone_of("uefi_q35"))
    assert len(parse(made.xml).findall("devices/interface")) == 1
    assert any("--map-network eno1=NAME" in line for line in made.dropped)


def test_in_isolation_every_card_goes_to_the_drill_s_network() -> None:
    for name in NAMES:
        spec = dataclasses.replace(clone_of(name), isolate_to="drill-net")
        made = rebuild(machine(name), spec)
        tree = parse(made.xml)
        cards = tree.findall("devices/interface")
        assert len(cards) == len(parse(machine(name)).findall("devices/interface"))
        for card in cards:
            assert card.get("type") == "network"
            assert _find(card, "source").attrib == {"network": "drill-net"}
            assert card.find("vlan") is None
        assert {use.name for use in made.networks} == {"drill-net"}
        assert tree.find("devices/vsock") is None
        assert tree.find("cputune") is None


def test_new_macs_differ_from_each_other_and_from_all_old_ones() -> None:
    offers = itertools.chain(
        ["52:54:00:AA:BB:02", "52:54:00:aa:bb:03"],
        ["52:54:00:00:00:01", "52:54:00:00:00:01", "52:54:00:00:00:02"],
    )
    spec = dataclasses.replace(clone_of("uefi_q35"), isolate_to="drill-net")
    made = rebuild(machine("uefi_q35"), spec, new_mac=lambda: next(offers))
    macs = [mac.get("address") for mac in parse(made.xml).iterfind("devices/interface/mac")]
    assert macs == ["52:54:00:00:00:01", "52:54:00:00:00:02"]


def test_a_mac_maker_that_repeats_itself_is_given_up() -> None:
    with pytest.raises(RestoreError, match="MAC"):
        rebuild(machine("uefi_q35"), clone_of("uefi_q35"), new_mac=lambda: "52:54:00:aa:bb:02")


def test_made_macs_are_unicast_in_qemu_s_range() -> None:
    made = {random_mac() for _ in range(50)}
    assert len(made) > 45
    assert all(mac.startswith("52:54:00:") and len(mac) == 17 for mac in made)


@pytest.mark.parametrize(
    "spec",
    [
        DefinitionSpec(Identity("../x", CLONE.uuid, True), {}),
        DefinitionSpec(Identity("a\nb", CLONE.uuid, True), {}),
        DefinitionSpec(Identity("a/b", CLONE.uuid, True), {}),
        DefinitionSpec(Identity("", CLONE.uuid, True), {}),
        DefinitionSpec(Identity("-rf", CLONE.uuid, True), {}),
        DefinitionSpec(Identity("x" * 200, CLONE.uuid, True), {}),
        DefinitionSpec(Identity("ok", "no-uuid", True), {}),
        DefinitionSpec(CLONE, {"vda": DiskImage("relative", "raw")}),
        DefinitionSpec(CLONE, {"vda": DiskImage("/a\nb", "raw")}),
        DefinitionSpec(CLONE, {"vda": DiskImage("/a", "vmdk")}),
        DefinitionSpec(CLONE, {"../vda": DiskImage("/a", "raw")}),
        DefinitionSpec(CLONE, {}, machine="q35,dumpdtb=/x"),
        DefinitionSpec(CLONE, {}, isolate_to="a/b"),
        DefinitionSpec(CLONE, images("bios_i440fx"), networks={"lan": "bridge:../x"}),
    ],
)
def test_a_target_that_makes_no_sense_is_refused(spec: DefinitionSpec) -> None:
    with pytest.raises(RestoreError):
        rebuild(machine("bios_i440fx"), spec)


def test_nvram_at_a_relative_path_is_refused() -> None:
    with pytest.raises(RestoreError, match="NVRAM"):
        rebuild(
            machine("uefi_q35"), dataclasses.replace(clone_of("uefi_q35"), nvram_path="../nvram")
        )


def test_the_tags_that_policies_choose_by_stay_and_foreign_metadata_goes() -> None:
    tags = "<t:tags xmlns:t='urn:drvm:tags' n='1'>gold  silver<b/></t:tags><o:x xmlns:o='urn:o'/>"
    text = machine("bios_i440fx").replace("</metadata>", f"{tags}</metadata>")
    made = parse(rebuild(text, clone_of("bios_i440fx")).xml).find("metadata")
    assert made is not None
    assert [(child.tag, child.text, child.attrib, len(child)) for child in made][1:] == [
        ("{urn:drvm:tags}tags", "gold  silver", {}, 0)
    ]
    hostile = text.replace("gold  silver", "gold /etc/passwd")
    made = parse(rebuild(hostile, clone_of("bios_i440fx")).xml).find("metadata")
    assert made is not None and len(made) == 1
