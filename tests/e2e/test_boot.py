"""Instant recovery on a real guest: booted over the repository, pulled, finished, thrown away."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import drvm
from drvm.core import detached
from drvm.core.clock import SystemClock
from drvm.core.findings import Finding
from drvm.core.process import Processes
from drvm.core.progress import NoProgress, Trace, no_trace
from drvm.lab import guest as lab
from drvm.restore.instant.goon import discard, finish
from drvm.restore.instant.parts import Parts
from drvm.restore.instant.place import Place, places
from drvm.restore.instant.start import make_way, plan_boot, start_boot
from drvm.restore.plan import RestoreRequest
from drvm.restore.served.supervised import find_server
from drvm.wiring.assembly import Wiring
from drvm.wiring.instant import instant_parts, service_for, sweep_boots
from drvm.wiring.serving import service_of
from tests.appliance import Appliance, make_appliance
from tests.capturing import raw_copy
from tests.guests import Guest, MakeGuest, unique_name
from tests.killing import killed_at
from tests.second_host import second_host

pytestmark = pytest.mark.guest

_clock = SystemClock()


@dataclass(frozen=True)
class Bench:
    """A guest with a point, and where machines are booted from it. ``digest``: SHA-256 of what is
    in the guest's file ``/data/big``."""

    appliance: Appliance
    guest: Guest
    point: str
    digest: str
    pool: str
    directory: Path
    processes: Processes

    def boot(self, *options: str) -> Guest:
        """A booted machine whose agent answers."""
        name = unique_name("booted")
        arguments = ["boot", self.point, "--name", name, "--pool", self.pool, *options]
        document = self.appliance.json(*arguments)["booted"]
        disks = dict(zip(("vda", "vdb"), map(Path, document["files"]), strict=True))
        machine = Guest(name, self.directory, disks, self.processes)
        machine.wait_for_agent()
        return machine

    def begin(self, name: str, trace: Trace = no_trace) -> None:
        """``drvm boot`` in this process, as far as the machine's start."""
        with self.appliance.wiring() as wiring:
            parts, repository = self.parts(wiring, trace), wiring.repository()
            (point,) = repository.points().points
            request = RestoreRequest("clone", name, self.pool)
            with parts.boots.lock(name):
                make_way(parts, name, repository)
                plan = plan_boot(repository, point.manifest, parts.host, request)
                service = service_of(wiring, point)
                start_boot(parts, plan, point, repository, service, NoProgress(), writer="test")

    def finish(self, name: str, trace: Trace = no_trace) -> None:
        with self.appliance.wiring() as wiring:
            parts = self.parts(wiring, trace)
            with parts.boots.lock(name):
                boot = parts.boots.named(name)
                finish(
                    parts,
                    boot,
                    wiring.repository(),
                    lambda: service_for(wiring, boot),
                    NoProgress(),
                )

    def discard(self, name: str, trace: Trace = no_trace) -> None:
        with self.appliance.wiring() as wiring:
            parts = self.parts(wiring, trace)
            with parts.boots.lock(name):
                discard(parts, parts.boots.named(name), wiring.repository())

    def sweep(self) -> list[Finding]:
        with self.appliance.wiring() as wiring:
            return sweep_boots(wiring, wiring.local_host())

    def parts(self, wiring: Wiring, trace: Trace) -> Parts:
        return instant_parts(wiring, wiring.local_host(), trace)

    def machine(self, name: str) -> Guest:
        """One whose boot was begun."""
        found = {disk["target"]: Path(disk["path"]) for disk in self.state(name)["disks"]}
        return Guest(name, self.directory, found, self.processes)

    def state(self, name: str) -> dict[str, Any]:
        boots = {boot["name"]: boot for boot in self.appliance.json("boot")["boots"]}
        return dict(boots[name])

    def uuid(self, machine: Guest) -> str:
        return machine.virsh("domuuid").strip()

    def assert_nothing_is_left(self) -> None:
        """Of any boot: no record, no server, no pin, no file, no machine but the guest."""
        assert self.appliance.json("boot") == {"boots": []}
        assert places() == []
        assert list(self.directory.iterdir()) == []
        (point,) = self.appliance.json("show", self.point)["points"]
        assert point["pins"] == []


