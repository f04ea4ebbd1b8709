"""Freezes of a real guest under the real watchdog: nothing that dies leaves the guest frozen."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

import drvm
from drvm.core.clock import SystemClock
from drvm.core.ids import new_point_id
from drvm.core.process import Processes, SystemProcesses
from drvm.host.libvirt_host import LibvirtHost
from drvm.host.model import Domain
from drvm.snapshot.capture import CaptureRequest
from drvm.snapshot.choose import choose
from drvm.snapshot.freeze import alone
from drvm.snapshot.mountpoints import MountPoints
from drvm.snapshot.watchdog import watchdog
from tests.capturing import assert_back_on_its_disks, make_parts
from tests.guests import Guest, MakeGuest

pytestmark = pytest.mark.guest

LIMIT_S = 2
clock = SystemClock()


@pytest.fixture(scope="module")
def guest(make_module_guest: MakeGuest) -> Guest:
    return make_module_guest("freeze")


@pytest.fixture
def domain(guest: Guest, libvirt_uri: str) -> Domain:
    return LibvirtHost(libvirt_uri).domain(guest.name)


def watchdogs() -> list[int]:
    """Those of this checkout."""
    found = []
    ours = f"PYTHONPATH={Path(drvm.__file__).parents[1]}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            program = (process / "cmdline").read_bytes()
            environment = (process / "environ").read_bytes().split(b"\0")
            if b"drvm.snapshot.thawing" in program and ours in environment:
                found.append(int(process.name))
        except OSError:
            continue
    return found


def wait_until_thawed(guest: Guest, limit_s: float) -> float:
    """How long it took."""
    start_s = clock.monotonic_s()
    while guest.agent("guest-fsfreeze-status") != "thawed":
        assert clock.monotonic_s() - start_s < limit_s, "the guest stays frozen"
        clock.sleep(0.1)
    return clock.monotonic_s() - start_s


def frozen_by(domain: Domain, uri: str, at_the_instant: str, *, group: bool = False) -> int:
    """A process of its own that freezes; ``at_the_instant`` is what happens to it while it holds
    the guest: the name of a signal to itself, or to its group."""
    child = os.fork()
    if child:
        return child
    try:
        os.setsid()

        def take(_: bool) -> None:
            assert domain.filesystems_frozen()
            number = getattr(signal, at_the_instant)
            os.killpg(0, number) if group else os.kill(os.getpid(), number)

        # a connection of its own: libvirt's must not be used across a fork
        domain = LibvirtHost(uri).domain(domain.uuid)
        request = CaptureRequest(domain.name, "0" * 16, freeze_timeout_s=LIMIT_S)
        with watchdog(SystemProcesses(), uri, domain.uuid, LIMIT_S) as dog:
            alone(
                domain, request, clock, dog, take=take, was_taken=None, freezing=lambda tried: None
            )
    finally:
        os._exit(1)


def test_a_freeze_that_goes_well_leaves_no_process_behind(domain: Domain, libvirt_uri: str) -> None:
    before = set(watchdogs())
    request = CaptureRequest(domain.name, "0" * 16, freeze_timeout_s=5)
    with watchdog(SystemProcesses(), libvirt_uri, domain.uuid, 5) as dog:
        instant = alone(
            domain,
            request,
            clock,
            dog,
            take=lambda quiesce: None,
            was_taken=None,
            freezing=lambda tried: None,
        )
        assert set(watchdogs()) - before == set()
    assert instant.consistency == "filesystem"


@pytest.mark.parametrize(
    "group",
    [pytest.param(False, id="process", marks=pytest.mark.long), pytest.param(True, id="group")],
)
def test_a_drvm_that_is_killed_while_it_holds_the_guest_leaves_it_thawed(
    guest: Guest, domain: Domain, libvirt_uri: str, group: bool
) -> None:
    before = set(watchdogs())
    child = frozen_by(domain, libvirt_uri, "SIGKILL", group=group)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    wait_until_thawed(guest, LIMIT_S + 5)
    deadline_s = clock.monotonic_s() + 30
    while set(watchdogs()) - before:
        assert clock.monotonic_s() < deadline_s, "the watchdog does not end"
        clock.sleep(0.1)
    assert guest.run("echo alive > /data/alive; sync; cat /data/alive").strip() == "alive"


def test_the_watchdog_of_a_drvm_that_was_killed_thaws_no_freeze_of_the_next(
    guest: Guest, domain: Domain, libvirt_uri: str
) -> None:
    """It goes on for 2 s after it has seen the guest thawed."""
    os.waitpid(frozen_by(domain, libvirt_uri, "SIGKILL"), 0)
    wait_until_thawed(guest, LIMIT_S + 5)
    frozen: list[bool | None] = []

    def take(_: bool) -> None:
        for _ in range(6):
            frozen.append(domain.filesystems_frozen())
            clock.sleep(0.25)

    request = CaptureRequest(domain.name, "0" * 16, freeze_timeout_s=10)
    with watchdog(SystemProcesses(), libvirt_uri, domain.uuid, 10) as dog:
        instant = alone(
            domain, request, clock, dog, take=take, was_taken=None, freezing=lambda tried: None
        )
    assert frozen == [True] * 6
    assert (instant.consistency, instant.warnings) == ("filesystem", ())


@pytest.mark.long
def test_a_drvm_that_hangs_while_it_holds_the_guest_is_not_waited_for(
    guest: Guest, domain: Domain, libvirt_uri: str
) -> None:
    child = frozen_by(domain, libvirt_uri, "SIGSTOP")
    try:
        os.waitpid(child, os.WUNTRACED)
        wait_until_thawed(guest, LIMIT_S + 5)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.mark.long
def test_a_group_of_processes_is_ended_as_a_service_is_and_the_guest_thaws(
    guest: Guest, domain: Domain, libvirt_uri: str
) -> None:
    """SIGTERM to every process of the service, the watchdog included, then SIGKILL to drvm."""
    child = frozen_by(domain, libvirt_uri, "SIGSTOP")
    os.waitpid(child, os.WUNTRACED)
    for process in watchdogs():
        os.kill(process, signal.SIGTERM)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    wait_until_thawed(guest, LIMIT_S + 5)


def test_only_the_file_systems_of_the_policy_are_frozen(
    guest: Guest, libvirt_uri: str, tmp_path: Path, processes: Processes
) -> None:
    parts = make_parts(libvirt_uri, tmp_path / "state", processes)
    request = CaptureRequest(
        guest.name,
        new_point_id(),
        freeze_timeout_s=5,
        require_filesystem=True,
        freeze=MountPoints(include=("/data", "/none")),
    )
    with choose(parts, guest.name).engine.capture(request) as machine:
        assert machine.guest["frozen"] == "/data"
        assert "the guest has no file system at /none" in machine.warnings
    assert_back_on_its_disks(guest, parts)
