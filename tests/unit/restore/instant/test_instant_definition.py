"""A definition over an export, and back again."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drvm.restore.instant.definition import over_export, plain, policies, unfinished
from drvm.restore.instant.record import BootDisk
from drvm.restore.machine.source import parse

SOCKET = Path("/run/drvm-boot/x/nbd")
DISK = """<disk type='file' device='disk'><driver name='qemu' type='qcow2'{policies}/>
  <source file='/images/{target}.qcow2'/><target dev='{target}' bus='virtio'/></disk>"""


def definition(**given: str) -> str:
    disks = "".join(DISK.format(target=name, policies=text) for name, text in given.items())
    cdrom = "<disk type='file' device='cdrom'><target dev='sda' bus='sata'/></disk>"
    return f"<domain type='kvm'><devices>{disks}{cdrom}</devices></domain>"


def test_each_disk_lies_over_its_export_with_the_format_given_and_stops_on_errors() -> None:
    made = over_export(definition(vda="", vdb=""), SOCKET, ["vda", "vdb"])
    assert unfinished(made, SOCKET) == {"vda", "vdb"}
    disk = parse(made).find("devices/disk")
    assert disk is not None
    store = disk.find("backingStore")
    assert store is not None
    (below,) = store.iterfind("source")
    assert (below.get("protocol"), below.get("name")) == ("nbd", "vda")
    assert [f.get("type") for f in store.iterfind("format")] == ["raw"]
    assert policies(made, "vda") == ("stop", "stop")
    assert list(disk).index(store) == 2


def test_only_what_is_asked_for_lies_over_an_export() -> None:
    made = over_export(definition(vda="", vdb=""), SOCKET, ["vdb"])
    assert unfinished(made, SOCKET) == {"vdb"}
    assert policies(made, "vda") == ("", "")


def test_what_lies_over_somebody_elses_server_is_left_alone() -> None:
    made = over_export(definition(vda=""), Path("/somebody/else"), ["vda"])
    assert unfinished(made, SOCKET) == frozenset()
    back = plain(made, SOCKET, [BootDisk("vda", "/images/vda.qcow2")])
    assert "/somebody/else" in back


@given(
    st.sampled_from(["", " error_policy='report'", " rerror_policy='ignore' error_policy='stop'"]),
    st.sampled_from(["", " rerror_policy='report'"]),
)
def test_back_again_it_is_what_it_was(first: str, second: str) -> None:
    before = definition(vda=first, vdb=second)
    disks = [
        BootDisk(target, f"/images/{target}.qcow2", *policies(before, target))
        for target in ("vda", "vdb")
    ]
    back = plain(over_export(before, SOCKET, ["vda", "vdb"]), SOCKET, disks)
    assert _tree(back) == _tree(before)
    assert plain(back, SOCKET, disks) is back


def _tree(xml: str) -> list[tuple[str, dict[str, str]]]:
    return [(element.tag, dict(element.attrib)) for element in parse(xml).iter()]


def test_a_definition_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(Exception, match="can't be read"):
        plain("<domain", SOCKET, [])
