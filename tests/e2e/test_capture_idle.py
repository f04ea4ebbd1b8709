"""Captures of machines without an operating system: what libvirt and QEMU do does not need one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from drvm.core.errors import CaptureError, CleanupFailed, Locked
from drvm.core.process import Processes, SystemProcesses
from drvm.core.progress import Trace
from drvm.lab.guest import URI, workspace
from drvm.snapshot.parts import Parts
from drvm.snapshot.recovery import find, recover
from tests.capturing import (
    assert_back_on_its_disks,
    capture,
    digest,
    image_digest,
    make_parts,
    with_trace,
)
from tests.guests import Guest, unique_name
from tests.killing import end_at

pytestmark = pytest.mark.guest


def definition(name: str, directory: Path) -> str:
    disks = "".join(
        f"<disk type='file' device='disk'><driver name='qemu' type='{kind}'/>"
        f"<source file='{directory / file}'/><target dev='{target}' bus='virtio'/></disk>"
        for target, kind, file in (("vda", "qcow2", "top.qcow2"), ("vdb", "raw", "data.img"))
    )
    return f"""<domain type='qemu'><name>{name}</name><memory unit='MiB'>64</memory>
    <os><type arch='x86_64' machine='q35'>hvm</type></os><devices>{disks}
    <disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>
    </devices></domain>"""


def qemu_io(path: Path, image_format: str, command: str) -> None:
    SystemProcesses().run(["qemu-io", "-f", image_format, "-c", command, str(path)], timeout_s=30)


def the_guest_writes(machine: Guest, number: int, command: str) -> None:
    """Through QEMU's own block device, as the guest's driver would."""
    device = f"/machine/peripheral/virtio-disk{number}/virtio-backend"
    reply = machine.virsh("qemu-monitor-command", "--hmp", f'qemu-io -d {device} "{command}"')
    assert "wrote" in reply or not reply.strip(), reply


@pytest.fixture
def machine(libvirt_uri: str, processes: Processes) -> Iterator[Guest]:
    """Off. vda: qcow2 on a template; vdb: raw."""
    name = unique_name("idle")
    with workspace(name) as directory:
        template, top, data = (directory / n for n in ("template.img", "top.qcow2", "data.img"))
        template.write_bytes(b"t" * 4 * 1024 * 1024)
        data.write_bytes(b"d" * 3 * 1024 * 1024 + bytes(512))
        argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(template), "-F", "raw"]
        processes.run([*argv, str(top)], timeout_s=30)
        qemu_io(top, "qcow2", "write -P 65 1M 64k")
        (directory / "domain.xml").write_text(definition(name, directory))
        argv = ["virsh", "-q", "-c", URI, "define", str(directory / "domain.xml")]
        processes.run(argv, timeout_s=30)
        guest = Guest(name, directory, {"vda": top, "vdb": data}, processes)
        try:
            yield guest
        finally:
            guest.remove()


@pytest.fixture
def parts(libvirt_uri: str, tmp_path: Path, processes: Processes) -> Parts:
    return make_parts(libvirt_uri, tmp_path / "state", processes)


def test_a_template_below_the_disk_is_never_written_to(
    machine: Guest, parts: Parts, tmp_path: Path, processes: Processes
) -> None:
    machine.virsh("start", "--paused")
    template = machine.directory / "template.img"
    before, modified = template.read_bytes(), template.stat().st_mtime_ns
    with capture(parts, machine.name) as frozen:
        assert frozen.consistency == "crash"
        assert any("paused" in words for words in frozen.warnings)
        for disk in frozen.disks:
            expected = image_digest(machine.disks[disk.target], disk.format, tmp_path, processes)
            assert digest(disk) == expected
        the_guest_writes(machine, 0, "write -P 66 2M 64k")
    assert_back_on_its_disks(machine, parts)
    machine.virsh("destroy")
    assert (template.read_bytes(), template.stat().st_mtime_ns) == (before, modified)
    for pattern in ("read -P 65 1M 64k", "read -P 66 2M 64k"):
        qemu_io(machine.disks["vda"], "qcow2", pattern)
    assert parts.images.info(machine.disks["vda"], "qcow2").backing_file == str(template)


@dataclass(frozen=True)
class Foreign:
    begin: Callable[[Guest], object]
    words: str


def _snapshot(machine: Guest) -> None:
    machine.virsh("snapshot-create-as", "theirs", "--disk-only", "--diskspec", "vdb,snapshot=no")


def _block_job(machine: Guest) -> None:
    copy = machine.directory / "copy"
    machine.virsh("blockcopy", "vdb", str(copy), "--transient-job", "--bandwidth", "1")


def _backup(machine: Guest) -> None:
    machine.directory.chmod(0o777)  # QEMU makes its socket there
    xml = machine.directory / "backup.xml"
    xml.write_text(
        "<domainbackup mode='pull'><server transport='unix'"
        f" socket='{machine.directory}/nbd'/></domainbackup>"
    )
    machine.virsh("backup-begin", str(xml))


@pytest.mark.parametrize(
    "foreign",
    [
        pytest.param(Foreign(_snapshot, "external snapshot theirs"), id="snapshot"),
        pytest.param(Foreign(_block_job, "block job"), id="block-job"),
        pytest.param(Foreign(_backup, "backup"), id="backup"),
    ],
)
def test_work_of_somebody_else_is_refused_and_left_as_it_is(
    foreign: Foreign, machine: Guest, parts: Parts
) -> None:
    machine.virsh("start", "--paused")
    foreign.begin(machine)
    before = machine.virsh("domblklist")
    with (
        pytest.raises(CaptureError, match=foreign.words),
        capture(parts, machine.name, engine="external"),
    ):
        pytest.fail("captured")
    assert machine.virsh("domblklist") == before
    assert [p.name for p in machine.directory.iterdir() if p.name.endswith(".overlay")] == []
    assert find(parts, machine.name) == []


def test_a_snapshot_on_top_of_ours_is_named_and_left_until_it_is_gone(
    machine: Guest, parts: Parts
) -> None:
    machine.virsh("start", "--paused")
    theirs = machine.directory / "theirs"
    spec = f"vda,snapshot=external,file={theirs}"
    with pytest.raises(CleanupFailed, match="somebody else made a snapshot"):  # noqa: SIM117
        with capture(parts, machine.name):
            machine.virsh(
                "snapshot-create-as",
                "theirs",
                "--disk-only",
                "--no-metadata",
                "--diskspec",
                spec,
                "--diskspec",
                "vdb,snapshot=no",
            )
    assert machine.virsh("domblklist").count(str(theirs)) == 1
    assert [recovered.problem != "" for recovered in recover(parts, machine.name)] == [True]
    machine.virsh("blockcommit", "vda", "--active", "--shallow", "--pivot", "--wait")
    theirs.unlink()
    assert [recovered.problem for recovered in recover(parts, machine.name)] == [""]
    assert_back_on_its_disks(machine, parts)


def test_a_machine_that_is_undefined_and_ends_meanwhile_leaves_whole_disks(
    machine: Guest, parts: Parts
) -> None:
    machine.virsh("start", "--paused")
    with capture(parts, machine.name):
        the_guest_writes(machine, 1, "write -P 66 1M 64k")
        machine.virsh("undefine")
        machine.virsh("destroy")
    qemu_io(machine.disks["vdb"], "raw", "read -P 66 1M 64k")
    assert [p.name for p in machine.directory.iterdir() if p.name.endswith(".overlay")] == []
    assert parts.journal.machines() == []


def test_a_policy_that_asks_for_frozen_file_systems_gets_no_less(
    machine: Guest, parts: Parts
) -> None:
    machine.virsh("start")
    with (
        pytest.raises(CaptureError, match=r"can't be frozen: .*agent"),
        capture(parts, machine.name, filesystem=True),
    ):
        pytest.fail("captured without a freeze")
    assert_back_on_its_disks(machine, parts)


def test_two_captures_of_one_machine_at_once_are_refused(machine: Guest, parts: Parts) -> None:
    machine.virsh("start", "--paused")
    with capture(parts, machine.name):
        with pytest.raises(Locked), capture(parts, machine.name):
            pytest.fail("captured twice")
        assert find(parts, machine.name) == []
    assert_back_on_its_disks(machine, parts)


def test_a_drvm_with_another_state_directory_does_not_recover_a_capture_that_is_under_way(
    machine: Guest, parts: Parts, libvirt_uri: str, tmp_path: Path, processes: Processes
) -> None:
    other = make_parts(libvirt_uri, tmp_path / "elsewhere", processes)
    machine.virsh("start", "--paused")
    with capture(parts, machine.name) as frozen:
        before = machine.virsh("domblklist")
        assert recover(other, machine.name) == []
        with pytest.raises(Locked), capture(other, machine.name):
            pytest.fail("captured twice")
        assert machine.virsh("domblklist") == before
        assert len({digest(disk) for disk in frozen.disks}) == 2
    assert_back_on_its_disks(machine, parts)


def test_a_machine_that_is_off_is_read_as_it_lies_there(
    machine: Guest, parts: Parts, tmp_path: Path, processes: Processes
) -> None:
    with capture(parts, machine.name) as frozen:
        assert (frozen.engine, frozen.consistency) == ("offline", "offline")
        for disk in frozen.disks:
            expected = image_digest(machine.disks[disk.target], disk.format, tmp_path, processes)
            assert digest(disk) == expected
    assert_back_on_its_disks(machine, parts)


def test_a_machine_that_is_started_while_it_is_read_starts_and_is_not_stored(
    machine: Guest, parts: Parts
) -> None:
    with capture(parts, machine.name) as frozen:
        assert len({digest(disk) for disk in frozen.disks}) == 2
        machine.virsh("start", "--paused")
        the_guest_writes(machine, 1, "write -P 66 1M 64k")
        with pytest.raises(CaptureError, match="written to while"):
            digest(frozen.disks[1])
    assert machine.virsh("domstate").strip() == "paused"


KILLS = (
    "snapshot-taken",
    "commit-started-vda",
    "pivoted-vda",
    "pivoted-vdb",
)


def test_a_kill_and_then_a_machine_that_is_off_is_put_right_at_every_step(
    machine: Guest, parts: Parts, libvirt_uri: str, tmp_path: Path, processes: Processes
) -> None:
    for number, step in enumerate(KILLS):
        machine.virsh("start", "--paused")
        _killed_capture(machine, parts, step)
        machine.virsh("destroy")
        marks = _write_where_the_machine_would(machine, 1 + number)
        for again in ("merge-journaled-vda", "merged-vda", "redefined-vda", "overlays-removed"):
            _killed_recovery(machine, parts, again)
        assert [r.problem for r in recover(parts, machine.name)] in ([], [""]), step
        assert_back_on_its_disks(machine, parts)
        for path, image_format in marks:
            qemu_io(path, image_format, f"read -P {1 + number} 2M 64k")
        parts.images.check(machine.disks["vda"], "qcow2")


def _killed_capture(machine: Guest, parts: Parts, step: str) -> None:
    def work(trace: Trace) -> None:
        with capture(with_trace(parts, trace), machine.name):
            pass

    end_at(step, work)


def _killed_recovery(machine: Guest, parts: Parts, step: str) -> None:
    end_at(step, lambda trace: recover(with_trace(parts, trace), machine.name))


def _write_where_the_machine_would(machine: Guest, pattern: int) -> list[tuple[Path, str]]:
    """To the images that its definition names: what the guest wrote last. The bases, where it
    has to be found in the end."""
    named = dict(
        line.split(maxsplit=1)
        for line in machine.virsh("domblklist", "--inactive").strip().splitlines()
    )
    for target, base_format in (("vda", "qcow2"), ("vdb", "raw")):
        path = Path(named[target].strip())
        is_base = path == machine.disks[target]
        qemu_io(path, base_format if is_base else "qcow2", f"write -P {pattern} 2M 64k")
    return [(machine.disks["vda"], "qcow2"), (machine.disks["vdb"], "raw")]
