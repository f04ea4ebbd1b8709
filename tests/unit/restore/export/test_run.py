"""Every format that is exported reads as the point does, or there is no file at all."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from pathlib import Path

import msgspec
import pytest

from drvm.chunker.blocks import LEAF_BYTES
from drvm.core.clock import SystemClock
from drvm.core.errors import DamageFound, PreflightFailed, RestoreError, UsageError
from drvm.core.process import SystemProcesses
from drvm.core.progress import NoProgress, Trace, no_trace
from drvm.core.units import MIB
from drvm.restore.export.package import open_package
from drvm.restore.export.plan import FORMATS, ExportFormat, ExportPlan, plan_export
from drvm.restore.export.run import Exporter
from drvm.restore.targets.images import ImageRestorer
from drvm.restore.targets.partial import SUFFIX
from tests.killing import killed_at
from tests.unit.repository.conftest import Vault, cheap_key_derivation, new_vault
from tests.unit.repository.test_round_trip import noise
from tests.unit.restore.export.envelopes import checked_envelope, items

__all__ = ["cheap_key_derivation"]  # a fixture

CONTENT = noise(MIB) + bytes(2 * LEAF_BYTES) + noise(MIB // 2 + 700, 1)
"""With a hole that is longer than a leaf, and an end that is no whole block or sector."""
ZEROES = bytes(3 * MIB)
DEFINITION = b"""<domain type='kvm'><name>web1</name><memory unit='MiB'>512</memory><vcpu>2</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type></os><devices>
<disk type='file' device='disk'><source file='/a'/><target dev='vda' bus='virtio'/></disk>
<disk type='file' device='disk'><source file='/b'/><target dev='vdb' bus='virtio'/></disk>
<interface type='network'><source network='lan'/><model type='virtio'/></interface>
</devices></domain>"""


@pytest.fixture
def vault() -> Vault:
    vault = new_vault()
    vault.save([CONTENT, ZEROES], step=1 << 24, definition=DEFINITION)
    return vault


def plan(vault: Vault, directory: Path, image_format: ExportFormat) -> ExportPlan:
    (point,) = vault.repository.points().points
    return plan_export(vault.repository, point.manifest, directory, image_format)


def exporter(vault: Vault, trace: Trace = no_trace) -> Exporter:
    processes, clock = SystemProcesses(), SystemClock()
    restorer = ImageRestorer(vault.repository, processes, clock, trace)
    return Exporter(vault.repository, restorer, processes, clock, trace)


def same(image: Path, image_format: str, content: bytes, scratch: Path) -> bool:
    """As QEMU's own comparison sees it, which passes over zeroes beyond the end of one."""
    expected, processes = scratch / "expected", SystemProcesses()
    expected.write_bytes(content + bytes(-len(content) % 512))
    argv = ["qemu-img", "compare", "-f", image_format, "-F", "raw", str(image), str(expected)]
    told = processes.run(argv, timeout_s=60).stdout
    return told == b"Images are identical.\n"


IMAGES = [image_format for image_format in FORMATS if image_format != "ova"]


@pytest.mark.parametrize("image_format", IMAGES)
def test_what_is_exported_reads_as_what_was_stored(vault, tmp_path, image_format):
    directory = tmp_path / "out"
    exported = exporter(vault).run(plan(vault, directory, image_format), NoProgress())
    first, second = exported.files[:2]
    assert [first.name, second.name] == [f"web1-vd{n}.{image_format}" for n in "ab"]
    assert same(first, image_format, CONTENT, tmp_path)
    assert same(second, image_format, ZEROES, tmp_path)
    assert first.stat().st_blocks * 512 < 5 * MIB
    assert sorted(directory.iterdir()) == sorted(exported.files)


@pytest.mark.parametrize("image_format", ["vmdk", "vdi", "vhdx"])
def test_the_machine_is_described_beside_its_disks(vault, tmp_path, image_format):
    exporter(vault).run(plan(vault, tmp_path, image_format), NoProgress())
    root = checked_envelope(tmp_path / "web1.ovf")
    assert items(root, 4)[0]["VirtualQuantity"] == "512"
    assert "ahci" in (tmp_path / "web1-README.txt").read_text()


