"""Restores to another machine that end early: by a kill, by a host that goes away, for want of
room. No machine is defined that lacks its disks, and whatever is left is known and removed."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest

from drvm.cli.invocation import Invocation
from drvm.core.process import Processes
from tests.appliance import Appliance, make_appliance
from tests.bare import Bare, bare_machine
from tests.guests import unique_name
from tests.second_host import SecondHost, second_host

pytestmark = pytest.mark.guest

LONG = pytest.mark.long
STEPS = (
    pytest.param("volume-lease-taken", marks=LONG),
    pytest.param("volume-made-vda", marks=LONG),
    pytest.param("volume-begun-vda", marks=LONG),
    pytest.param("volume-filled-vda", marks=LONG),
    pytest.param("volume-made-vdb", marks=LONG),
    "volume-begun-vdb",
    pytest.param("volume-filled-vdb", marks=LONG),
    "machine-defined",
)


@pytest.fixture(scope="module")
def second(processes: Processes, libvirt_uri: str) -> Iterator[SecondHost]:
    with second_host(processes) as host:
        yield host


@pytest.fixture(scope="module")
def machine(processes: Processes, libvirt_uri: str) -> Iterator[Bare]:
    with bare_machine(processes, "cut") as machine:
        machine.io("vda", "write -P 1 0 8M", "write -P 2 40M 1M")
        machine.io("vdb", "write -P 3 1M 9M")
        yield machine


@pytest.fixture(scope="module")
def appliance(
    tmp_path_factory: pytest.TempPathFactory, second: SecondHost, libvirt_uri: str
) -> Appliance:
    directory = tmp_path_factory.mktemp("appliance")
    hosts = f"hosts:\n  - uri: {libvirt_uri}\n  - uri: {second.uri}\n"
    made = make_appliance(directory, f"file://{directory}/repository", None, hosts)
    made.drvm("init")
    return made


@pytest.fixture(scope="module")
def point(machine: Bare, appliance: Appliance) -> dict[str, Any]:
    return appliance.backup(machine.name)


@pytest.fixture
def name(second: SecondHost) -> Iterator[str]:
    """Of a machine on the second host, which is empty before and behind."""
    name = unique_name("cut")
    yield name
    second_machine = Bare(name, second.images, {}, second.libvirtd.processes, second.uri)
    second_machine.remove()
    for image in second.images.iterdir():
        image.unlink()


def clone(point: dict[str, Any], name: str, second: SecondHost) -> tuple[str, ...]:
    return ("clone", point["id"], name, "--to", second.uri)


def left(second: SecondHost) -> set[str]:
    return {path.name for path in second.images.iterdir()}


def doctor(appliance: Appliance, *options: str) -> list[dict[str, Any]]:
    found = appliance.json("doctor", *options, expect=None)["findings"]
    return [one for one in found if "restore" in one["name"]]


def is_defined(second: SecondHost, name: str) -> bool:
    return name in second.virsh("list", "--all", "--name").split()


def assert_whole(machine: Bare, second: SecondHost, name: str, processes: Processes) -> None:
    """Each disk that the defined machine names is there, and has what the original's has."""
    xml = second.virsh("dumpxml", name)
    for target, image_format in (("vda", "raw"), ("vdb", "qcow2")):
        (file,) = re.findall(rf"/({name}-{target}-[0-9a-f]+\.{image_format})'", xml)
        formats = ["-f", image_format, "-F", image_format]
        argv = ["qemu-img", "compare", "-U", "-q", *formats, str(machine.disks[target])]
        processes.run([*argv, str(second.images / file)], timeout_s=60)


@pytest.mark.parametrize("step", STEPS)
def test_a_killed_restore_leaves_what_doctor_knows_and_removes(
    step: str,
    second: SecondHost,
    machine: Bare,
    appliance: Appliance,
    point: dict[str, Any],
    name: str,
    processes: Processes,
) -> None:
    appliance.killed_at(step, *clone(point, name, second))
    defined = step == "machine-defined"
    assert is_defined(second, name) == defined
    (found,) = doctor(appliance)
    assert (found["name"], found["ok"]) == ("dead restore", False)
    assert machine.name in found["detail"]
    doctor(appliance, "--fix")
    assert len(left(second)) == (2 if defined else 0)
    assert doctor(appliance) == []
    if defined:
        assert_whole(machine, second, name, processes)


@pytest.mark.parametrize("step", [step for step in STEPS if step != "machine-defined"])
def test_a_killed_restore_goes_on_with_what_is_right(
    step: str,
    second: SecondHost,
    machine: Bare,
    appliance: Appliance,
    point: dict[str, Any],
    name: str,
    processes: Processes,
) -> None:
    """In the same volumes; another restore beside it leaves them alone."""
    appliance.killed_at(step, *clone(point, name, second))
    before = left(second)
    assert [one["name"] for one in doctor(appliance)] == ["dead restore"]
    other = unique_name("beside")
    if step == "volume-filled-vda":
        appliance.drvm(*clone(point, other, second))
        Bare(other, second.images, {}, processes, second.uri).remove()
        assert before <= left(second)
    done = appliance.json(*clone(point, name, second))["restored"]
    if step == "volume-filled-vdb":
        assert done["written_bytes"] == 0
    assert {one for one in before if one.startswith(name)} <= left(second)
    assert_whole(machine, second, name, processes)
    assert doctor(appliance) == []


