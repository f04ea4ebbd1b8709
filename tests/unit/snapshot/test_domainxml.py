from __future__ import annotations

from pathlib import Path
from xml.sax.saxutils import escape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drvm.core.errors import HostError
from drvm.snapshot.domainxml import Tpm, read

UUID = "3f6a2c1e-5d0b-4c5e-9a34-6d72766d0001"


def domain(disks: str = "", os: str = "", devices: str = "") -> str:
    return f"""<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
    <name>web</name><uuid>{UUID}</uuid><os>{os}</os>
    <metadata><x:note xmlns:x='http://example.org/x' by='ops'>keep</x:note></metadata>
    <devices>{disks}{devices}<graphics type='vnc' passwd='s3cret'/></devices>
    <qemu:commandline><qemu:arg value='-S'/></qemu:commandline></domain>"""


EFI = "<domain type='kvm'><name>w</name><uuid>{}</uuid><os firmware='efi'>{}</os></domain>"
EMULATED = "<backend type='emulator'>"
ON_OVERLAY = """<disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='none'/>
<source file='/i/a.qcow2.drvm-0123456789abcdef.overlay' index='5'/>
<backingStore type='file' index='3'><format type='raw'/><source file='/i/a.img'/>
<backingStore type='file' index='4'><format type='raw'/><source file='/i/t.img'/><backingStore/>
</backingStore></backingStore><target dev='vda' bus='virtio'/></disk>"""


def test_a_chain_is_read_from_the_top_down() -> None:
    disk = read(domain(ON_OVERLAY)).disks[0]
    assert [str(layer.path) for layer in disk.layers] == [
        "/i/a.qcow2.drvm-0123456789abcdef.overlay",
        "/i/a.img",
        "/i/t.img",
    ]
    assert [layer.format for layer in disk.layers] == ["qcow2", "raw", "raw"]


def test_a_mirror_tells_its_job_its_target_and_whether_it_is_ready() -> None:
    mirror = """<mirror type='file' job='active-commit' ready='yes'><format type='raw'/>
    <source file='/i/a.img' index='2'/></mirror>"""
    disk = read(domain(ON_OVERLAY.replace("<target", mirror + "<target"))).disks[0]
    assert disk.mirror is not None
    assert (disk.mirror.job, disk.mirror.ready) == ("active-commit", True)
    assert disk.mirror.path == Path("/i/a.img")


def test_state_outside_the_disks_is_told() -> None:
    machine = read(
        domain(os="<nvram>/n/web_VARS.fd</nvram>", devices="<tpm><backend type='emulator'/></tpm>")
    )
    assert machine.nvram == Path("/n/web_VARS.fd")
    assert (machine.tpm, machine.special) == (Tpm(None, None), ())


@pytest.mark.parametrize(
    ("inside", "chosen"),
    [
        ("", True),
        ("<loader secure='no'/>", True),
        ("<loader stateless='yes'/>", False),
        ("<nvram>/n/w.fd</nvram>", False),
        ("<nvram type='network'><source protocol='nbd'/></nvram>", False),
    ],
)
def test_a_file_for_uefi_variables_that_libvirt_will_choose_is_told(
    inside: str, chosen: bool
) -> None:
    assert read(EFI.format(UUID, inside)).chosen_nvram == chosen


@pytest.mark.parametrize(
    ("backend", "found", "said"),
    [
        ("<backend type='emulator' version='2.0'/>", Tpm("2.0", None), ""),
        (f"{EMULATED}<source type='dir' path='/t'/></backend>", Tpm(None, Path("/t")), ""),
        (f"{EMULATED}<source type='file' path='/t'/></backend>", None, "directory"),
        (f"{EMULATED}<source type='dir' path='t'/></backend>", None, "directory"),
        (f"{EMULATED}<source/></backend>", None, "directory"),
        (f"{EMULATED}<encryption secret='x'/></backend>", None, "encrypted"),
        ("<backend type='passthrough'><device path='/dev/tpm0'/></backend>", None, "emulated"),
        ("<backend type='external'/>", None, "emulated"),
        ("<backend/>", None, "emulated"),
    ],
)
def test_a_tpm_is_captured_or_spoken_of(backend: str, found: Tpm | None, said: str) -> None:
    machine = read(domain(devices=f"<tpm>{backend}</tpm>"))
    assert machine.tpm == found
    assert (machine.special == ()) == (found is not None)
    assert said in "".join(machine.special)


BOMB = """<!DOCTYPE d [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>"""
HOSTILE = [
    "",
    "<domain",
    "<other/>",
    BOMB + domain(),
    "<!DOCTYPE d SYSTEM 'file:///etc/passwd'>" + domain(),
    domain().replace(UUID, "../../etc"),
    domain("<disk type='file'><target dev='../vda'/></disk>"),
    domain(ON_OVERLAY + ON_OVERLAY),
    domain(
        "<disk><target dev='vda'/>" + "<backingStore><a/>" * 70 + "</backingStore>" * 70 + "</disk>"
    ),
    "<domain>" + " " * (4 * 1024 * 1024) + "</domain>",
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_xml_is_refused(text: str) -> None:
    with pytest.raises(HostError):
        read(text)


words = st.text(
    st.characters(min_codepoint=32, max_codepoint=0x2FFF, exclude_characters="\x7f"), max_size=20
)


@given(words, words, words, st.sampled_from(["file", "block", "network", "volume", "x"]))
def test_any_names_and_kinds_are_read_as_they_are_or_refused(
    path: str, image_format: str, name: str, kind: str
) -> None:
    def quoted(text: str) -> str:
        return escape(text, {"'": "&apos;"})

    disk = f"""<disk type='{kind}'><driver type='{quoted(image_format)}'/>
    <source file='/{quoted(path)}'/><target dev='vda'/></disk>"""
    try:
        found = read(domain(disk).replace("<name>web", f"<name>{quoted(name)}")).disks[0]
    except HostError:
        assert name == "" or "\x85" in path + image_format + name
        return
    assert found.layers[0].format == image_format
    if kind in ("file", "block"):
        assert found.top is not None and found.top == Path("/" + path)
    else:
        assert found.top is None


@given(st.text(max_size=300))
def test_any_text_is_a_machine_or_a_host_error(text: str) -> None:
    with pytest.raises(HostError):
        read(text)


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("<memory model='nvdimm'><source><path>/n</path></source></memory>", "persistent memory"),
        ("<hostdev mode='subsystem' type='scsi'/>", "SCSI device"),
        ("<memory model='dimm'/>", ""),
        ("<hostdev mode='subsystem' type='pci'/>", ""),
    ],
)
def test_storage_that_is_no_disk_is_spoken_of(device: str, said: str) -> None:
    special = read(domain(devices=device * 2)).special
    assert len(special) == bool(said)
    assert said in "".join(special)
