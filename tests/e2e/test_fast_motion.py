"""Half an hour of a daemon's life in fast motion: a real guest, backed up each 20 s and drilled,
while its store stops and starts, libvirtd ends and comes back, and the daemon is killed. Nothing
stays stuck, every alarm is raised and withdrawn, and what is stored is right.

``DRVM_FAST_MOTION_MINUTES``: how long, at least 5.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from drvm.core.clock import SystemClock
from drvm.core.process import Child, Processes, SystemProcesses
from drvm.lab import guest as lab
from drvm.lab import services
from tests.appliance import Appliance, make_appliance
from tests.guests import Guest, unique_name
from tests.listeners import Heard, http_listener
from tests.own_libvirtd import OwnLibvirtd, own_libvirtd

pytestmark = [pytest.mark.guest, pytest.mark.s3, pytest.mark.long]

MINUTES = float(os.environ.get("DRVM_FAST_MOTION_MINUTES", "30"))
OUTAGE_S = 40.0
SETTLE_S = 180.0
"""For all to be well again after an outage: retries, a backup and a drill under emulation."""

CONFIG = """
hosts: [{{uri: "{uri}"}}]
policies:
  - name: often
    vms: ["{vm}"]
    schedule: "*/20 * * * *"
    rpo: 60s
    retry: {{times: 2, after: 4s}}
    keep_last: 5
    drill: {{schedule: "*/120 * * * *", boot_timeout: 3m, rto: 10m}}
prune: {{schedule: "*/45 * * * *"}}
gc: {{schedule: "*/70 * * * *"}}
check: {{schedule: "*/100 * * * *", read_data_percent: 100}}
daemon: {{metrics: {{textfile: "{directory}/drvm.prom"}}}}
notify:
  - {{name: chat, webhook: {{url_file: "{directory}/chat"}}}}
  - {{name: dead-man, ping: {{url_file: "{directory}/ping", every: 10s}}}}
