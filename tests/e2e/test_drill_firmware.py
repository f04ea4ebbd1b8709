"""Drills of a guest with UEFI variables and an emulated TPM: here, and on another host."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from drvm.core.clock import SystemClock
from drvm.core.process import Processes
from drvm.core.progress import NoProgress, Trace, no_trace
from drvm.drill.plan import DrillPlan, Method
from drvm.lab import guest as lab
from drvm.report.model import DrillResult
from drvm.wiring.drilling import carry_out
from drvm.wiring.drills import DrillWish, plan_drill_of
from tests import firmware
from tests.appliance import Appliance, make_appliance
from tests.guests import Guest, MakeGuest, unique_name
from tests.killing import killed_at
from tests.second_host import SecondHost, second_host

pytestmark = [pytest.mark.guest, pytest.mark.long]

CLOCK = SystemClock()
SWTPM = Path("/var/lib/libvirt/swtpm")
POLICY = """
policies:
  - name: uefi
    vms: ["{vm}"]
    drill: {{directory: {directory}, boot_timeout: 3m}}
"""


@dataclass(frozen=True)
class Machine:
    """A guest that has a point, which has a variable and TPM data that are called ``far``."""

    appliance: Appliance
    guest: Guest
    directory: Path
    virt_type: lab.VirtType
    processes: Processes

    def plan(self, method: Method = "restore", host_uri: str | None = None) -> DrillPlan:
        with self.appliance.wiring() as wiring:
            (point,) = wiring.repository().points().points
            wish = DrillWish(method, host_uri, self.virt_type)
            return plan_drill_of(wiring, point.manifest, wish)

    def run(self, plan: DrillPlan, trace: Trace = no_trace) -> DrillResult:
        with self.appliance.wiring() as wiring:
            done = carry_out(wiring, plan, NoProgress(), trace)
        assert done.error is None, done.error
        return done.results[0]

    def doctor(self, *options: str) -> str:
        found = self.appliance.json("doctor", *options, expect=None)["findings"]
        return " ".join(f["detail"] for f in found if f["name"] in ("dead drill", "dead restore"))


@pytest.fixture(scope="module")
def machine(
    tmp_path_factory: pytest.TempPathFactory,
    make_module_guest: MakeGuest,
    virt_type: lab.VirtType,
    processes: Processes,
) -> Iterator[Machine]:
    base = tmp_path_factory.mktemp("firmware")
    with lab.workspace(unique_name("drills")) as directory:
        guest = make_module_guest("uefi", uefi=True)
        more = POLICY.format(vm=guest.name, directory=directory)
        appliance = make_appliance(base, f"file://{base}/repository", None, more)
        appliance.drvm("init")
        firmware.write(guest, "far")
        appliance.backup(guest.name)
        yield Machine(appliance, guest, directory, virt_type, processes)


@pytest.fixture(scope="module")
def elsewhere(machine: Machine) -> Iterator[SecondHost]:
    with second_host(machine.processes) as host:
        host.run(["mkdir", "-p", str(machine.directory)])
        host.virsh("pool-create-as", "drills", "dir", "--target", str(machine.directory))
        yield host


def left_there(host: SecondHost) -> list[str]:
    """All that a drill could leave: also what libvirt keeps of firmware and TPMs by itself."""
    found = host.virsh("list", "--all", "--name").split()
    found += host.virsh("net-list", "--all", "--name").split()
    host.virsh("pool-refresh", "drills")
    found += host.virsh("vol-list", "drills").split()
    places = ["/var/lib/libvirt/swtpm", "/var/lib/libvirt/qemu/nvram"]
    told = host.run(["sh", "-c", f"find {' '.join(places)} -mindepth 1 2>/dev/null || true"])
    return found + told.stdout.decode().split()


@pytest.mark.parametrize("method", ["restore", "boot"])
def test_variables_and_tpm_are_there_for_the_drilled_guest_and_gone_behind_it(
    machine: Machine, method: Method
) -> None:
    before = {path.name for path in SWTPM.iterdir()}
    plan = machine.plan(method)
    seen: list[tuple[list[str], str]] = []

    def trace(step: str) -> None:
        if step == "checks-ended":
            drilled = Guest(plan.name, machine.directory, {}, machine.processes, lab.URI)
            seen.append(firmware.read(drilled))

    result = machine.run(plan, trace)
    assert result.passed, result
    assert seen == [(["far"], "far")]
    assert not any("TPM" in line for line in result.not_proven)
    assert {path.name for path in SWTPM.iterdir()} == before
    assert [*machine.directory.iterdir()] == []


def test_on_another_host_the_variables_are_there_and_the_tpm_is_said_to_be_empty(
    machine: Machine, elsewhere: SecondHost
) -> None:
    plan = machine.plan(host_uri=elsewhere.uri)
    seen: list[str] = []

    def trace(step: str) -> None:
        if step == "checks-ended":
            args = (plan.name, elsewhere.images, {}, machine.processes, elsewhere.uri)
            seen.append(Guest(*args).run("ls /sys/firmware/efi/efivars/far-* /dev/tpm0"))

    result = machine.run(plan, trace)
    assert result.passed, result
    assert "/far-" in seen[0] and "/dev/tpm0" in seen[0]
    (said,) = (line for line in result.not_proven if "what its TPM holds" in line)
    assert "can't be carried to another host" in said
    assert result.warnings == ()
    assert left_there(elsewhere) == []


@pytest.mark.parametrize("step", ["nvram-placed", "machine-started", "machine-ended"])
def test_what_a_kill_leaves_of_firmware_on_another_host_is_removed_from_here(
    machine: Machine, elsewhere: SecondHost, step: str
) -> None:
    plan = machine.plan(host_uri=elsewhere.uri)
    killed_at(step, lambda trace: machine.run(plan, trace))
    for _ in range(600):
        if not elsewhere.virsh("list", "--name").split():
            break
        CLOCK.sleep(0.1)
    left, told = left_there(elsewhere), machine.doctor()
    assert all(Path(part).name in told for part in left), (left, told)
    assert machine.doctor("--fix") == ""
    assert left_there(elsewhere) == []