@pytest.fixture(scope="module")
def bench(
    tmp_path_factory: pytest.TempPathFactory,
    make_module_guest: MakeGuest,
    processes: Processes,
    libvirt_uri: str,
) -> Iterator[Bench]:
    directory = tmp_path_factory.mktemp("boot")
    appliance = make_appliance(directory, f"file://{directory}/repository", None)
    appliance.drvm("init")
    guest = make_module_guest("origin")
    guest.run("dd if=/dev/urandom of=/data/big bs=1M count=24 2>/dev/null; sync")
    digest = guest.run("sha256sum /data/big").split()[0]
    point = appliance.backup(guest.name)["id"]
    guest.virsh("destroy")
    name = unique_name("pool")
    with lab.workspace(name) as place:
        virsh = ["virsh", "-q", "-c", libvirt_uri]
        processes.run([*virsh, "pool-create-as", name, "dir", "--target", str(place)], timeout_s=60)
        try:
            yield Bench(appliance, guest, point, digest, name, place, processes)
        finally:
            processes.run([*virsh, "pool-destroy", name], timeout_s=60)


def digest_of(machine: Guest, path: str = "/data/big") -> str:
    return machine.run(f"echo 3 > /proc/sys/vm/drop_caches; sha256sum {path}").split()[0]


def boot_id(machine: Guest) -> str:
    """Another one after each boot of the guest."""
    return machine.run("cat /proc/sys/kernel/random/boot_id")


def assert_plain(machine: Guest) -> None:
    """Neither its definitions nor its images name anything but local files."""
    for inactive in ((), ("--inactive",)):
        assert "nbd" not in machine.virsh("dumpxml", *inactive)
    for image in machine.disks.values():
        argv = ["qemu-img", "info", "-U", "--output=json", "-f", "qcow2", str(image)]
        info = json.loads(machine.processes.run(argv, timeout_s=30).stdout)
        assert "backing-filename" not in info


def remove_with_images(machine: Guest) -> None:
    machine.remove()
    for image in machine.disks.values():
        image.unlink()


def own_ranges(machine: Guest, target: str) -> list[tuple[int, int]]:
    """(offset, end) of what the guest has written, while it stands still."""
    argv = ["qemu-img", "map", "-U", "--output=json", "-f", "qcow2", str(machine.disks[target])]
    entries = json.loads(machine.processes.run(argv, timeout_s=60).stdout)
    return [(e["start"], e["start"] + e["length"]) for e in entries if e["depth"] == 0]


def assert_as_stored(
    bench: Bench, machine: Guest, target: str, own: list[tuple[int, int]], scratch: Path
) -> None:
    """Every byte that the guest has not written is that of the point."""
    bench.appliance.drvm(
        *("restore", bench.point, "--disk", target, "--format", "raw"),
        *("--output", str(scratch / target)),
    )
    with raw_copy(machine.disks[target], "qcow2", scratch, machine.processes) as raw:
        found, stored = bytearray(raw.read_bytes()), (scratch / target / f"{target}.raw")
        wanted = bytearray(stored.read_bytes())
    assert len(found) == len(wanted)
    for start, end in own:
        found[start:end] = wanted[start:end] = bytes(end - start)
    assert found == wanted


def kill_servers(machine: Guest, bench: Bench, *, front: bool) -> None:
    place = Place(bench.uuid(machine))
    pid = find_server(place.server_directory)
    assert pid
    os.kill(pid, signal.SIGKILL)
    if front:
        (pid,) = detached.running(f"{place.front.socket}.pid")
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not place.is_fronted())
    wait_until(lambda: not place.is_served())


def wait_until(ready: Callable[[], bool]) -> None:
    for _ in range(1200):
        if ready():
            return
        _clock.sleep(0.05)
    raise AssertionError("it did not come")


def test_a_machine_runs_over_its_point_and_its_disks_are_pulled_byte_for_byte(
    bench: Bench, tmp_path: Path
) -> None:
    machine = bench.boot()
    try:
        assert digest_of(machine) == bench.digest
        state = bench.state(machine.name)
        assert (state["machine"], state["served"], state["ok"]) == ("running", True, True)
        assert [disk["over_repository"] for disk in state["disks"]] == [True, True]
        machine.run("echo mine > /data/mine; sync")
        machine.virsh("suspend")
        own = {target: own_ranges(machine, target) for target in machine.disks}
        killed_at("pulled-vda", lambda trace: bench.finish(machine.name, trace))
        state = bench.state(machine.name)
        assert not state["disks"][0]["over_repository"]
        assert "--finish" in state["hint"]
        bench.appliance.drvm("boot", "--finish", machine.name)
        assert_plain(machine)
        for target in machine.disks:
            assert_as_stored(bench, machine, target, own[target], tmp_path)
        machine.virsh("destroy")
        machine.start()
        assert digest_of(machine) == bench.digest
        assert machine.run("cat /data/mine") == "mine\n"
    finally:
        remove_with_images(machine)
    bench.assert_nothing_is_left()


