"""Two real guests as one consistency group: one instant, one label, all or none."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from drvm.core.clock import SystemClock
from drvm.core.errors import Locked, ProcessFailed
from drvm.core.ids import new_point_id
from drvm.core.process import Processes
from drvm.core.progress import Trace
from drvm.snapshot.capture import CaptureRequest
from drvm.snapshot.group import capture_group
from drvm.snapshot.parts import Parts
from drvm.snapshot.recovery import recover
from tests.appliance import make_appliance
from tests.capturing import assert_back_on_its_disks, file_in_image, make_parts, with_trace
from tests.guests import Guest, MakeGuest
from tests.killing import killed_at

pytestmark = pytest.mark.guest

clock = SystemClock()


@pytest.fixture(scope="module")
def pair(make_module_guest: MakeGuest) -> tuple[Guest, Guest]:
    return make_module_guest("group-a"), make_module_guest("group-b")


@pytest.fixture
def parts(libvirt_uri: str, tmp_path: Path, processes: Processes) -> Parts:
    return make_parts(libvirt_uri, tmp_path / "state", processes)


def requests(pair: tuple[Guest, Guest]) -> list[CaptureRequest]:
    return [
        CaptureRequest(guest.name, new_point_id(), freeze_timeout_s=5, require_filesystem=True)
        for guest in pair
    ]


@contextlib.contextmanager
def records(pair: tuple[Guest, Guest]) -> Iterator[list[int]]:
    """Somebody writes a numbered record to the first guest and, when that is durable, the same to
    the second, and so on; the list holds those that both have acknowledged."""
    stop, done = threading.Event(), list[int]()

    def write() -> None:
        while not stop.is_set():
            for guest in pair:
                while not stop.is_set():
                    with contextlib.suppress(ProcessFailed):  # its agent refuses while it is frozen
                        guest.run(f"echo {len(done) + 1} >> /data/records; sync")
                        break
            done.append(len(done) + 1)

    for guest in pair:
        guest.run("rm -f /data/records; sync")
    writer = threading.Thread(target=write)
    writer.start()
    try:
        while len(done) < 3:
            clock.sleep(0.05)
        yield done
    finally:
        stop.set()
        writer.join()


def test_the_second_guest_holds_no_record_that_the_first_does_not(
    pair: tuple[Guest, Guest], parts: Parts, tmp_path: Path
) -> None:
    with records(pair) as done, capture_group(parts, requests(pair)) as captured:
        counts = []
        for guest, capture in zip(pair, captured, strict=True):
            with capture as machine:
                assert (machine.name, machine.consistency) == (guest.name, "filesystem")
                text = file_in_image(guest.disks["vdb"], "raw", "/records", tmp_path)
                counts.append(len(text.splitlines()))
        assert len(done) > counts[1], "nothing was written while the group was read"
    assert counts[0] - counts[1] in (0, 1), f"not one instant: {counts}"
    for guest in pair:
        assert_back_on_its_disks(guest, parts)


def test_where_one_can_not_be_captured_none_is_touched(
    pair: tuple[Guest, Guest], parts: Parts
) -> None:
    steps: list[str] = []
    second = parts.host.domain(max(guest.virsh("domuuid").strip() for guest in pair))
    with (
        parts.journal.lock(second.uuid, second.name),
        pytest.raises(Locked),
        capture_group(with_trace(parts, steps.append), requests(pair)),
    ):
        pytest.fail("captured")
    assert "snapshot-requested" not in steps
    for guest in pair:
        assert_back_on_its_disks(guest, parts)


def test_a_kill_while_all_are_frozen_thaws_all_without_recovery(
    pair: tuple[Guest, Guest], libvirt_uri: str, parts: Parts, tmp_path: Path, processes: Processes
) -> None:
    def work(trace: Trace) -> None:
        own = make_parts(libvirt_uri, tmp_path / "state", processes, trace)
        with capture_group(own, requests(pair)):
            pass

    killed_at("snapshot-taking", work)
    deadline_s = clock.monotonic_s() + 10
    for guest in pair:
        while guest.agent("guest-fsfreeze-status") != "thawed":
            assert clock.monotonic_s() < deadline_s, "a guest stays frozen"
            clock.sleep(0.1)
    for guest in pair:
        assert [done.problem for done in recover(parts, guest.name)] == [""]
    for guest in pair:
        assert_back_on_its_disks(guest, parts)


@pytest.mark.parametrize("asked", ["--group", pytest.param("--policy", marks=pytest.mark.long)])
def test_a_group_has_one_id_and_those_that_are_off_take_part_as_they_are(
    asked: str, pair: tuple[Guest, Guest], tmp_path: Path
) -> None:
    """The last of the module: it leaves the second guest off."""
    names = [guest.name for guest in pair]
    policy = f"policies:\n  - {{name: both, group: true, vms: {names}}}\n"
    appliance = make_appliance(tmp_path, f"file://{tmp_path}/store", None, policy)
    appliance.drvm("init")
    if pair[1].virsh("domstate").strip() == "running":
        pair[1].virsh("destroy")
    which = [*names, "--group"] if asked == "--group" else ["--policy", "both"]
    points = appliance.json("backup", *which)["points"]
    assert [(point["vm"], point["consistency"]) for point in points] == [
        (names[0], "filesystem"),
        (names[1], "offline"),
    ]
    assert points[0]["group"] == points[1]["group"] is not None
    assert points[0]["group"] in appliance.drvm("show", names[1]).out
