from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drvm.core.errors import CaptureError
from drvm.snapshot.disks import OVERLAY_NAME, Source, overlay_path, select, snapshot_xml
from drvm.snapshot.domainxml import Disk, Layer, Machine

POINT = "0123456789abcdef"
GOOD = Disk(
    "vda", "disk", (Layer("file", Path("/i/a.qcow2"), "qcow2"),), False, False, False, None, None
)


def machine(*disks: Disk) -> Machine:
    return Machine("web", "3f6a2c1e-5d0b-4c5e-9a34-6d72766d0001", disks, None, ())


def layer(kind: str, path: str | None, image_format: str | None) -> tuple[Layer, ...]:
    return (Layer(kind, None if path is None else Path(path), image_format),)


CAN_NOT = {
    "network": replace(GOOD, layers=layer("network", None, "raw")),
    "volume": replace(GOOD, layers=layer("volume", None, "qcow2")),
    "lun": replace(GOOD, device="lun"),
    "vmdk": replace(GOOD, layers=layer("file", "/i/a.vmdk", "vmdk")),
    "format unknown": replace(GOOD, layers=layer("file", "/i/a", None)),
    "encrypted": replace(GOOD, special="encryption"),
    "shared": replace(GOOD, shareable=True),
    "transient": replace(GOOD, transient=True),
    "left on an overlay": replace(
        GOOD, layers=layer("file", f"/i/a.qcow2.drvm-{POINT}.overlay", "qcow2")
    ),
}


@pytest.mark.parametrize("disk", CAN_NOT.values(), ids=CAN_NOT)
def test_a_disk_that_can_not_be_captured_is_an_error_unless_excluded_by_name(disk: Disk) -> None:
    other = replace(GOOD, target="vdb")
    with pytest.raises(CaptureError, match="vda"):
        select(machine(disk, other), frozenset())
    assert select(machine(disk, other), frozenset({"vda"})).left_out == ("vda",)


def test_every_problem_is_told_at_once() -> None:
    bad = [replace(disk, target=f"vd{n}") for n, disk in zip("xyz", CAN_NOT.values(), strict=False)]
    with pytest.raises(CaptureError, match=r"vdx.*vdy.*vdz"):
        select(machine(*bad), frozenset())


def test_an_excluded_disk_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(CaptureError, match="vdb is excluded"):
        select(machine(GOOD), frozenset({"vdb"}))


def test_a_machine_without_a_disk_to_capture_is_an_error() -> None:
    with pytest.raises(CaptureError, match="no disk left"):
        select(machine(GOOD), frozenset({"vda"}))


def test_media_are_left_out_with_a_word_and_empty_drives_without() -> None:
    seed = replace(GOOD, target="sda", device="cdrom", layers=layer("file", "/i/seed.iso", "raw"))
    empty = replace(
        GOOD, target="sdb", device="cdrom", layers=layer("file", None, None), empty=True
    )
    found = select(machine(GOOD, seed, empty), frozenset())
    assert [source.target for source in found.captured] == ["vda"]
    assert found.left_out == ("sda", "sdb")
    assert len(found.warnings) == 1 and "sda" in found.warnings[0]


def test_an_overlay_lies_next_to_its_base_and_bears_our_mark() -> None:
    path = overlay_path(Source("vda", Path("/i/a.qcow2"), "qcow2", False), POINT, "u", None)
    assert path.parent == Path("/i")
    name = OVERLAY_NAME.fullmatch(path.name)
    assert name is not None and (name["base"], name["point_id"]) == ("a.qcow2", POINT)


def test_a_block_device_needs_a_directory_for_its_overlay() -> None:
    source = Source("vdb", Path("/dev/vg/lv"), "raw", True)
    with pytest.raises(CaptureError, match="directory for overlays"):
        overlay_path(source, POINT, "u", None)
    assert overlay_path(source, POINT, "u", Path("/o")).parent == Path("/o")


@given(st.text(st.characters(min_codepoint=32, exclude_categories=["Cs"]), min_size=1, max_size=40))
def test_the_snapshot_names_each_disk_once_whatever_its_file_is_called(name: str) -> None:
    overlay = Path("/i") / (name.replace("/", "_") + f".drvm-{POINT}.overlay")
    other = replace(GOOD, target="vdb")
    root = ElementTree.fromstring(snapshot_xml(machine(GOOD, other), POINT, {"vda": overlay}))
    kinds = {d.attrib["name"]: d.attrib["snapshot"] for d in root.iterfind("./disks/disk")}
    assert kinds == {"vda": "external", "vdb": "no"}
    source = root.find("./disks/disk/source")
    assert source is not None and source.attrib["file"] == str(overlay)