def test_after_its_server_died_a_machine_goes_on_with_its_memory_and_is_then_discarded(
    bench: Bench,
) -> None:
    machine = bench.boot()
    before = boot_id(machine)
    machine.run("echo mine > /data/mine; sync")
    refused = bench.appliance.drvm("backup", machine.name, expect=None)
    assert refused.code == 1
    assert "drvm boot --finish" in refused.err
    again = bench.appliance.drvm(
        "boot", bench.point, "--name", machine.name, "--pool", bench.pool, expect=1
    )
    assert "already" in again.err
    kill_servers(machine, bench, front=True)
    work = "echo 3 > /proc/sys/vm/drop_caches; sha256sum /data/big > /data/sum"
    machine.agent("guest-exec", path="/bin/sh", arg=["-c", work])
    wait_until(lambda: bench.state(machine.name)["machine"] == "stopped by its disks")
    doctor = bench.appliance.json("doctor", expect=None)["findings"]
    (found,) = [f for f in doctor if f["name"] == f"booted {machine.name}"]
    assert not found["ok"]
    assert f"drvm boot --resume {machine.name}" in found["hint"]
    bench.appliance.drvm("boot", "--resume", machine.name)
    machine.wait_for_agent()
    assert boot_id(machine) == before
    assert digest_of(machine) == bench.digest
    assert machine.run("cat /data/mine") == "mine\n"
    wait_until(lambda: machine.run("cat /data/sum").startswith(bench.digest))
    bench.appliance.drvm("boot", "--discard", machine.name, expect=2)
    plan = bench.appliance.drvm("boot", "--discard", machine.name, "--yes", "--dry-run")
    assert "would be removed" in plan.out
    assert bench.state(machine.name)["machine"] == "running"
    bench.appliance.drvm("boot", "--discard", machine.name, "--yes")
    bench.assert_nothing_is_left()


MAKING = (
    *("boot-noted", "boot-pinned", "boot-served", "boot-fronted"),
    *("boot-image-vda", "boot-image-vdb", "boot-defined"),
)
STARTING = ("boot-begun", "boot-started")
FINISHING = (
    *("finish-noted", "pull-begun-vda", "pull-begun-vdb", "pulled-vda", "pulled-vdb"),
    *("finish-flushed", "finish-defined", "finish-unserved", "boot-unpinned"),
)
DISCARDING = (
    *("discard-noted", "remove-undefined", "remove-unserved"),
    *("remove-image-vda", "remove-image-vdb", "boot-unpinned"),
)


def killed_while_made(bench: Bench, step: str) -> None:
    name = unique_name("killed")
    killed_at(step, lambda trace: bench.begin(name, trace))
    assert not bench.state(name)["ok"]
    assert [finding.ok for finding in bench.sweep()] == [True]
    assert name not in bench.processes.run(["virsh", "list", "--all"], timeout_s=30).stdout.decode()
    bench.assert_nothing_is_left()


def test_what_a_boot_made_that_was_killed_before_its_guest_ran_is_removed(bench: Bench) -> None:
    killed_while_made(bench, "boot-defined")


@pytest.mark.long
@pytest.mark.parametrize("step", MAKING)
def test_a_boot_killed_before_its_guest_ran_leaves_nothing(bench: Bench, step: str) -> None:
    killed_while_made(bench, step)


@pytest.mark.long
@pytest.mark.parametrize("step", STARTING)
def test_a_boot_killed_at_its_guests_start_is_kept_and_goes_on(bench: Bench, step: str) -> None:
    name = unique_name("killed")
    killed_at(step, lambda trace: bench.begin(name, trace))
    assert bench.sweep() == []
    bench.appliance.drvm("boot", "--resume", name)
    machine = bench.machine(name)
    machine.wait_for_agent()
    assert digest_of(machine) == bench.digest
    bench.discard(name)
    bench.assert_nothing_is_left()


@pytest.mark.long
@pytest.mark.parametrize("step", FINISHING)
def test_a_finish_that_was_killed_can_be_run_again(bench: Bench, step: str) -> None:
    machine = bench.boot()
    try:
        killed_at(step, lambda trace: bench.finish(machine.name, trace))
        assert bench.sweep() == []
        assert machine.virsh("domstate").strip() == "running"
        bench.appliance.drvm("boot", "--finish", machine.name)
        assert_plain(machine)
        assert digest_of(machine) == bench.digest
    finally:
        remove_with_images(machine)
    bench.assert_nothing_is_left()


