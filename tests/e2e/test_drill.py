"""Drills of a real guest's real point: it boots in isolation, is checked, and nothing is left."""

from __future__ import annotations

import contextlib
import hashlib
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from drvm.backup.run import Backup
from drvm.core.clock import SystemClock
from drvm.core.ids import new_point_id
from drvm.core.process import Processes
from drvm.core.progress import NoProgress, Trace, no_trace
from drvm.drill.checks.agent import AgentCheck
from drvm.drill.checks.base import Check
from drvm.drill.checks.command import CommandCheck
from drvm.drill.checks.console import ConsoleCheck
from drvm.drill.checks.file import FileCheck
from drvm.drill.checks.http import HttpCheck
from drvm.drill.checks.script import ScriptCheck
from drvm.drill.checks.tcp import TcpCheck
from drvm.drill.disks import RestoredDisks
from drvm.drill.leftovers import find_leftovers, remove_leftovers
from drvm.drill.plan import DrillPlan, DrillRequest, plan_drill
from drvm.drill.run import run_drill
from drvm.drill.tools import Tools
from drvm.host.libvirt_host import LibvirtHost
from drvm.lab import guest as lab
from drvm.lab.disk import READY_LINE
from drvm.report.html import html_report
from drvm.report.input import ReportInput
from drvm.report.json_report import json_report
from drvm.report.junit import junit_report
from drvm.report.model import DrillResult, decode_drill, encode_drill
from drvm.repository.manifest import Manifest
from drvm.repository.repository import Repository
from drvm.restore.targets.images import ImageRestorer
from drvm.snapshot.capture import CaptureRequest
from drvm.snapshot.choose import choose
from drvm.snapshot.space import free_bytes
from drvm.store.memory import MemoryStore
from tests.capturing import assert_back_on_its_disks, make_parts
from tests.guests import BOOT_LIMIT_S, Guest, MakeGuest, unique_name
from tests.killing import killed_at
from tests.unit.report.results import make_row

pytestmark = pytest.mark.guest

NOTE = CommandCheck(("/bin/cat", "/data/note"), expect_output="^written before the point$")
ALONE = CommandCheck(("/bin/ping", "-c", "1", "-W", "1", "203.0.113.1"), expect_exit=1)
HAD = "192.0.2.77"
SERVICES = (
    TcpCheck(22, banner="^SSH-2.0-lab$"),
    HttpCheck(expect_body="^drvm lab guest$"),
    ConsoleCheck(f"^{READY_LINE}$"),
    FileCheck("/data/note", hashlib.sha256(b"written before the point\n").hexdigest()),
    ScriptCheck(("/bin/sh", "-ec", "echo $DRVM_VM at $DRVM_ADDRESS; ip -br link; ip route")),
)
"""What answers on the guest's network is what its /etc/inittab starts; its address is the one that
it had when the point was taken, by DHCP."""
CLOCK = SystemClock()


@dataclass(frozen=True)
class Drills:
    """A point of a guest that goes on running, and a directory for drills of it."""

    guest: Guest
    point: Manifest
    repository: Repository
    directory: Path
    uri: str
    virt_type: lab.VirtType
    processes: Processes

    def plan(self, *checks: Check) -> DrillPlan:
        request = DrillRequest(
            self.point,
            checks,
            boot_timeout_s=BOOT_LIMIT_S,
            rto_target_s=600.0,
            directory=self.directory,
            virt_type=self.virt_type,
        )
        with contextlib.closing(LibvirtHost(self.uri)) as host:
            return plan_drill(self.repository, host, request, CLOCK)

    def run(
        self,
        plan: DrillPlan,
        trace: Trace = no_trace,
        free: Callable[[Path], int] = free_bytes,
    ) -> DrillResult:
        disks = RestoredDisks(ImageRestorer(self.repository, self.processes, CLOCK))
        with contextlib.closing(LibvirtHost(self.uri)) as host:
            return run_drill(plan, Tools(host, disks, CLOCK, NoProgress(), trace, free=free))

    def left_of(self, plan: DrillPlan) -> list[str]:
        """What virsh, the directory and the host's network still show of it."""
        found = [f"file {path.name}" for path in self.directory.iterdir()]
        if Path(f"/sys/class/net/drv{plan.id[-12:]}").exists():
            found.append("cable")
        for kind, command in (("machine", "list"), ("network", "net-list")):
            names = self.virsh(command, "--all", "--name").split()
            found += [f"{kind} {name}" for name in names if name == plan.name]
        return found

    def virsh(self, *arguments: str) -> str:
        argv = ["virsh", "-q", "-c", self.uri, *arguments]
        return self.processes.run(argv, timeout_s=60).stdout.decode()