"""


class Respawning(SystemProcesses):
    """Remembers how the last process was started, to start it again."""

    child: Child
    how: tuple[Sequence[str], Mapping[str, Any]]

    def spawn(self, argv: Sequence[str], **options: Any) -> Child:
        self.how = argv, options
        self.child = super().spawn(argv, **options)
        return self.child

    def again(self) -> None:
        argv, options = self.how
        self.spawn(argv, **options)


@dataclass
class World:
    """All that there is; ``chat`` hears alarms, ``pings`` that the daemon works."""

    appliance: Appliance
    guest: Guest
    libvirtd: OwnLibvirtd
    weed: Respawning
    chat: Heard
    pings: Heard
    processes: Processes
    began_s: float = field(default_factory=time.monotonic)
    daemons: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start_daemon(self) -> None:
        argv = [sys.executable, "-m", "tests.fast_daemon"]
        with (self.appliance.directory / "daemon.log").open("ab") as stream:
            self.daemons.append(
                subprocess.Popen(
                    [*argv, *self.appliance.words("daemon")],
                    env=dict(self.appliance.env),
                    stdin=subprocess.DEVNULL,
                    stderr=stream,
                )
            )

    def log(self) -> str:
        text = (self.appliance.directory / "daemon.log").read_text()
        return "\n".join(text.splitlines()[-60:])

    def wait(self, what: str, done: Callable[[], object], limit_s: float) -> None:
        end_s = time.monotonic() + limit_s
        while not done():
            assert self.daemons[-1].poll() is None, f"the daemon ended: {self.log()}"
            assert time.monotonic() < end_s, f"{what}: not within {limit_s} s\n{self.story()}"
            time.sleep(0.5)
        self.say(what)

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self.began_s:7.1f} s  {text}", flush=True)

    def story(self) -> str:
        told = "\n".join(f"{event} {key}: {text}" for event, key, text in self.told())
        return f"told:\n{told}\nthe end of the log:\n{self.log()}"

    def told(self) -> list[tuple[str, str, str]]:
        """What the chat heard, each message once, in its order."""
        messages = {document["id"]: document for document in self.chat.documents()}
        return [
            (message["event"], part["key"], part["text"])
            for message in messages.values()
            for part in (message, *message["others"])
        ]

    def open_alarms(self) -> set[str]:
        found: set[str] = set()
        for event, key, _ in self.told():
            (found.discard if event == "over" else found.add)(key)
        return found

    def status(self) -> dict[str, Any]:
        document: dict[str, Any] = self.appliance.json("status", expect=None)
        return document

    def points(self) -> list[str]:
        return [point["id"] for point in self.appliance.json("points")["points"]]

    def is_well(self) -> bool:
        return not self.open_alarms() and self.status()["status"] == "ok"

    def settle(self) -> None:
        """All is well again, and new points come."""
        self.wait("all is well", self.is_well, SETTLE_S)
        newest = self.points()[-1]
        self.wait("a new point", lambda: self.points()[-1] != newest, SETTLE_S)
        self.guest.wait_for_agent()


@pytest.fixture
def world(
    libvirt_uri: str, processes: Processes, virt_type: lab.VirtType, tmp_path: Path
) -> Iterator[World]:
    with contextlib.ExitStack() as stack:
        weed, kept = Respawning(), tmp_path / "weed"
        kept.mkdir()
        store = stack.enter_context(services.seaweedfs(kept, weed, SystemClock()))
        stack.callback(lambda: weed.child.stop())
        libvirtd = stack.enter_context(own_libvirtd(processes))
        guest = stack.enter_context(_guest(libvirtd, processes, virt_type))
        chat, pings = stack.enter_context(http_listener()), stack.enter_context(http_listener())
        directory = tmp_path / "drvm"
        config = CONFIG.format(uri=libvirtd.uri, vm=guest.name, directory=directory)
        appliance = make_appliance(directory, f"s3://{store.bucket}/fast", store, config)
        for name, heard in (("chat", chat), ("ping", pings)):
            (directory / name).write_text(f"http://127.0.0.1:{heard.port}/{name}\n")
            (directory / name).chmod(0o600)
        appliance.drvm("init")
        world = World(appliance, guest, libvirtd, weed, chat, pings, processes)
        world.start_daemon()
        try:
            yield world
        finally:
            for daemon in world.daemons:
                with contextlib.suppress(ProcessLookupError):
                    daemon.kill()
                daemon.wait()


@contextlib.contextmanager
def _guest(libvirtd: OwnLibvirtd, processes: Processes, virt_type: lab.VirtType) -> Iterator[Guest]:
    template = lab.build_template(lab.default_cache(), processes)
    name = unique_name("fast")
    with lab.workspace(name) as directory:
        disks = lab.create_disks(template, directory, processes)
        guest = Guest(name, directory, disks, processes, libvirtd.uri)
        definition = directory / "domain.xml"
        definition.write_text(lab.domain_xml(name, directory, virt_type=virt_type))
        argv = ["virsh", "-q", "-c", libvirtd.uri, "define", str(definition)]
        processes.run(argv, timeout_s=60)
        try:
            guest.start()
            yield guest
        finally:
            guest.remove()


def _store_outage(world: World) -> None:
    world.weed.child.stop(0)
    world.say("the store was stopped")
    world.wait("an alarm", lambda: world.open_alarms(), OUTAGE_S + 60)
    document = world.status()
    assert document["status"] == "critical" and document["repository"]["reachable"] is False
    time.sleep(OUTAGE_S)
    world.guest.wait_for_agent()
    world.weed.again()
    world.say("the store was started")


def _libvirtd_outage(world: World) -> None:
    world.libvirtd.kill(away=True)
    world.say("libvirtd was ended")
    world.wait("an alarm", lambda: world.open_alarms(), OUTAGE_S + 60)
    assert world.status()["status"] == "critical"
    time.sleep(OUTAGE_S / 2)
    world.libvirtd.come_back()
    world.say("libvirtd came back")


def _libvirtd_restart(world: World) -> None:
    world.libvirtd.kill()
    world.libvirtd.wait()
    world.say("libvirtd was killed and came back at once")


def _daemon_killed_in_an_outage(world: World) -> None:
    """What was raised by the one is withdrawn by the other."""
    world.weed.child.stop(0)
    world.wait("an alarm", lambda: world.open_alarms(), OUTAGE_S + 60)
    world.daemons[-1].kill()
    world.daemons[-1].wait()
    raised = world.open_alarms()
    world.weed.again()
    time.sleep(10)
    assert world.open_alarms() == raised
    world.start_daemon()
    world.say("the daemon was killed, and another one started")


def test_a_daemon_in_fast_motion_gets_over_whatever_fails_and_tells_it(world: World) -> None:
    world.wait("the first point", lambda: world.points(), SETTLE_S)
    world.wait("a drill passed", lambda: _drills(world), 2 * SETTLE_S)
    world.settle()
    faults = [_store_outage, _libvirtd_outage, _libvirtd_restart, _daemon_killed_in_an_outage]
    end_s, done = world.began_s + 60 * MINUTES, 0
    while done < len(faults) or time.monotonic() < end_s:
        faults[done % len(faults)](world)
        world.settle()
        done += 1
    _stop(world)
    _assert_alarms_alternate(world.told())
    assert len(world.pings.requests) >= 3
    metrics = (world.appliance.directory / "drvm.prom").read_text()
    assert f'drvm_vm_rpo_met{{uuid="{_uuid(world)}",vm="{world.guest.name}"}} 1.0' in metrics
    for job in ("backup often", "drill often", "prune", "gc", "check"):
        assert f'drvm_job_last_success_timestamp_seconds{{job="{job}"}}' in metrics, job
    assert all(drill["passed"] for drill in _drills(world)[-2:])
    checked = world.appliance.drvm("check", "--read-data", "100%", expect=None)
    assert checked.code == 0, checked.out


def _stop(world: World) -> None:
    """In its time; the guest is on its own disks."""
    before_s = time.monotonic()
    world.daemons[-1].send_signal(signal.SIGTERM)
    assert world.daemons[-1].wait(35) == 0, world.log()
    world.say(f"the daemon ended within {time.monotonic() - before_s:.1f} s")
    assert "overlay" not in world.guest.virsh("domblklist")
    assert world.status()["running"] == []
    names = world.processes.run(
        ["virsh", "-q", "-c", world.libvirtd.uri, "list", "--all", "--name"], timeout_s=60
    )
    assert names.stdout.decode().split() == [world.guest.name], "no drill is left"


def _assert_alarms_alternate(told: list[tuple[str, str, str]]) -> None:
    events = defaultdict(list)
    for event, key, _ in told:
        if event != "reminder":
            events[key].append(event)
    assert events, "no alarm at all"
    for key, happened in events.items():
        assert happened == ["raised", "over"] * (len(happened) // 2), (key, happened)


def _drills(world: World) -> list[dict[str, Any]]:
    document: list[dict[str, Any]] = world.appliance.json("report", "--format", "json")["drills"]
    return sorted(document, key=lambda drill: drill["started"])


def _uuid(world: World) -> str:
    return world.guest.virsh("domuuid").strip()