@pytest.mark.long
@pytest.mark.parametrize("step", DISCARDING)
def test_a_discard_that_was_killed_is_carried_on(bench: Bench, step: str) -> None:
    name = unique_name("killed")
    bench.begin(name)
    killed_at(step, lambda trace: bench.discard(name, trace))
    assert [finding.ok for finding in bench.sweep()] == [True]
    bench.assert_nothing_is_left()


@pytest.mark.long
def test_a_killed_server_is_started_anew_and_the_guest_does_not_notice(bench: Bench) -> None:
    machine = bench.boot()
    socket = Place(bench.uuid(machine)).server_directory / "socket"
    (nbdkit,) = detached.running(f"--unix={socket}")
    os.kill(nbdkit, signal.SIGKILL)
    assert digest_of(machine) == bench.digest
    assert bench.state(machine.name)["ok"]
    bench.discard(machine.name)
    bench.assert_nothing_is_left()


@pytest.mark.long
def test_after_the_host_died_the_guests_writes_are_there(bench: Bench) -> None:
    """As far as QEMU and the servers go; ``/run`` is empty then."""
    machine = bench.boot()
    machine.run("echo mine > /data/mine; sync")
    kill_servers(machine, bench, front=True)
    place = Place(bench.uuid(machine))
    machine.virsh("destroy")
    bench.processes.run(["rm", "-r", str(place.directory)], timeout_s=10)
    assert "--resume" in bench.state(machine.name)["hint"]
    bench.appliance.drvm("boot", "--resume", machine.name)
    machine.wait_for_agent()
    assert digest_of(machine) == bench.digest
    assert machine.run("cat /data/mine") == "mine\n"
    bench.discard(machine.name)
    bench.assert_nothing_is_left()


@pytest.mark.long
def test_a_machine_that_is_off_gets_plain_disks_too(bench: Bench) -> None:
    machine = bench.boot()
    try:
        machine.run("echo mine > /data/mine; sync")
        machine.shutdown()
        bench.appliance.drvm("boot", "--finish", machine.name)
        machine.start()
        assert_plain(machine)
        assert digest_of(machine) == bench.digest
        assert machine.run("cat /data/mine") == "mine\n"
    finally:
        remove_with_images(machine)
    bench.assert_nothing_is_left()


@pytest.mark.long
def test_a_pull_goes_on_in_the_background_while_the_guest_writes(bench: Bench) -> None:
    machine = bench.boot("--pull", "--bandwidth", "20")
    try:
        machine.run("dd if=/dev/urandom of=/data/new bs=1M count=8 2>/dev/null; sync")
        written = digest_of(machine, "/data/new")
        bench.appliance.drvm("boot", "--finish", machine.name)
        assert_plain(machine)
        assert digest_of(machine) == bench.digest
        assert digest_of(machine, "/data/new") == written
    finally:
        remove_with_images(machine)
    bench.assert_nothing_is_left()


def test_a_point_that_a_machine_runs_over_is_pinned(bench: Bench) -> None:
    """By its boot alone: the operator's pins of the point stay."""
    name = unique_name("pinned")
    bench.appliance.drvm("pin", bench.point, "--note", "the operator's")
    try:
        killed_at("boot-image-vda", lambda trace: bench.begin(name, trace))
        (point,) = bench.appliance.json("show", bench.point)["points"]
        assert {pin["note"] for pin in point["pins"]} == {"the operator's", f"drvm boot {name}"}
        bench.sweep()
        (point,) = bench.appliance.json("show", bench.point)["points"]
        assert [pin["note"] for pin in point["pins"]] == ["the operator's"]
    finally:
        bench.appliance.drvm("unpin", bench.point)
    bench.assert_nothing_is_left()


@pytest.mark.long
def test_on_another_host_that_has_only_the_repository_and_the_passphrase(bench: Bench) -> None:
    name = unique_name("far")
    environment = {**bench.appliance.env, "PYTHONPATH": str(Path(drvm.__file__).parents[1])}
    with second_host(bench.processes) as host:

        def run(*arguments: str) -> str:
            argv = bench.appliance.argv(*arguments)
            return host.run(argv, timeout_s=300, env=environment).stdout.decode()

        run("boot", bench.point, "--name", name)
        machine = Guest(name, bench.directory, {}, bench.processes, uri=host.uri)
        machine.wait_for_agent()
        assert digest_of(machine) == bench.digest
        machine.run("echo mine > /data/mine; sync")
        run("boot", "--finish", name)
        assert "nbd" not in machine.virsh("dumpxml")
        assert digest_of(machine) == bench.digest
        assert machine.run("cat /data/mine") == "mine\n"
        assert json.loads(run("--json", "boot")) == {"boots": []}
        machine.remove()
