"""Machines that can't be captured and targets that can't be restored to, through the real command.

The machines are defined and never started: they have no operating system.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from drvm.core.process import Processes
from drvm.lab.guest import URI, workspace
from tests.appliance import Appliance, make_appliance
from tests.guests import Guest, unique_name
from tests.refusals import refused, small_disk, unchanged

pytestmark = pytest.mark.guest

MakeMachine = Callable[[str], Guest]
"""Define a machine around the XML of its disks; ``DIR`` in it is the directory of images."""

IMAGES = {"a.qcow2": "qcow2", "b.vmdk": "vmdk", "c.vdi": "vdi"}


@pytest.fixture(scope="module")
def images(libvirt_uri: str, processes: Processes) -> Iterator[Path]:
    """A directory with 8 MiB of image in several formats."""
    with workspace(unique_name("bad-target")) as directory:
        for name, image_format in IMAGES.items():
            argv = ["qemu-img", "create", "-q", "-f", image_format, str(directory / name), "8M"]
            processes.run(argv, timeout_s=30)
        yield directory


@pytest.fixture
def make_machine(images: Path, processes: Processes, tmp_path: Path) -> Iterator[MakeMachine]:
    made: list[Guest] = []

    def make(disks: str) -> Guest:
        name = unique_name("bad-target")
        xml = tmp_path / f"{name}.xml"
        xml.write_text(definition(name, disks.replace("DIR", str(images))))
        processes.run(["virsh", "-q", "-c", URI, "define", str(xml)], timeout_s=60)
        made.append(Guest(name, images, {}, processes))
        return made[-1]

    yield make
    for machine in made:
        machine.remove()


def definition(name: str, disks: str) -> str:
    return f"""<domain type='qemu'><name>{name}</name><memory unit='MiB'>64</memory>
    <os><type arch='x86_64' machine='q35'>hvm</type></os><devices>{disks}</devices></domain>"""


def file_disk(file: str, target: str = "vda", image_format: str = "") -> str:
    return (
        f"<disk type='file' device='disk'><driver name='qemu' "
        f"type='{image_format or IMAGES[file]}'/>"
        f"<source file='DIR/{file}'/><target dev='{target}' bus='virtio'/></disk>"
    )


NETWORK_DISK = """<disk type='network' device='disk'><driver name='qemu' type='raw'/>
    <source protocol='nbd' name='x'><host name='127.0.0.1' port='9'/></source>
    <target dev='vdb' bus='virtio'/></disk>"""


@pytest.fixture(scope="module")
def appliance(tmp_path_factory: pytest.TempPathFactory) -> Appliance:
    directory = tmp_path_factory.mktemp("bad-target")
    made = make_appliance(directory, f"file://{directory}/store", None)
    made.drvm("init")
    return made


@pytest.fixture(scope="module")
def protected(
    appliance: Appliance,
    images: Path,
    processes: Processes,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Guest]:
    """A machine that is off and has a point."""
    machine = Guest(unique_name("bad-target"), images, {"vda": images / "a.qcow2"}, processes)
    xml = tmp_path_factory.mktemp("xml") / "domain.xml"
    xml.write_text(definition(machine.name, file_disk("a.qcow2").replace("DIR", str(images))))
    processes.run(["virsh", "-q", "-c", URI, "define", str(xml)], timeout_s=60)
    try:
        appliance.backup(machine.name)
        yield machine
    finally:
        machine.remove()


def machines_and_pools(processes: Processes) -> str:
    """Only of this test run: others may run beside it."""
    lists = (["list", "--all", "--name"], ["pool-list", "--all", "--name"])
    told = [processes.run(["virsh", "-q", "-c", URI, *argv], timeout_s=60) for argv in lists]
    lines = "\n".join(answer.stdout.decode() for answer in told).splitlines()
    return "\n".join(line for line in lines if f"-{os.getpid()}-" in line or "bad-target" in line)


@pytest.mark.parametrize(
    ("disks", "says"),
    [
        (file_disk("a.qcow2") + file_disk("b.vmdk", "vdb"), "vdb is in the format vmdk"),
        (file_disk("c.vdi"), "vda is in the format vdi"),
        (file_disk("a.qcow2") + NETWORK_DISK, "vdb lies on network storage"),
        ("", "no disk left"),
    ],
)
def test_a_disk_that_cant_be_captured_fails_the_backup(
    disks: str, says: str, appliance: Appliance, make_machine: MakeMachine, images: Path
) -> None:
    machine = make_machine(disks)
    with unchanged(appliance.directory / "store", images):
        for more in ([], ["--dry-run"]):
            refused(appliance, "backup", machine.name, *more, code=1, says=says, hint="by name")


def test_a_disk_that_is_not_what_its_definition_says_fails_the_backup(
    appliance: Appliance, make_machine: MakeMachine, images: Path
) -> None:
    absent = make_machine(file_disk("gone.raw", image_format="raw"))
    disguised = make_machine(file_disk("b.vmdk", image_format="qcow2"))
    with unchanged(appliance.directory / "store", images):
        for machine, says, hint in (
            (absent, "there is no image", "mounted?"),
            (disguised, "can't be read as qcow2", "qemu-img info"),
        ):
            refused(appliance, "backup", machine.name, code=1, says=says, hint=hint)


def test_an_unknown_vm_or_disk_stops_the_backup_of_all(
    appliance: Appliance, protected: Guest
) -> None:
    with unchanged(appliance.directory / "store"):
        names = ("backup", protected.name, "no-such-vm")
        refused(appliance, *names, code=2, says="no VM 'no-such-vm'", hint="drvm vms")
        refused(appliance, "backup", "x/y.qcow2", code=2, says="no VM", hint="--image --name")
        arguments = ("backup", protected.name, "--exclude-disk", "vdz")
        refused(appliance, *arguments, code=1, says="vdz is excluded, but", hint="by name")


def test_a_machine_that_another_process_works_on_is_exit_11(
    appliance: Appliance, protected: Guest
) -> None:
    uuid = protected.virsh("domuuid").strip()
    (path,) = (appliance.directory / "state").rglob(f"{uuid}.lock")
    with path.open("r+") as lock, unchanged(appliance.directory / "store"):
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused(
            appliance,
            *("backup", protected.name),
            code=11,
            says="another drvm process works on",
            hint="try again",
        )


def test_a_libvirt_that_does_not_answer_is_told_before_anything_is_written(
    appliance: Appliance, protected: Guest
) -> None:
    env = {"LIBVIRT_DEFAULT_URI": "qemu+tcp://127.0.0.1:9/system"}
    with unchanged(appliance.directory / "store"):
        refused(
            appliance,
            *("backup", protected.name),
            code=1,
            says="no connection to",
            hint="libvirtd",
            env=env,
        )
        told = appliance.drvm("vms", env=env, expect=3)
    assert "unreachable" in told.out
    assert "no connection to" in told.err and "does libvirtd listen there" in told.err


def test_a_target_that_does_not_fit_is_refused_before_the_first_byte(
    appliance: Appliance, protected: Guest, processes: Processes, tmp_path: Path
) -> None:
    virsh = ["virsh", "-q", "-c", URI]
    pool = unique_name("bad-target")
    with small_disk(processes, tmp_path / "small") as place:
        argv = [*virsh, "pool-create-as", pool, "dir", "--target", str(place)]
        processes.run(argv, timeout_s=60)
        try:
            before = machines_and_pools(processes)
            with unchanged(appliance.directory / "store", place, protected.directory):
                for arguments, says in (
                    (["restore", protected.name, "--pool", pool], "exists on"),
                    (["clone", protected.name, "new", "--pool", pool], "1.0 MiB left and"),
                    (["clone", protected.name, protected.name, "--pool", pool], "exists on"),
                    (["clone", protected.name, "new", "--pool", "no-pool"], "does not exist"),
                    (["clone", protected.name, "new", "--machine", "pc-1.0"], "machine type"),
                ):
                    refused(appliance, *arguments, code=1, says="can't be restored", hint=says)
            assert machines_and_pools(processes) == before
        finally:
            processes.run([*virsh, "pool-destroy", pool], timeout_s=60)
