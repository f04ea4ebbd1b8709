"""Drills over the repository and of groups, by the command, of real guests that go on running."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from drvm.core import detached
from drvm.core.clock import SystemClock
from drvm.core.process import Processes
from drvm.core.progress import NoProgress, Trace, no_trace
from drvm.drill.group import GroupPlan
from drvm.drill.place import is_drill_name
from drvm.lab import guest as lab
from drvm.report.model import DrillResult
from drvm.restore.instant.place import places
from drvm.wiring.drilling import carry_out
from drvm.wiring.drills import DrillWish, Plan, members_by_policy, plan_drill_of, plan_policy
from tests.appliance import Appliance, make_appliance
from tests.guests import Guest, MakeGuest, unique_name
from tests.killing import killed_at
from tests.second_host import SecondHost, second_host

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

    def plan(self, method: str, *, group: bool, host_uri: str | None = None) -> Plan:
        with self.appliance.wiring() as wiring:
            points = wiring.repository().points().points
            wish = DrillWish(method, host_uri, self.virt_type)  # type: ignore[arg-type]
            if not group:
                point = [p for p in points if p.manifest.vm == self.db.name][-1]
                return plan_drill_of(wiring, point.manifest, wish)
            policy = wiring.settings.policy_named("shop")
            members = members_by_policy(wiring, points)["shop"]
            (plan,) = plan_policy(wiring, policy, members.points, wish, members.absent)
            return plan

    def run(self, plan: Plan, trace: Trace = no_trace) -> tuple[DrillResult, ...]:
        with self.appliance.wiring() as wiring:
            done = carry_out(wiring, plan, NoProgress(), trace)
        if done.error is not None:
            raise done.error
        return done.results

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

    def assert_nothing_runs(self, plan: Plan) -> None:
        """Soon: neither a machine nor a server of the drill."""
        machines = plan.machines if isinstance(plan, GroupPlan) else (plan,)
        for _ in range(600):
            servers = [p for m in machines for p in detached.running(f"--unix={m.socket}")]
            if not servers and not any(part.startswith("machine") for part in self.left()):
                return
            CLOCK.sleep(0.1)
        raise AssertionError(f"it outlived its drill: {servers} {self.left()}")

    def doctor(self, *options: str) -> list[str]:
        """What it finds of drills."""
        found = self.appliance.json("doctor", *options, expect=None)["findings"]
        return [f["detail"] for f in found if f["name"] == "dead drill"]

    def findings(self) -> list[str]:
        """What it finds at all."""
        found = self.appliance.json("doctor", expect=None)["findings"]
        return [f["detail"] for f in found]

    def noted(self) -> list[str]:
        """What is known here of drills on other hosts."""
        notes = (self.appliance.directory / "state/drills").iterdir()
        return [path.name for path in notes if is_drill_name(path.name)]

    def assert_known_and_removed(self, plan: Plan) -> None:
        self.assert_nothing_runs(plan)
        told = " ".join(self.doctor())
        assert all(part.split()[-1] in told for part in self.left()), (self.left(), told)
        assert self.doctor("--fix") == []
        assert self.left() == []

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


@pytest.mark.long
def test_drills_of_one_machine_at_once_leave_each_other_and_the_original_alone(shop: Shop) -> None:
    before = shop.original()
    names = (shop.db.name, shop.web.name)
    results = shop.drill(*names, "--parallel", "2", expect=4)
    assert [(r["vm"], r["passed"]) for r in results] == [(names[0], True), (names[1], False)]
    assert "exit code" in results[1]["checks"][0]["detail"]  # the one it asks is not there
    assert shop.left() == []
    assert shop.original() == before


@pytest.mark.long
def test_a_stage_that_fails_ends_the_drill_of_its_group(shop: Shop) -> None:
    shop.db.run("echo spoiled >/data/note; sync")
    shop.appliance.backup(shop.db.name)
    try:
        db, web = shop.drill("--policy", "shop", "--method", "boot", expect=4)
    finally:
        shop.db.run("echo db before >/data/note; sync")
        shop.appliance.backup(shop.db.name)
        shop.db.run("echo db after >/data/note; sync")
    assert (db["passed"], web["passed"]) == (False, False)
    assert "stage 1 of its group failed" in web["failure"]
    assert shop.left() == []


@pytest.mark.long
def test_a_group_that_lacks_a_member_is_told_so_and_image_files_are_no_member(
    shop: Shop, tmp_path: Path
) -> None:
    lacking, files = unique_name("lacking"), unique_name("files")
    (tmp_path / "lacking.xml").write_text(
        f"<domain type='qemu'><name>{lacking}</name><memory unit='MiB'>32</memory>"
        "<os><type arch='x86_64' machine='q35'>hvm</type></os></domain>"
    )
    (tmp_path / "disk.raw").write_bytes(bytes(1 << 20))
    virsh = ["virsh", "-q", "-c", lab.URI]
    config = shop.appliance.directory / "config.yaml"
    names = f'"{shop.db.name}", "{shop.web.name}"'
    more = config.read_text().replace(f"vms: [{names}]", f'vms: [{names}, "{lacking}", "{files}"]')
    (tmp_path / "config.yaml").write_text(more)
    policy = ("drill", "--policy", "shop", "--config", str(tmp_path / "config.yaml"))
    options = ("--method", "boot", "--virt-type", shop.virt_type)
    shop.appliance.drvm("backup", "--image", str(tmp_path / "disk.raw"), "--name", files)
    shop.processes.run([*virsh, "define", str(tmp_path / "lacking.xml")], timeout_s=60)
    try:
        planned = shop.appliance.drvm(*policy, *options, "--dry-run", expect=3)
        done = shop.appliance.drvm(*policy, *options, expect=3)
    finally:
        shop.processes.run([*virsh, "undefine", lacking], timeout_s=60)
    assert f"not drilled: {lacking}: it has no good point" in planned.out
    assert f"{files} is image files, not a machine" in planned.err
    last = done.out.splitlines()[-1]
    assert last == (
        f"proven to come up from its point: {shop.db.name}, {shop.web.name}; not proven: {lacking} "
        "(it has no good point)"
    )
    assert "RTO not reached (MISSED, target 10 min)" in done.out


@pytest.mark.long
def test_what_the_schedule_owes_is_drilled_once(shop: Shop) -> None:
    first = shop.drill("--due", "--method", "boot")
    assert len(first) in (0, 2)  # an earlier test may have drilled since
    assert shop.drill("--due") == []


@pytest.mark.long
@pytest.mark.parametrize("removed", [False, True])
def test_a_drill_whose_packs_go_away_below_it_has_failed_and_is_none_where_its_point_went_too(
    shop: Shop, tmp_path: Path, removed: bool
) -> None:
    """As by a prune and two collectors, or by damage."""
    more = (
        f'policies: [{{name: shop, vms: ["{shop.db.name}"], drill: {{boot_timeout: 20s, '
        f"directory: {shop.directory}, method: boot}}}}]\n"
    )
    store = tmp_path / "repository"
    appliance = make_appliance(tmp_path, f"file://{store}", None, more)
    appliance.drvm("init")
    appliance.backup(shop.db.name)

    def trace(step: str) -> None:
        if step == "overlay-made vda":
            for path in [*store.rglob("packs/*"), *(store.rglob("points/*/*") if removed else ())]:
                path.unlink()

    with appliance.wiring() as wiring:
        (point,) = wiring.repository().points().points
        plan = plan_drill_of(wiring, point.manifest, DrillWish(virt_type=shop.virt_type))
        done = carry_out(wiring, plan, NoProgress(), trace)
        kept = wiring.repository().drills.listed()
    assert shop.left() == []
    if removed:
        assert (done.results, kept) == ((), [])
        assert "was removed while it was drilled, so nothing is proven" in str(done.error)
        return
    (result,) = done.results
    assert (result.passed, len(kept)) == (False, 1)
    assert "it was stopped, as vda could not be read or written: its server" in result.failure


BOOT_STEPS = (
    *("directory-made", "disks-served", "overlay-made vda", "overlay-made vdb", "network-made"),
    *("machine-started", "checks-ended", "machine-ended", "network-destroyed"),
    *("directory-removed", "torn-down"),
)
GROUP_STEPS = (
    *("group-directory-made", "group-network-made", "directory-made", "disks-served"),
    *("overlay-made vda", "overlay-made vdb", "machine-started", "checks-ended", "stage-1-ended"),
    *("stage-2-ended", "machine-ended", "directory-removed", "torn-down", "network-destroyed"),
    "group-torn-down",
)
RESTORE_STEPS = (
    *("directory-made", "image-made-vda", "image-begun-vda", "image-written-vda"),
    *("image-whole-vda", "image-named-vda", "restored vda", "restored vdb", "network-made"),
    *("machine-started", "checks-ended", "machine-ended", "network-destroyed"),
    *("directory-removed", "torn-down"),
)


def test_a_kill_ends_machine_and_server_and_doctor_removes_the_rest(shop: Shop) -> None:
    plan = shop.plan("boot", group=False)
    killed_at("machine-started", lambda trace: shop.run(plan, trace))
    shop.assert_known_and_removed(plan)


@pytest.mark.long
@pytest.mark.parametrize(
    ("method", "group", "step"),
    [
        *(("boot", False, step) for step in BOOT_STEPS),
        *(("boot", True, step) for step in GROUP_STEPS),
        *(("restore", False, step) for step in RESTORE_STEPS),
    ],
)
def test_a_kill_at_any_step_leaves_nothing_that_runs_and_nothing_unknown(
    shop: Shop, method: str, group: bool, step: str
) -> None:
    before = shop.original()
    plan = shop.plan(method, group=group)
    killed_at(step, lambda trace: shop.run(plan, trace))
    shop.assert_known_and_removed(plan)
    assert shop.original() == before


@pytest.fixture(scope="module")
def elsewhere(shop: Shop) -> Iterator[SecondHost]:
    """Another host, with a pool in the directory of that name there."""
    with second_host(shop.processes) as host:
        host.run(["mkdir", "-p", str(shop.directory)])
        host.virsh("pool-create-as", "drills", "dir", "--target", str(shop.directory))
        yield host


def left_there(host: SecondHost) -> list[str]:
    found = host.virsh("list", "--all", "--name").split()
    found += host.virsh("net-list", "--all", "--name").split()
    host.virsh("pool-refresh", "drills")
    return found + host.virsh("vol-list", "drills").split()


@pytest.mark.long
def test_a_drill_on_another_host_leaves_nothing_there_and_says_what_could_not_be_asked(
    shop: Shop, elsewhere: SecondHost
) -> None:
    before = shop.original()
    (db,) = shop.drill(shop.db.name, "--to", elsewhere.uri)
    assert db["passed"], db
    assert db["host"] == "second"
    assert left_there(elsewhere) == []
    assert shop.left() == []
    assert shop.original() == before


@pytest.mark.long
def test_a_group_comes_up_on_another_host(shop: Shop, elsewhere: SecondHost) -> None:
    db, web = shop.drill("--policy", "shop", "--to", elsewhere.uri)
    assert (db["passed"], web["passed"]) == (True, True), (db, web)
    assert left_there(elsewhere) == []


THERE_STEPS = (
    *("directory-made", "volume-lease-taken", "volume-made-vda", "volume-begun-vda"),
    *("volume-filled-vda", "network-made", "machine-started", "machine-ended", "volumes-removed"),
    "directory-removed",
)


@pytest.mark.long
@pytest.mark.parametrize("step", THERE_STEPS)
def test_what_a_kill_leaves_on_another_host_is_removed_from_here(
    shop: Shop, elsewhere: SecondHost, step: str
) -> None:
    plan = shop.plan("restore", group=False, host_uri=elsewhere.uri)
    killed_at(step, lambda trace: shop.run(plan, trace))
    for _ in range(600):
        if not elsewhere.virsh("list", "--name").split():
            break
        CLOCK.sleep(0.1)
    left = [part for part in left_there(elsewhere) if not part.startswith("/")]
    told = " ".join(shop.findings())
    assert all(part in told for part in left), (left, told)
    assert shop.doctor("--fix") == []
    assert left_there(elsewhere) == []
    assert not any(map(is_drill_name, shop.noted()))