@pytest.mark.long
def test_a_machine_there_is_replaced_in_its_place(
    second: SecondHost,
    machine: Bare,
    appliance: Appliance,
    point: dict[str, Any],
    processes: Processes,
) -> None:
    there = Bare(machine.name, second.images, {}, processes, second.uri)
    try:
        appliance.drvm("restore", point["id"], "--to", second.uri)
        before = left(second)
        again = ("restore", point["id"], "--to", second.uri)
        assert "exists on" in appliance.drvm(*again, expect=1).err
        replaced = appliance.json(*again, "--replace", "--yes", "--format", "raw")["restored"]
        assert {name.rpartition("/")[2] for name in replaced["left_files"]} == before
        xml = second.virsh("dumpxml", machine.name)
        assert not any(name in xml for name in before) and len(left(second)) == 4
    finally:
        there.remove()
        for image in second.images.iterdir():
            image.unlink()


@contextlib.contextmanager
def happening(step: str, what: Callable[[], object]) -> Iterator[None]:
    """``what`` happens when a command has come to ``step``."""

    def trace(_invocation: Invocation, reached: str) -> None:
        if reached == step:
            what()

    with mock.patch.object(Invocation, "trace", trace):
        yield


def test_a_host_that_goes_away_is_told_and_the_same_restore_goes_on(
    second: SecondHost,
    machine: Bare,
    appliance: Appliance,
    point: dict[str, Any],
    name: str,
    processes: Processes,
) -> None:
    with happening("volume-begun-vdb", lambda: second.libvirtd.kill(away=True)):
        failed = appliance.drvm(*clone(point, name, second), expect=1)
    second.libvirtd.come_back()
    assert second.uri in failed.err and "the same command goes on with it" in failed.err
    assert left(second) and not is_defined(second, name)
    appliance.drvm(*clone(point, name, second))
    assert len(left(second)) == 2
    assert_whole(machine, second, name, processes)


@pytest.mark.long
def test_a_libvirtd_that_stands_still_ends_the_wait(
    second: SecondHost, appliance: Appliance, point: dict[str, Any], name: str
) -> None:
    pid = second.libvirtd.pid()
    with happening("volume-begun-vda", lambda: os.kill(pid, signal.SIGSTOP)):
        try:
            failed = appliance.drvm(*clone(point, name, second), expect=1)
        finally:
            os.kill(pid, signal.SIGCONT)
    assert "keepalive" in failed.err
    second.libvirtd.wait()
    doctor(appliance, "--fix")
    assert left(second) == set() and not is_defined(second, name)


@pytest.mark.long
def test_a_pool_that_fills_up_is_told_and_nothing_is_left(
    second: SecondHost, appliance: Appliance, point: dict[str, Any], name: str
) -> None:
    directory = "/var/lib/libvirt/small"
    options = ["mount", "-t", "tmpfs", "-o", "size=200M", "drvm", directory]
    second.run(["mkdir", directory])
    second.run(options)
    second.virsh("pool-create-as", "small", "dir", "--target", directory)

    def fill() -> None:
        fill = f"fallocate -l $(($(df --output=avail -B1 {directory} | tail -n 1) - 4096)) "
        second.run(["sh", "-c", f"{fill}{directory}/filler"])

    with happening("volume-made-vda", fill):
        failed = appliance.drvm(*clone(point, name, second), "--pool", "small", expect=1)
    assert "No space left" in failed.err and "look at the room in pool small" in failed.err
    there = second.run(["ls", "-A", directory]).stdout.decode().split()
    assert there == ["filler"] and not is_defined(second, name)
    second.virsh("pool-destroy", "small")
    second.run(["umount", directory])


@pytest.mark.long
def test_what_other_restores_fill_at_the_same_time_is_left_alone(
    second: SecondHost,
    machine: Bare,
    appliance: Appliance,
    point: dict[str, Any],
    name: str,
    processes: Processes,
) -> None:
    other = unique_name("other")

    def meanwhile() -> None:
        appliance_of_another = appliance.argv(*clone(point, other, second))
        processes.run(appliance_of_another, timeout_s=120, env=dict(appliance.env))
        assert [one["name"] for one in doctor(appliance)] == ["restore"]

    with happening("volume-begun-vdb", meanwhile):
        appliance.drvm(*clone(point, name, second))
    try:
        for one in (name, other):
            assert_whole(machine, second, one, processes)
        assert len(left(second)) == 4
    finally:
        Bare(other, second.images, {}, processes, second.uri).remove()
