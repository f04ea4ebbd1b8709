"""OVFs as other hypervisors write them are understood; hostile ones reach for nothing."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drvm.core.errors import DrvmError, RestoreError, UsageError
from drvm.core.progress import NoProgress
from drvm.restore.export.appliance import Appliance, read_appliance
from drvm.restore.export.kvm import NewMachine, definition, targets
from drvm.restore.export.package import open_package
from drvm.restore.machine.definition import DefinitionSpec, Identity, rebuild
from drvm.restore.machine.disks import DiskImage
from drvm.restore.machine.source import parse

UUID = "4dea22b3-1d52-48f3-a516-782e98ab3fa0"
VMWARE = """<?xml version="1.0" encoding="UTF-8"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1"
 xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1" xmlns:vmw="http://www.vmware.com/schema/ovf"
 xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData">
 <References><File ovf:href="db1-2.vmdk" ovf:id="file2" ovf:size="1"/>
  <File ovf:href="db1-1.vmdk" ovf:id="file1" ovf:size="1"/></References>
 <DiskSection><Info>disks</Info>
  <Disk ovf:capacity="16" ovf:capacityAllocationUnits="byte * 2^30" ovf:diskId="vmdisk1"
   ovf:fileRef="file1"/>
  <Disk ovf:capacity="1" ovf:diskId="vmdisk2" ovf:fileRef="file2"/></DiskSection>
 <NetworkSection><Info>n</Info><Network ovf:name="VM Network"/></NetworkSection>
 <VirtualSystem ovf:id="db1"><Info>a</Info><Name>db1</Name>
  <OperatingSystemSection ovf:id="96" vmw:osType="debian10_64Guest"><Info>o</Info>
  </OperatingSystemSection>
  <VirtualHardwareSection><Info>h</Info>
   <Item><rasd:AllocationUnits>hertz * 10^6</rasd:AllocationUnits>
    <rasd:InstanceID>1</rasd:InstanceID><rasd:ResourceType>3</rasd:ResourceType>
    <rasd:VirtualQuantity>4</rasd:VirtualQuantity></Item>
   <Item><rasd:AllocationUnits>byte * 2^20</rasd:AllocationUnits>
    <rasd:InstanceID>2</rasd:InstanceID><rasd:ResourceType>4</rasd:ResourceType>
    <rasd:VirtualQuantity>8192</rasd:VirtualQuantity></Item>
   <Item><rasd:InstanceID>3</rasd:InstanceID><rasd:ResourceSubType>VirtualSCSI</rasd:ResourceSubType>
    <rasd:ResourceType>6</rasd:ResourceType></Item>
   <Item><rasd:AddressOnParent>1</rasd:AddressOnParent>
    <rasd:HostResource>ovf:/disk/vmdisk2</rasd:HostResource><rasd:InstanceID>5</rasd:InstanceID>
    <rasd:Parent>3</rasd:Parent><rasd:ResourceType>17</rasd:ResourceType></Item>
   <Item><rasd:AddressOnParent>0</rasd:AddressOnParent>
    <rasd:HostResource>ovf:/disk/vmdisk1</rasd:HostResource><rasd:InstanceID>4</rasd:InstanceID>
    <rasd:Parent>3</rasd:Parent><rasd:ResourceType>17</rasd:ResourceType></Item>
   <Item><rasd:Connection>VM Network</rasd:Connection><rasd:InstanceID>6</rasd:InstanceID>
    <rasd:ResourceSubType>VmxNet3</rasd:ResourceSubType><rasd:ResourceType>10</rasd:ResourceType>
   </Item>
   <Item><rasd:ElementName>sound</rasd:ElementName><rasd:InstanceID>7</rasd:InstanceID>
    <rasd:ResourceType>35</rasd:ResourceType></Item>
   <vmw:Config ovf:required="false" vmw:key="firmware" vmw:value="efi"/>
  </VirtualHardwareSection></VirtualSystem></Envelope>
