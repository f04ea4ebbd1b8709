"""Whatever disks a definition has: each is captured, excluded by name, an empty drive, or spoken
of in a warning or an error."""

from __future__ import annotations

import pytest
from defusedxml.ElementTree import fromstring
from hypothesis import given
from hypothesis import strategies as st

from drvm.core.errors import CaptureError
from drvm.snapshot.disks import select
from drvm.snapshot.domainxml import read

TARGETS = ("vda", "vdb", "sda", "hda", "fda")
SOURCES = {
    "file": ["<source file='/i/a.qcow2'/>", "<source file='/i/a' startupPolicy='optional'/>"],
    "block": ["<source dev='/dev/vg/lv'/>"],
    "dir": ["<source dir='/srv'/>"],
    "network": [
        "<source protocol='rbd' name='pool/image'><host name='c1'/></source>",
        "<source protocol='iscsi' name='iqn.x:y/1'><host name='c1'/></source>",
        "<source protocol='nbd'><host transport='unix' socket='/run/s'/></source>",
    ],
    "volume": ["<source pool='default' volume='a'/>"],
    "nvme": [
        "<source type='pci' managed='yes' namespace='1'>"
        "<address domain='0' bus='1' slot='0' function='0'/></source>"
    ],
    "vhostuser": ["<source type='unix' path='/run/v'><reconnect enabled='yes'/></source>"],
    "vhostvdpa": ["<source dev='/dev/vhost-vdpa-0'/>"],
    "later": ["<source something='else'/>"],
}
NOTHING = ["", "<source/>", "<source startupPolicy='optional'/>", "<source index='3'/>"]
INSIDE = (
    "<readonly/>",
    "<shareable/>",
    "<transient/>",
    "<encryption format='luks'><secret type='passphrase' uuid='x'/></encryption>",
    "<auth username='a'><secret type='ceph' uuid='x'/></auth>",
    "<backingStore/>",
    "<backingStore type='network'><format type='raw'/><source protocol='nbd'/></backingStore>",
)


@st.composite
def disks(draw: st.DrawFn, target: str) -> str:
    """Anything at all, but mostly what does not make the whole machine an error."""
    fine = draw(st.sampled_from([True, True, True, False]))
    drive = draw(st.booleans())
    kind = draw(st.sampled_from(sorted(SOURCES) if drive or not fine else ["block", "file"]))
    source = draw(st.sampled_from(SOURCES[kind] + (NOTHING if drive or not fine else [])))
    devices = ["cdrom", "floppy"] if drive else ["disk", None] + ([] if fine else ["lun"])
    device = draw(st.sampled_from(devices))
    image_format = draw(st.sampled_from(["raw", "qcow2"] + ([] if fine else ["vmdk", None])))
    driver = "" if image_format is None else f"<driver name='qemu' type='{image_format}'/>"
    chosen = st.lists(st.sampled_from(INSIDE), unique=True, max_size=2)
    inside = draw(st.sampled_from(["", "<readonly/>"])) if fine else "".join(draw(chosen))
    bus = draw(st.sampled_from(["virtio", "scsi", "sata", "ide", "usb"]))
    attribute = "" if device is None else f" device='{device}'"
    return (
        f"<disk type='{kind}'{attribute}>{driver}{source}"
        f"<target dev='{target}' bus='{bus}'/>{inside}</disk>"
    )


definitions = (
    st.lists(st.sampled_from(TARGETS), unique=True, min_size=3)
    .flatmap(lambda targets: st.tuples(*map(disks, targets)))
    .map(
        lambda found: (
            "<domain type='kvm'><name>web</name>"
            "<uuid>3f6a2c1e-5d0b-4c5e-9a34-6d72766d0001</uuid>"
            "<devices><disk type='file'><driver type='raw'/><source file='/i/good'/>"
            f"<target dev='vdz'/></disk>{''.join(found)}</devices></domain>"
        )
    )
)


def has_nothing_in_it(xml: str, target: str) -> bool:
    """As somebody else would find out that a drive is empty."""
    for disk in fromstring(xml).iter("disk"):
        if disk.find("target").get("dev") == target:
            source = disk.find("source")
            if disk.get("device") not in ("cdrom", "floppy"):
                return False
            return source is None or (
                len(source) == 0 and source.attrib.keys() <= {"startupPolicy", "index"}
            )
    raise AssertionError(target)


@given(definitions, st.sets(st.sampled_from(TARGETS), max_size=2), st.booleans())
def test_no_disk_is_ever_skipped_without_a_word(
    xml: str, excluded: set[str], present: bool
) -> None:
    machine = read(xml)
    if present:
        excluded &= {disk.target for disk in machine.disks}
    try:
        found = select(machine, frozenset(excluded))
    except CaptureError as problem:
        # nothing is captured then; what stands in the way is named, with the way out
        assert problem.hint
        assert "no disk left" in problem.message or any(
            f" {target} " in f" {problem.message} " for target in TARGETS
        )
        return
    spoken_of = " ".join(found.warnings).split()
    captured = {source.target for source in found.captured}
    for disk in machine.disks:
        ways = [
            disk.target in captured,
            disk.target in excluded,
            disk.target not in excluded and has_nothing_in_it(xml, disk.target),
            disk.target in spoken_of,
        ]
        assert ways.count(True) == 1, (disk.target, ways)
        assert (disk.target in captured) != (disk.target in found.left_out)


@pytest.mark.parametrize("kind", sorted(SOURCES.keys() - {"file", "block"}))
def test_a_disk_that_lies_elsewhere_is_refused_unless_excluded_by_name(kind: str) -> None:
    def domain(source: str) -> str:
        return (
            "<domain type='kvm'><name>web</name>"
            "<uuid>3f6a2c1e-5d0b-4c5e-9a34-6d72766d0001</uuid><devices>"
            "<disk type='file'><driver type='raw'/><source file='/i/a'/><target dev='vda'/></disk>"
            f"<disk type='{kind}'><driver type='raw'/>{source}<target dev='vdb'/></disk>"
            "</devices></domain>"
        )

    for source in SOURCES[kind]:
        machine = read(domain(source))
        with pytest.raises(CaptureError, match=f"vdb lies on {kind} storage"):
            select(machine, frozenset())
        assert select(machine, frozenset({"vdb"})).left_out == ("vdb",)
