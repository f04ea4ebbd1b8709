"""Drills over the repository and of groups, by the command, of real guests that go on running."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from drvm.core.clock import SystemClock
from drvm.core.process import Processes
from drvm.core.progress import NoProgress, Trace, no_trace
from drvm.drill.place import is_drill_name
from drvm.lab import guest as lab
from drvm.report.model import DrillResult
from drvm.restore.instant.place import places
from drvm.wiring.drills import (
    DrillWish,
    Plan,
    carry_out,
    plan_drill_of,
    plan_policy,
    points_by_policy,
)
from tests.appliance import Appliance, make_appliance
from tests.guests import Guest, MakeGuest, unique_name

pytestmark = pytest.mark.guest

CLOCK = SystemClock()
POLICY = """
policies:
  - name: shop
    vms: ["{db}", "{web}"]
    rpo: 1d
    drill:
      schedule: "0 5 * * 0"
      directory: {directory}
      rto: 10m
      boot_timeout: 3m
      stages:
        - {{vms: ["{db}"], wait: 1s}}
        - {{vms: ["{web}"]}}
      checks:
        - vms: ["{db}"]
          command: {{run: ["/bin/sh", "-c", "ip addr add 10.9.8.1/24 dev eth0; cat /data/note"],
                     expect_output: "^db before$"}}
        - vms: ["{web}"]
          command: {{run: ["/bin/sh", "-c", "ip addr add 10.9.8.2/24 dev eth0 2>/dev/null;
                            ping -c 1 -W 5 10.9.8.1 && cat /data/note"],
                     expect_output: "^web before$", timeout: 30s}}
        - http: {{expect_body: "^drvm lab guest$"}}
"""


@dataclass(frozen=True)
class Shop:
    """Two guests with a point each, and where drills of them go."""

    appliance: Appliance
    db: Guest
    web: Guest
    directory: Path
    network: str
    virt_type: lab.VirtType
    processes: Processes

    def plan(self, method: str, *, group: bool) -> Plan:
        with self.appliance.wiring() as wiring:
            points = wiring.repository().points().points
            wish = DrillWish(method, None, self.virt_type)  # type: ignore[arg-type]
            if not group:
                (point,) = [p for p in points if p.manifest.vm == self.db.name]
                return plan_drill_of(wiring, point.manifest, wish)
            policy = wiring.settings.policy_named("shop")
            (plan,) = plan_policy(wiring, policy, points_by_policy(wiring, points)["shop"], wish)
            return plan

    def run(self, plan: Plan, trace: Trace = no_trace) -> tuple[DrillResult, ...]:
        with self.appliance.wiring() as wiring:
            return carry_out(wiring, plan, NoProgress(), trace)

    def drill(self, *arguments: str, expect: int = 0) -> list[dict[str, Any]]:
        options = ("--virt-type", self.virt_type)
        return list(self.appliance.json("drill", *arguments, *options, expect=expect)["drills"])

    def left(self) -> list[str]:
        """What virsh, the directory and ``/run`` still show of any drill."""
        found = [f"file {path.name}" for path in self.directory.iterdir()]
        for kind, command in (("machine", "list"), ("network", "net-list")):
            argv = ["virsh", "-q", "-c", lab.URI, command, "--all", "--name"]
            names = self.processes.run(argv, timeout_s=60).stdout.decode().split()
            found += [f"{kind} {name}" for name in names if is_drill_name(name)]
        return found

    def original(self) -> list[str]:
        """Of both guests and their network, all that libvirt tells of them that a drill could
        change."""
        told = []
        for guest in (self.db, self.web):
            told += [guest.virsh("dumpxml"), guest.virsh("dumpxml", "--inactive")]
            told += [guest.virsh("domstate"), guest.run("cat /data/note"), guest.virsh("domiflist")]
        argv = ["virsh", "-q", "-c", lab.URI, "net-dumpxml", self.network]
        return [*told, self.processes.run(argv, timeout_s=60).stdout.decode()]


@pytest.fixture(scope="module")
def network(processes: Processes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    name = unique_name("net")
    definition = tmp_path_factory.mktemp("net") / "net.xml"
    definition.write_text(f"<network><name>{name}</name></network>")
    processes.run(["virsh", "-c", lab.URI, "net-create", str(definition)], timeout_s=60)
    yield name
    processes.run(["virsh", "-c", lab.URI, "net-destroy", name], timeout_s=60)


@pytest.fixture(scope="module")
def shop(
    tmp_path_factory: pytest.TempPathFactory,
    make_module_guest: MakeGuest,
    network: str,
    virt_type: lab.VirtType,
    processes: Processes,
) -> Iterator[Shop]:
    base = tmp_path_factory.mktemp("shop")
    with lab.workspace(unique_name("drills")) as directory:
        guests = [make_module_guest(name, network=network) for name in ("db", "web")]
        names = {"db": guests[0].name, "web": guests[1].name, "directory": directory}
        more = POLICY.format(**names)
        appliance = make_appliance(base, f"file://{base}/repository", None, more)
        appliance.drvm("init")
        for guest, word in zip(guests, ("db", "web"), strict=True):
            guest.run(f"echo {word} before >/data/note; sync")
            appliance.backup(guest.name)
            guest.run(f"echo {word} after >/data/note; sync")
        yield Shop(appliance, *guests, directory, network, virt_type, processes)


def test_a_group_comes_up_over_the_repository_in_one_network_stage_by_stage(shop: Shop) -> None:
    before = shop.original()
    db, web = shop.drill("--policy", "shop", "--method", "boot")
    assert (db["passed"], web["passed"]) == (True, True), (db, web)
    assert (db["vm"], web["vm"]) == (shop.db.name, shop.web.name)
    assert "1 packets received" in web["checks"][0]["detail"]
    assert shop.left() == []
    assert places() == []
    assert shop.original() == before


@pytest.mark.long
def test_a_drill_over_the_repository_needs_hardly_any_room_and_says_what_it_leaves_open(
    shop: Shop,
) -> None:
    plan = shop.plan("boot", group=False)
    written: list[int] = []

    def trace(step: str) -> None:
        if step == "checks-ended":
            images = [image.path for image in plan.images]  # type: ignore[union-attr]
            written.append(sum(path.stat().st_blocks * 512 for path in images))

    (result,) = shop.run(plan, trace)
    assert result.passed, result
    assert (result.method, result.data_bytes) == ("boot", 0)
    assert written[0] < 32 << 20
    assert any("over the repository" in line for line in result.not_proven)
    assert shop.left() == []
