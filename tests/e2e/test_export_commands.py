"""``drvm export`` and ``drvm import`` as people call them, without any VM."""

from __future__ import annotations

import uuid
from pathlib import Path

import msgspec
import pytest

from drvm.core.ids import new_point_id
from drvm.core.units import MIB
from tests.appliance import Appliance, make_appliance
from tests.unit.repository.test_round_trip import noise

CONTENT = noise(MIB) + bytes(80 * MIB) + noise(4096, 1)


@pytest.fixture(scope="module")
def appliance(tmp_path_factory: pytest.TempPathFactory) -> Appliance:
    directory = tmp_path_factory.mktemp("appliance")
    made = make_appliance(directory, f"file://{directory}/repository", None)
    made.drvm("init")
    (directory / "a.raw").write_bytes(CONTENT)
    made.drvm("backup", "--image", "--name", "a", str(directory / "a.raw"))
    return made


@pytest.mark.parametrize("image_format", ["raw", "qcow2", "vmdk", "vdi", "vhdx"])
def test_what_was_exported_is_imported_and_restored_byte_for_byte(
    appliance: Appliance, tmp_path: Path, image_format: str
) -> None:
    how = ("export", "a", "--format", image_format, "--output", str(tmp_path / "out"))
    planned = appliance.json(*how, "--dry-run")["plan"]
    assert not (tmp_path / "out").exists()
    exported = appliance.json(*how)["exported"]
    assert exported["files"] == planned["files"] == [planned["images"][0]["path"]]
    (point,) = appliance.json("import", *exported["files"], "--name", image_format)["points"]
    (disk,) = point["disks"]
    assert (point["vm"], disk["new_bytes"]) == (image_format, 0)
    appliance.drvm("restore", image_format, "--output", str(tmp_path), "--format", "raw")
    assert (tmp_path / "disk0.raw").read_bytes() == CONTENT


def test_a_machine_is_made_around_images_and_nothing_else_is(
    appliance: Appliance, tmp_path: Path
) -> None:
    image = str(appliance.directory / "a.raw")
    how = ("import", image, "--name", "b", "--memory", "1GiB", "--cpus", "2", "--uefi")
    plan = appliance.json(*how, "--dry-run")["plan"]
    assert [disk["target"] for disk in plan["images"]] == ["sda"]
    assert "<vcpu>2</vcpu>" in plan["definition"]
    (point,) = appliance.json(*how)["points"]
    exported = appliance.json("export", point["id"], "--format", "ova", "--output", str(tmp_path))
    ova = exported["exported"]["files"][0]
    again = appliance.json("import", ova, "--name", "c", "--virtio", "--dry-run")["plan"]
    assert [(disk["target"], disk["format"]) for disk in again["images"]] == [("vda", "vmdk")]
    assert 'firmware="efi"' in again["definition"]
    assert appliance.json("points", "b")["points"][0]["id"] == point["id"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("--name", "x"),
        ("a.unknown", "--name", "x"),
        ("a.vmdk", "--name", "../x"),
        ("a.vmdk", "--name", "x", "--cpus", "2"),
        ("a.vmdk", "--name", "x", "--virtio"),
        ("a.vmdk", "--name", "x", "--memory", "much"),
        ("a.vmdk", "--name", "x", "--memory", "0"),
        ("a.ova", "--name", "x", "--memory", "1GiB"),
        ("a.ova", "a.vmdk", "--name", "x"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(
    appliance: Appliance, arguments: tuple[str, ...]
) -> None:
    appliance.drvm("import", *arguments, expect=2)


def test_an_image_that_names_other_files_is_refused_with_a_hint(
    appliance: Appliance, tmp_path: Path
) -> None:
    (tmp_path / "a.vmdk").write_text('# Disk DescriptorFile\nRW 8 FLAT "/etc/shadow" 0\n')
    refused = appliance.drvm("import", str(tmp_path / "a.vmdk"), "--name", "x", expect=1)
    assert "only describes a disk" in refused.err
    assert "hint:" in refused.err
    assert all(point["vm"] != "x" for point in appliance.json("points")["points"])


def test_the_name_of_another_machine_is_not_taken(appliance: Appliance) -> None:
    with appliance.wiring() as wiring:
        repository = wiring.repository()
        manifest = repository.points().points[0].manifest
        other = {"id": new_point_id(), "vm": "taken", "vm_uuid": str(uuid.uuid4())}
        repository.commit(msgspec.structs.replace(manifest, **other))
    image = str(appliance.directory / "a.raw")
    refused = appliance.drvm("import", image, "--name", "taken", expect=2)
    assert "another machine" in refused.err


def test_nothing_is_exported_over_a_file(appliance: Appliance, tmp_path: Path) -> None:
    (tmp_path / "a-disk0.vdi").write_text("somebody's")
    refused = appliance.drvm(
        "export", "a", "--format", "vdi", "--output", str(tmp_path), expect=None
    )
    assert refused.code == 1
    assert (tmp_path / "a-disk0.vdi").read_text() == "somebody's"
