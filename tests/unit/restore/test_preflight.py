"""Fault 21: what stands in the way of a restore is said before its first byte, all at once."""

from __future__ import annotations

import dataclasses

import pytest

from drvm.host.model import CpuObstacle, Host, HostCapabilities, Pool
from drvm.restore.machine.definition import rebuild
from drvm.restore.machine.nics import NetworkUse
from drvm.restore.preflight import ExistingDomain, Needs, TargetFacts, needs, problems
from drvm.restore.target import refusals
from tests.unit.restore.machines import CLONE, clone_of, machine

GIB = 1 << 30
OTHER = ExistingDomain(
    "other", "00000000-0000-4000-8000-000000000001", frozenset({"52:54:00:00:00:01"}), True
)
SAME = ExistingDomain(
    "vm", "00000000-0000-4000-8000-000000000002", frozenset({"52:54:00:00:00:02"}), False
)
POOL = Pool("default", "dir", True, "/images", 10 * GIB)
FACTS = TargetFacts(
    uri="qemu:///system",
    domains=(OTHER, SAME),
    networks=frozenset({"default", "x"}),
    pools={
        "default": POOL,
        "far": Pool("far", "iscsi", True, "/dev/disk/by-path", 100 * GIB),
        "off": Pool("off", "dir", False, "/off", 100 * GIB),
    },
    capabilities=HostCapabilities(
        "x86_64",
        frozenset({"pc-q35-7.2", "pc-q35-7.1", "q35", "pc-i440fx-7.2"}),
        frozenset({"qemu"}),
        frozenset({"bios"}),
    ),
    bridges=frozenset({"br0"}),
)
FINE = Needs(
    name="new",
    uuid="00000000-0000-4000-8000-000000000003",
    macs=frozenset({"52:54:00:00:00:03"}),
    replace=False,
    arch="x86_64",
    machine="pc-q35-7.2",
    virt_type="qemu",
    firmware="bios",
    networks=(NetworkUse("default", "network", "default"), NetworkUse("br0", "bridge", "br0")),
    room={"default": 10 * GIB},
)
REPLACES = dataclasses.replace(FINE, name=SAME.name, uuid=SAME.uuid, macs=SAME.macs, replace=True)


def test_a_target_that_has_everything_has_no_problem() -> None:
    assert problems(FACTS, FINE) == ()


def test_a_replacement_of_a_vm_that_is_off_has_no_problem() -> None:
    assert problems(FACTS, REPLACES) == ()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"name": "vm"}, "a VM named 'vm' exists clone POINT NAME --replace"),
        ({"uuid": SAME.uuid}, f"'vm' has the UUID {SAME.uuid} --clone"),
        ({"macs": OTHER.macs}, "'other' 52:54:00:00:00:01 --clone"),
        (
            {"networks": (NetworkUse("lan", "network", "lan"),)},
            "network 'lan' qemu:///system --map-network lan=NAME default x bridge:br0",
        ),
        (
            {"networks": (NetworkUse("lan", "bridge", "br9"),)},
            "bridge 'br9' --map-network lan=NAME",
        ),
        ({"room": {"none": 1}}, "pool 'none' does not exist --pool NAME default"),
        ({"room": {"far": 1}}, "iscsi --pool NAME default"),
        ({"room": {"off": 1}}, "not active start it --pool NAME"),
        ({"room": {"default": 10 * GIB + 1}}, "10.0 GiB left --pool --disk"),
        ({"arch": "aarch64"}, "x86_64 aarch64 --to URI"),
        ({"virt_type": "kvm"}, "no kvm --virt-type qemu"),
        ({"machine": "pc-q35-9.9"}, "'pc-q35-9.9' --machine pc-q35-7.2, pc-q35-7.1"),
        ({"machine": "odd"}, "'odd' --machine q35"),
        ({"firmware": "efi"}, "UEFI OVMF"),
    ],
)
def test_each_problem_is_one_line_with_what_resolves_it(
    changed: dict[str, object], words: str
) -> None:
    found = problems(FACTS, dataclasses.replace(FINE, **changed))  # type: ignore[arg-type]
    assert len(found) == 1
    assert "\n" not in found[0]
    for word in words.split():
        assert word in found[0]


def test_a_running_vm_is_not_replaced() -> None:
    running = dataclasses.replace(FACTS, domains=(dataclasses.replace(SAME, running=True),))
    (found,) = problems(running, REPLACES)
    assert "is running" in found
    assert "--clone" in found