def test_an_ova_holds_the_machine_as_an_import_reads_it(vault, tmp_path):
    out = tmp_path / "out"
    exported = exporter(vault).run(plan(vault, out, "ova"), NoProgress())
    assert [path.name for path in exported.files] == ["web1.ova", "web1-README.txt"]
    assert sorted(out.iterdir()) == sorted(exported.files)
    package = open_package(exported.files[0])
    assert package.appliance.files == ("web1-vda.vmdk", "web1-vdb.vmdk")
    argv = ["tar", "-C", str(tmp_path), "-xvf", str(exported.files[0])]
    names = SystemProcesses().run(argv, timeout_s=60).stdout.decode().split()
    assert names == ["web1.ovf", "web1.mf", "web1-vda.vmdk", "web1-vdb.vmdk"]
    checked_envelope(tmp_path / "web1.ovf")
    assert same(tmp_path / "web1-vda.vmdk", "vmdk", CONTENT, tmp_path)
    data = exported.files[0].read_bytes()
    for image, name in zip(package.images, names[2:], strict=True):
        part = image.part
        assert part is not None
        lies = data[part.offset : part.offset + part.size_bytes]
        assert lies == (tmp_path / name).read_bytes()


def test_a_machine_of_the_longest_name_goes_into_an_ova_too(vault, tmp_path):
    (point,) = vault.repository.points().points
    name = "w" * 128
    manifest = msgspec.structs.replace(point.manifest, vm=name)
    planned = plan_export(vault.repository, manifest, tmp_path, "ova")
    exported = exporter(vault).run(planned, NoProgress())
    assert open_package(exported.files[0]).appliance.files == (
        f"{name}-vda.vmdk",
        f"{name}-vdb.vmdk",
    )


@pytest.mark.parametrize("step", ["export-packed", "export-read-back-vda", "export-named-0"])
def test_a_killed_export_to_an_ova_can_be_run_again(vault, tmp_path, step):
    planned = plan(vault, tmp_path, "ova")
    killed_at(step, lambda trace: exporter(vault, trace).run(planned, NoProgress()))
    planned.ova.unlink(missing_ok=True)
    exported = exporter(vault).run(plan(vault, tmp_path, "ova"), NoProgress())
    assert sorted(tmp_path.iterdir()) == sorted(exported.files)


def test_a_vmdk_counts_as_written_though_its_raw_image_was_there(vault, tmp_path):
    planned = plan(vault, tmp_path, "vmdk")
    step = "export-compressed-vda"
    killed_at(step, lambda trace: exporter(vault, trace).run(planned, NoProgress()))
    exported = exporter(vault).run(planned, NoProgress())
    made = sum(disk.path.stat().st_size for disk in planned.disks)
    assert exported.written_bytes == made


def test_images_without_a_vm_are_no_ova(vault, tmp_path):
    (point,) = vault.repository.points().points
    images_only = msgspec.structs.replace(point.manifest, definition=None)
    with pytest.raises(UsageError, match="without a VM"):
        plan_export(vault.repository, images_only, tmp_path, "ova")


def test_a_vmdk_is_stream_optimised_and_names_itself(vault, tmp_path):
    exported = exporter(vault).run(plan(vault, tmp_path / "out", "vmdk"), NoProgress())
    head = exported.files[0].read_bytes()[:4096]
    assert b'createType="streamOptimized"' in head
    assert b'SPARSE "web1-vda.vmdk"' in head
    assert b"drvm-partial" not in head


@pytest.mark.parametrize("image_format", FORMATS)
def test_an_image_that_reads_otherwise_is_not_kept(vault, tmp_path, image_format):
    """As if the storage lost what was written: the image is right, the point is another."""
    planned = plan(vault, tmp_path / "out", image_format)
    other = vault.save([CONTENT[:-1] + b"?"]).manifest.disks[0]

    class Mistaken(ImageRestorer):
        @contextlib.contextmanager
        def made(self, image, progress):
            with super().made(dataclasses.replace(image, disk=other), progress) as made:
                yield dataclasses.replace(made, disk=image.disk)

    processes, clock = SystemProcesses(), SystemClock()
    mistaken = Mistaken(vault.repository, processes, clock)
    with pytest.raises(RestoreError, match="does not read back as it was stored"):
        Exporter(vault.repository, mistaken, processes, clock).run(planned, NoProgress())
    assert not (tmp_path / "out").exists()