"""
VIRTUALBOX = """<?xml version="1.0"?>
<Envelope ovf:version="2.0" xmlns="http://schemas.dmtf.org/ovf/envelope/2"
 xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/2" xmlns:vbox="http://www.virtualbox.org/ovf/machine"
 xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData"
 xmlns:sasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_StorageAllocationSettingData.xsd"
 xmlns:epasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_EthernetPortAllocationSettingData.xsd">
 <References><File ovf:id="file1" ovf:href="w-disk001.vmdk"/></References>
 <DiskSection><Info>d</Info><Disk ovf:capacity="1" ovf:diskId="vmdisk1" ovf:fileRef="file1"/>
 </DiskSection><NetworkSection><Info>n</Info><Network ovf:name="NAT"/></NetworkSection>
 <VirtualSystem ovf:id="w"><Info>a</Info>
  <OperatingSystemSection ovf:id="103"><Info>o</Info><Description>Windows2008_64</Description>
  </OperatingSystemSection><VirtualHardwareSection><Info>h</Info>
  <Item><rasd:InstanceID>1</rasd:InstanceID><rasd:ResourceType>3</rasd:ResourceType>
   <rasd:VirtualQuantity>2</rasd:VirtualQuantity></Item>
  <Item><rasd:AllocationUnits>MegaBytes</rasd:AllocationUnits><rasd:InstanceID>2</rasd:InstanceID>
   <rasd:ResourceType>4</rasd:ResourceType><rasd:VirtualQuantity>2048</rasd:VirtualQuantity></Item>
  <StorageItem><sasd:AddressOnParent>0</sasd:AddressOnParent>
   <sasd:HostResource>/disk/vmdisk1</sasd:HostResource><sasd:InstanceID>5</sasd:InstanceID>
   <sasd:Parent>3</sasd:Parent><sasd:ResourceType>17</sasd:ResourceType></StorageItem>
  <EthernetPortItem><epasd:Connection>NAT</epasd:Connection><epasd:InstanceID>6</epasd:InstanceID>
   <epasd:ResourceType>10</epasd:ResourceType></EthernetPortItem></VirtualHardwareSection>
  <vbox:Machine><Hardware><Firmware type="BIOS"/></Hardware></vbox:Machine>
 </VirtualSystem></Envelope>