def test_a_vm_whose_memory_was_saved_is_not_replaced() -> None:
    """Its next start would go on with its old disks, and not with those that were restored."""
    saved = dataclasses.replace(FACTS, domains=(dataclasses.replace(SAME, saved=True),))
    (found,) = problems(saved, REPLACES)
    assert "virsh managedsave-remove vm" in found


def test_another_vm_of_the_same_name_is_not_replaced() -> None:
    (found,) = problems(FACTS, dataclasses.replace(FINE, name="other", replace=True))
    assert "is another one" in found


def test_a_vm_that_was_renamed_meanwhile_is_replaced_under_its_new_name_only() -> None:
    (found,) = problems(FACTS, dataclasses.replace(REPLACES, name="old-name"))
    assert "--name vm" in found


def test_all_problems_are_said_at_once() -> None:
    need = dataclasses.replace(
        FINE, name="vm", macs=OTHER.macs, room={"none": 1}, machine="odd", firmware="efi"
    )
    assert len(problems(FACTS, need)) == 5


def test_each_pool_is_looked_at_for_what_goes_there() -> None:
    need = dataclasses.replace(FINE, room={"default": 10 * GIB + 1, "none": 1})
    found = problems(FACTS, need)
    assert len(found) == 2
    assert "'default' has 10.0 GiB left" in found[0]
    assert "'none' does not exist" in found[1]
    assert all("--map-pool OLD=NAME" in line for line in found)


def test_bridges_that_nobody_can_see_are_not_judged() -> None:
    facts = dataclasses.replace(FACTS, bridges=None)
    need = dataclasses.replace(FINE, networks=(NetworkUse("a", "bridge", "br9"),))
    assert problems(facts, need) == ()


def test_a_drill_may_meet_the_macs_of_the_living_and_makes_its_own_network() -> None:
    need = dataclasses.replace(
        FINE,
        macs=OTHER.macs,
        networks=(NetworkUse("drill", "network", "drill"),),
        transient_network="drill",
        room={},
    )
    assert problems(FACTS, need) == ()


def test_names_from_outside_can_not_break_a_line() -> None:
    facts = dataclasses.replace(
        FACTS, domains=(dataclasses.replace(OTHER, name="a\n\x1b[2J", macs=FINE.macs),)
    )
    (found,) = problems(facts, FINE)
    assert found.isprintable()


def test_needs_are_read_from_the_rebuilt_definition() -> None:
    spec = dataclasses.replace(clone_of("uefi_q35"), networks={"br0": "network:x"})
    found = needs(
        rebuild(machine("uefi_q35"), spec),
        replace=False,
        room={"default": 5},
    )
    assert (found.name, found.uuid) == (CLONE.name, CLONE.uuid)
    assert (found.arch, found.machine, found.virt_type) == ("x86_64", "pc-q35-7.2", "kvm")
    assert found.firmware == "efi"
    assert found.networks == (NetworkUse("br0", "network", "x"),)
    assert len(found.macs) == 1
    assert found.room == {"default": 5}


@dataclasses.dataclass
class JudgingHost:
    found: CpuObstacle | None = None
    says: str | None = None

    def cpu_obstacle(self, domain_xml: str) -> CpuObstacle | None:
        return self.found

    def refusal(self, domain_xml: str) -> str | None:
        return self.says


def refused(host: JudgingHost, virt_type: str = "kvm") -> tuple[str, ...]:
    judge: Host = host  # type: ignore[assignment]
    there = dataclasses.replace(FACTS.capabilities, virt_types=frozenset({virt_type}))
    facts = dataclasses.replace(FACTS, capabilities=there)
    return refusals(judge, facts, rebuild(machine("bios_i440fx"), clone_of("bios_i440fx")).xml)


def test_a_processor_that_the_host_cant_give_is_told_with_those_that_it_can() -> None:
    host = JudgingHost(CpuObstacle("does not provide: avx\n", ("host-model", "qemu64")), "and so")
    (line,) = refused(host)
    for word in ("qemu64 (does not provide: avx", "--cpu NAME", "host-model, qemu64"):
        assert word in line
    assert line.isprintable()


def test_a_definition_that_libvirt_would_not_take_is_told_before_it_is_needed() -> None:
    (line,) = refused(JudgingHost(says="XML error: \x1bno"))
    assert "does not take the definition (XML error: " in line
    assert "--output" in line
    assert line.isprintable()


def test_nothing_is_said_of_a_machine_whose_kind_the_host_can_not_run_at_all() -> None:
    assert refused(JudgingHost(CpuObstacle("x", ()), "y"), "qemu") == ()
    assert refused(JudgingHost()) == ()
