"""What a killed capture leaves, in its stranger forms; test_kills has every step."""

from __future__ import annotations

from pathlib import Path

import pytest

from drvm.core.process import Processes
from drvm.core.progress import Trace
from drvm.snapshot.parts import Parts
from drvm.snapshot.recovery import find, recover, repair
from tests.capturing import assert_back_on_its_disks, capture, make_parts
from tests.guests import Guest, MakeGuest
from tests.killing import killed_at

pytestmark = pytest.mark.guest


@pytest.fixture
def parts(libvirt_uri: str, tmp_path: Path, processes: Processes) -> Parts:
    return make_parts(libvirt_uri, tmp_path / "state", processes)


@pytest.fixture(scope="module")
def guest(make_module_guest: MakeGuest) -> Guest:
    return make_module_guest("recover")


def capture_killed_at(
    step: str, guest: Guest, uri: str, state_dir: Path, processes: Processes, delay_s: float = 0.0
) -> None:
    """Capture in a child process that is killed when it comes to ``step``, or that much later."""

    def work(trace: Trace) -> None:
        with capture(make_parts(uri, state_dir, processes, trace), guest.name) as machine:
            if len(machine.disks) == 2:
                guest.run(f"echo {step} > /data/step; echo {step} > /step; sync")

    killed_at(step, work, delay_s)


def test_a_kill_while_libvirtd_takes_the_snapshot_is_put_right(
    guest: Guest, parts: Parts, libvirt_uri: str, tmp_path: Path, processes: Processes
) -> None:
    """The client dies inside the call: libvirtd freezes, snapshots and thaws without it."""
    outcomes = set()
    for delay_s in (0.0, 0.02, 0.05, 0.1, 0.2):
        capture_killed_at(
            "snapshot-requested", guest, libvirt_uri, tmp_path / "state", processes, delay_s
        )
        for half in find(parts, guest.name):
            outcomes.add(half.steps[1].partition(": ")[2])
            assert repair(parts, half).problem == ""
        assert_back_on_its_disks(guest, parts)
        assert guest.run("echo alive").strip() == "alive"
    assert len(outcomes) == 2, "the kills came all before or all after the snapshot"


def test_a_lost_journal_is_made_up_for_by_the_names_in_the_xml(
    guest: Guest, parts: Parts, libvirt_uri: str, tmp_path: Path, processes: Processes
) -> None:
    capture_killed_at("reading", guest, libvirt_uri, tmp_path / "state", processes)
    parts.journal.remove(guest.virsh("domuuid").strip())
    assert [half.vm_name for half in find(parts, guest.name)] == [guest.name]
    assert [recovered.problem for recovered in recover(parts, guest.name)] == [""]
    assert_back_on_its_disks(guest, parts)


def test_a_new_capture_first_puts_right_what_an_old_one_left(
    guest: Guest, parts: Parts, libvirt_uri: str, tmp_path: Path, processes: Processes
) -> None:
    capture_killed_at("reading", guest, libvirt_uri, tmp_path / "state", processes)
    with capture(parts, guest.name, filesystem=True) as machine:
        assert machine.definition_xml is not None
        assert "drvm-" not in machine.definition_xml.replace(guest.name, "").replace(
            str(guest.directory), ""
        )
    assert_back_on_its_disks(guest, parts)