"""


def test_an_ovf_of_vmware_is_understood():
    assert read_appliance(VMWARE) == Appliance(
        memory_mib=8192,
        cpus=4,
        efi=True,
        secure_boot=False,
        windows=False,
        files=("db1-1.vmdk", "db1-2.vmdk"),
        networks=("",),
        notes=("left out: sound",),
    )


def test_an_ovf_of_virtualbox_in_version_2_is_understood():
    assert read_appliance(VIRTUALBOX) == Appliance(
        memory_mib=2048,
        cpus=2,
        efi=False,
        secure_boot=False,
        windows=True,
        files=("w-disk001.vmdk",),
        networks=("NAT",),
        notes=(),
    )


HOSTILE = {
    "a path upwards": ('href="db1-1.vmdk"', 'href="../../etc/shadow"'),
    "an absolute path": ('href="db1-1.vmdk"', 'href="/etc/shadow"'),
    "a URL": ('href="db1-1.vmdk"', 'href="http://10.9.8.7/x.vmdk"'),
    "a protocol": ('href="db1-1.vmdk"', 'href="nbd:10.9.8.7:1"'),
    "a hidden file": ('href="db1-1.vmdk"', 'href=".ssh"'),
    "a control character": ('href="db1-1.vmdk"', 'href="a&#10;b"'),
    "compressed": ('href="db1-1.vmdk"', 'href="db1-1.vmdk" ovf:compression="gzip"'),
    "in pieces": ('href="db1-1.vmdk"', 'href="db1-1.vmdk" ovf:chunkSize="7"'),
    "a parent disk": ('ovf:fileRef="file1"', 'ovf:fileRef="file1" ovf:parentRef="vmdisk2"'),
    "one file twice": ('href="db1-2.vmdk"', 'href="db1-1.vmdk"'),
    "no file": ('ovf:fileRef="file1"', 'ovf:fileRef="file9"'),
    "an empty disk": ('ovf:fileRef="file1"', ""),
    "no such disk": ("ovf:/disk/vmdisk1", "ovf:/disk/nowhere"),
    "a disk of the host": ("ovf:/disk/vmdisk1", "/dev/sda"),
    "no memory": (">8192<", ">0<"),
    "too much memory": (">8192<", ">99999999999<"),
    "memory in words": (">8192<", ">much<"),
    "no machine": ("VirtualSystem ", "Nothing "),
    "no hardware": ("VirtualHardwareSection", "Elsewhere"),
    "another root": ("Envelope", "Letter"),
    "another namespace": ("ovf/envelope/1", "ovf/envelope/9"),
    "entities": ("<Envelope", "<!DOCTYPE a [<!ENTITY b SYSTEM '/etc/shadow'>]><Envelope"),
    "cut off": ("</Envelope>", ""),
    "nothing": (VMWARE, ""),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_ovf_is_refused(name):
    text = VMWARE.replace(*HOSTILE[name])
    text = text.replace("</VirtualSystem>", "</Nothing>") if name == "no machine" else text
    with pytest.raises((UsageError, RestoreError)):
        read_appliance(text)


def test_two_machines_are_refused():
    start, end = VMWARE.index("<VirtualSystem "), VMWARE.index("</Envelope>")
    with pytest.raises(UsageError, match="exactly one"):
        read_appliance(VMWARE[:end] + VMWARE[start:end] + VMWARE[end:])


@given(st.integers(0, len(VMWARE)), st.text(max_size=20), st.integers(0, 40))
@settings(max_examples=200, deadline=None)
def test_whatever_is_wrong_with_an_ovf_is_said_and_nothing_else_happens(at, text, cut):
    try:
        appliance = read_appliance(VMWARE[:at] + text + VMWARE[at + cut :])
    except DrvmError:
        return
    assert all("/" not in name and not name.startswith(".") for name in appliance.files)
    assert 0 < appliance.cpus <= 1024


@pytest.mark.parametrize("bus", ["sata", "virtio"])
@pytest.mark.parametrize("efi", [False, True])
def test_the_machine_that_is_made_passes_the_allow_list_whole(bus, efi):
    machine = NewMachine(
        512, 2, efi=efi, secure_boot=efi, windows=efi, networks=("lan", ""), bus=bus
    )
    disks = targets(28, bus)
    xml = definition(machine, "db1", UUID, disks)
    images = {target: DiskImage(f"/{target}", "qcow2") for target in disks}
    rebuilt = rebuild(xml, DefinitionSpec(Identity("db1", UUID, keep_macs=True), images))
    assert rebuilt.dropped == ()
    tree = parse(rebuilt.xml)
    assert [use.name for use in rebuilt.networks] == ["lan", "default"]
    assert len(tree.findall("devices/disk")) == 28
    assert disks[26:] == tuple(f"{disks[0][:2]}{end}" for end in ("aa", "ab"))


def archive(path: Path, members: dict[str, bytes], kind: bytes = tarfile.REGTYPE) -> Path:
    with tarfile.open(path, "w") as sink:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size, member.type = len(data), kind
            sink.addfile(member, io.BytesIO(data))
    return path


def test_an_ova_is_read_where_it_lies(tmp_path):
    members = {"db1.ovf": VMWARE.encode(), "db1-1.vmdk": b"one" * 300, "db1-2.vmdk": b"two"}
    path = archive(tmp_path / "db1.ova", members)
    package = open_package(path)
    content = path.read_bytes()
    found = [content[i.part.offset :][: i.part.size_bytes] for i in package.images if i.part]
    assert found == [b"one" * 300, b"two"]
    assert {image.format for image in package.images} == {"vmdk"}
    assert sorted(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("algorithm", ["sha1", "sha256", "sha512"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("changed", [None, "db1.ovf", "db1-2.vmdk"])
def test_files_must_be_what_the_manifest_says(tmp_path, algorithm, packed, changed):
    members = {"db1.ovf": VMWARE.encode(), "db1-1.vmdk": b"one" * 300, "db1-2.vmdk": b"two"}
    lines = [
        f"{algorithm.upper()}({name})= {hashlib.new(algorithm, data).hexdigest()}"
        for name, data in {**members, "absent.iso": b""}.items()
    ]
    if changed is not None:
        members[changed] += b" "
    members["db1.mf"] = "\n".join(lines).encode()
    for name, data in () if packed else members.items():
        (tmp_path / name).write_bytes(data)
    path = archive(tmp_path / "db1.ova", members) if packed else tmp_path / "db1.ovf"
    package = open_package(path)
    assert len(package.digests) == 3
    if changed is None:
        package.check(NoProgress())
        return
    with pytest.raises(UsageError, match=f"{changed} is not what"):
        package.check(NoProgress())


def test_a_package_without_a_manifest_is_taken_as_it_is(tmp_path):
    members = {"db1.ovf": VMWARE.encode(), "db1-1.vmdk": b"one", "db1-2.vmdk": b"two"}
    package = open_package(archive(tmp_path / "db1.ova", members))
    package.check(NoProgress())
    assert package.digests == {}


@pytest.mark.parametrize(
    "members",
    [
        {"db1-1.vmdk": b"", "db1-2.vmdk": b""},
        {"a.ovf": VMWARE.encode(), "b.ovf": VMWARE.encode()},
        {"a.ovf": VMWARE.encode(), "db1-1.vmdk": b""},
        {"a.ovf": VMWARE.encode(), "sub/db1-1.vmdk": b"", "../db1-2.vmdk": b""},
        {"a.ovf": b"\xff\xfe"},
        {f"{number}.vmdk": b"" for number in range(1002)},
    ],
)
def test_an_ova_without_all_that_it_needs_is_refused(tmp_path, members):
    with pytest.raises((UsageError, RestoreError)):
        open_package(archive(tmp_path / "a.ova", members))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, b"S"])
def test_links_devices_and_sparse_members_of_an_ova_are_no_files(tmp_path, kind):
    path = archive(tmp_path / "a.ova", {"a.ovf": b"", "db1-1.vmdk": b""}, kind)
    with pytest.raises(UsageError):
        open_package(path)


def test_a_header_that_wants_all_memory_is_refused(tmp_path):
    path = tmp_path / "a.ova"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as sink:
        member = tarfile.TarInfo("a")
        member.type, member.size = tarfile.XHDTYPE, 1 << 33
        sink.addfile(member)
    os.truncate(path, 1 << 34)
    with pytest.raises(UsageError, match="header"):
        open_package(path)


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.symlink_to("/etc/passwd")])
def test_an_ovf_that_is_no_file_is_refused(tmp_path, make):
    make(tmp_path / "a.ovf")
    with pytest.raises(UsageError):
        open_package(tmp_path / "a.ovf")