@pytest.fixture(scope="module")
def network(
    processes: Processes, libvirt_uri: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The original's, so that its network card can be isolated."""
    name = unique_name("net")
    definition = tmp_path_factory.mktemp("net") / "net.xml"
    definition.write_text(f"<network><name>{name}</name></network>")
    processes.run(["virsh", "-c", libvirt_uri, "net-create", str(definition)], timeout_s=60)
    yield name
    processes.run(["virsh", "-c", libvirt_uri, "net-destroy", name], timeout_s=60)


@pytest.fixture(scope="module")
def drills(
    make_module_guest: MakeGuest,
    network: str,
    libvirt_uri: str,
    virt_type: lab.VirtType,
    processes: Processes,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Drills]:
    guest = make_module_guest("drilled", network=network)
    guest.run(
        "echo written before the point >/data/note; "
        "echo '::respawn:/bin/nc -ll -p 22 -e /etc/banner' >>/etc/inittab; "
        "printf '#!/bin/sh\\necho SSH-2.0-lab\\n' >/etc/banner; chmod +x /etc/banner; "
        f"ip addr add {HAD}/24 dev eth0; sync"
    )
    parts = make_parts(libvirt_uri, tmp_path_factory.mktemp("state"), processes)
    repository = Repository.create(MemoryStore(), b"correct horse")
    backup = Backup(
        repository, writer="test", level=1, clock=CLOCK, progress=NoProgress(), trace=no_trace
    )
    vm_uuid = guest.virsh("domuuid").strip()
    taken = backup.run(
        choose(parts, guest.name).engine, CaptureRequest(guest.name, new_point_id()), vm_uuid
    )
    assert taken.cleanup is None
    guest.run("echo written after the point >/data/note; sync")
    with lab.workspace(unique_name("drills")) as directory:
        yield Drills(
            guest, taken.point.manifest, repository, directory, libvirt_uri, virt_type, processes
        )
    assert_back_on_its_disks(guest, parts)


def assert_original_is_untouched(guest: Guest) -> None:
    assert guest.virsh("domstate").strip() == "running"
    assert guest.run("cat /data/note") == "written after the point\n"


def rows_of(png: bytes) -> set[bytes]:
    """The different rows of a picture: text on a screen makes many."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    at, data, width, channels = 8, b"", 0, {0: 1, 2: 3, 3: 1, 6: 4}
    line_bytes = 0
    while at < len(png):
        length, kind = struct.unpack_from(">I4s", png, at)
        body = png[at + 8 : at + 8 + length]
        if kind == b"IHDR":
            width, _, depth, colour = struct.unpack_from(">IIBB", body)
            line_bytes = 1 + width * channels[colour] * depth // 8
        data += body if kind == b"IDAT" else b""
        at += 12 + length
    pixels = zlib.decompress(data)
    assert width >= 320
    return {pixels[n : n + line_bytes] for n in range(0, len(pixels), line_bytes)}


def test_a_drill_boots_the_point_in_isolation_checks_it_and_leaves_nothing(drills: Drills) -> None:
    plan = drills.plan(AgentCheck(), NOTE, ALONE, *SERVICES)
    seen: dict[str, str] = {}

    def trace(step: str) -> None:
        if step == "checks-ended":
            seen["network"] = drills.virsh("net-dumpxml", plan.name)
            seen["machine"] = drills.virsh("dumpxml", plan.name)

    result = drills.run(plan, trace)
    assert result.passed, result
    assert [check.passed for check in result.checks] == [True] * 8
    assert "written before the point" in result.checks[1].detail
    assert f"{drills.guest.name} at {HAD}" in result.checks[-1].detail
    assert "virbr" not in result.checks[-1].detail
    assert any("DHCP" in line for line in result.not_proven)
    assert "<forward" not in seen["network"]
    assert "<ip" not in seen["network"]
    assert str(drills.guest.directory) not in seen["machine"]
    mac = drills.guest.virsh("domiflist").split()[4]
    assert mac in seen["machine"]
    assert result.rto_seconds is not None
    assert result.rto_seconds <= (result.finished - result.started).total_seconds()
    assert abs(sum(result.phases.values()) - result.rto_seconds) < 1
    assert result.screenshot_png is not None
    assert len(rows_of(result.screenshot_png)) > 20
    assert result.warnings == ()
    assert drills.left_of(plan) == []
    assert_original_is_untouched(drills.guest)


@pytest.mark.long
def test_a_console_that_never_stops_is_bounded_on_disk_and_in_time(drills: Drills) -> None:
    flood = CommandCheck(("/bin/sh", "-c", "(yes >/dev/ttyS0 &) >/dev/null 2>&1"))
    plan = drills.plan(AgentCheck(), flood, ConsoleCheck("^never$", timeout_s=20.0))
    sizes: list[int] = []

    def trace(step: str) -> None:
        if step == "checks-ended":
            sizes.extend(path.stat().st_size for path in plan.directory.glob("console.log*"))

    result = drills.run(plan, trace)
    assert [check.passed for check in result.checks] == [True, True, False]
    assert result.checks[2].seconds < 60
    assert "it ends with" in result.checks[2].detail
    assert 0 < sum(sizes) < 10 << 20
    assert drills.left_of(plan) == []


@pytest.mark.long
def test_a_guest_that_leaves_others_no_room_is_ended(drills: Drills) -> None:
    plan = drills.plan(AgentCheck())
    result = drills.run(plan, free=lambda _: 0)
    assert not result.passed
    assert "was ended" in result.failure
    assert drills.left_of(plan) == []


@pytest.mark.long
def test_the_result_of_a_drill_is_kept_and_rendered(drills: Drills) -> None:
    result = drills.run(drills.plan(AgentCheck()))
    drills.repository.drills.put(result.vm_uuid, result.id, encode_drill(result))
    records = drills.repository.drills
    (kept,) = [decode_drill(records.read(info)) for info in records.listed()]
    assert kept == result
    report = ReportInput(
        generated=CLOCK.now(),
        repository="memory",
        vms=(make_row(vm=result.vm, vm_uuid=result.vm_uuid),),
        drills=(kept,),
        drvm_version="0",
    )
    assert "data:image/png;base64," in html_report(report)
    assert result.id.encode() in json_report(report)
    document = junit_report(report)
    assert b'failures="0"' in document and b"check: agent" in document


@pytest.mark.long
def test_a_drill_whose_command_fails_is_failed_and_shows_the_screen(drills: Drills) -> None:
    wrong = CommandCheck(("/bin/sh", "-c", "echo no such table >&2; exit 3"), timeout_s=2.0)
    plan = drills.plan(AgentCheck(), wrong)
    result = drills.run(plan)
    assert (result.passed, result.rto_seconds) == (False, None)
    assert [check.passed for check in result.checks] == [True, False]
    assert "exit code 3 instead of 0" in result.checks[1].detail
    assert "no such table" in result.checks[1].detail
    assert result.screenshot_png is not None
    assert len(rows_of(result.screenshot_png)) > 20
    assert drills.left_of(plan) == []


@pytest.mark.long
def test_a_guest_that_powers_off_fails_its_checks_and_leaves_nothing(drills: Drills) -> None:
    off = CommandCheck(("/bin/sh", "-c", "poweroff -f"), timeout_s=20.0)
    plan = drills.plan(AgentCheck(), off, NOTE)
    result = drills.run(plan)
    assert [check.passed for check in result.checks] == [True, False, False]
    assert "not running any more" in result.checks[2].detail
    assert drills.left_of(plan) == []


@pytest.mark.parametrize(
    "step", ["directory-made", "restored vda", "network-made", "machine-started"]
)
def test_a_killed_drill_ends_its_guest_and_its_leftovers_are_removed(
    drills: Drills, step: str
) -> None:
    plan = drills.plan(AgentCheck(), TcpCheck(80))

    killed_at(step, lambda trace: drills.run(plan, trace))
    deadline_s = CLOCK.monotonic_s() + 30
    while {f"machine {plan.name}", "cable"} & {*drills.left_of(plan)}:
        assert CLOCK.monotonic_s() < deadline_s, "the guest outlived its drill"
        CLOCK.sleep(0.1)
    made = f"network {plan.name}"
    assert (made in drills.left_of(plan)) == (step in ("network-made", "machine-started"))
    with contextlib.closing(LibvirtHost(drills.uri)) as host:
        found = find_leftovers(host, drills.directory)
        assert [leftover.directory for leftover in found.dead] == [plan.directory]
        assert not any(removed.problems for removed in remove_leftovers(host, found))
    assert drills.left_of(plan) == []
    assert_original_is_untouched(drills.guest)