def test_damage_leaves_no_file_and_no_folder(vault, tmp_path):
    planned = plan(vault, tmp_path / "a" / "b", "vmdk")
    for name, (data, modified) in list(vault.store.objects.items()):
        if name.startswith("packs/") and len(data) > MIB:
            vault.store.objects[name] = data[:5000] + b"?" + data[5001:], modified
    with pytest.raises(DamageFound):
        exporter(vault).run(planned, NoProgress())
    assert list(tmp_path.iterdir()) == []


def test_no_existing_file_is_touched(vault, tmp_path):
    (tmp_path / "web1-vdb.vdi").symlink_to("/nowhere")
    with pytest.raises(PreflightFailed) as refused:
        plan(vault, tmp_path, "vdi")
    assert [problem.split()[0] for problem in refused.value.problems] == [
        str(tmp_path / "web1-vdb.vdi")
    ]


def test_a_file_that_appears_meanwhile_is_not_replaced(vault, tmp_path):
    planned = plan(vault, tmp_path / "out", "qcow2")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "web1-vdb.qcow2").write_text("somebody's")
    with pytest.raises(RestoreError):
        exporter(vault).run(planned, NoProgress())
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["web1-vdb.qcow2"]
    assert (tmp_path / "out" / "web1-vdb.qcow2").read_text() == "somebody's"


def test_partial_images_of_a_killed_export_are_swept(vault, tmp_path):
    (tmp_path / ".web1-vda.vmdk.0123abcd.drvm-partial").write_bytes(b"half")
    exported = exporter(vault).run(plan(vault, tmp_path, "raw"), NoProgress())
    assert sorted(tmp_path.iterdir()) == sorted(exported.files)


def test_a_disk_that_the_point_lacks_is_refused(vault, tmp_path):
    (point,) = vault.repository.points().points
    with pytest.raises(UsageError, match="has no disk sda"):
        plan_export(vault.repository, point.manifest, tmp_path, "raw", frozenset({"sda"}))


STEPS = [
    *("image-begun-vda", "image-whole-vda", "export-read-back-vda"),
    *("image-made-vdb", "image-written-vdb", "export-read-back-vdb"),
    *("export-named-0", "export-named-1", "export-described-txt", "export-described-ovf"),
]


@pytest.mark.parametrize("step", ["image-begun-vda", "export-compressed-vda", "export-named-0"])
def test_a_killed_export_can_be_run_again(vault, tmp_path, step):
    kill_and_go_on(vault, tmp_path, "vmdk", step)


@pytest.mark.long
@pytest.mark.parametrize("image_format", IMAGES)
@pytest.mark.parametrize("step", STEPS)
def test_an_export_can_be_run_again_wherever_it_was_killed(vault, tmp_path, image_format, step):
    if "described" in step and image_format in ("raw", "qcow2"):
        pytest.skip("it is not described")
    kill_and_go_on(vault, tmp_path, image_format, step)


def kill_and_go_on(vault: Vault, directory: Path, image_format: ExportFormat, step: str) -> None:
    planned = plan(vault, directory, image_format)

    def work(trace: Trace) -> None:
        exporter(vault, trace).run(planned, NoProgress())

    killed_at(step, work)
    named = [path for path in planned.files if path.exists()]
    assert all(path.name.endswith(SUFFIX) for path in directory.iterdir() if path not in named)
    assert planned.files[-1] not in named or not planned.machine
    if named:
        assert step.startswith(("export-named", "export-described"))
        with pytest.raises(PreflightFailed):
            plan(vault, directory, image_format)
    for path in named:
        path.unlink()
    exported = exporter(vault).run(plan(vault, directory, image_format), NoProgress())
    assert sorted(directory.iterdir()) == sorted(exported.files)
    with tempfile.TemporaryDirectory() as scratch:
        assert same(exported.files[0], image_format, CONTENT, Path(scratch))
