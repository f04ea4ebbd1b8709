"""Our side of the watchdog: processes that start, answer, fail to, and end."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from drvm.core.clock import SystemClock
from drvm.core.errors import ProcessFailed
from drvm.core.process import Child, SystemProcesses
from drvm.snapshot import watchdog as module
from drvm.snapshot.watchdog import watchdog

UUID = "3f6a2c1e-5d0b-4c5e-9a34-6d72766d0001"


class Stand_ins(SystemProcesses):  # noqa: N801
    """Shell scripts in the watchdog's place. ``seen``: what it would have been started with."""

    def __init__(self, script: str) -> None:
        self.script = script
        self.seen: list[Any] = []
        self.children: list[Child] = []

    def spawn(self, argv: Sequence[str], **options: Any) -> Child:
        self.seen.append((list(argv), options))
        child = super().spawn(["sh", "-c", self.script], **options)
        self.children.append(child)
        return child


GOOD = "read order; echo ready; read word; echo watching; read word; [ $word = thawed ]"


def exit_code(child: Child) -> int | None:
    assert child.wait(30)
    return child.returncode()


def test_a_freeze_that_went_well_ends_it() -> None:
    processes = Stand_ins(GOOD)
    with watchdog(processes, "qemu:///system", UUID, 5) as dog:
        dog.get_ready()
        dog.freezing()
        dog.thawed()
        assert processes.children[0].returncode() == 0
    assert processes.children[0].returncode() == 0


def test_one_that_was_not_needed_has_ended_when_its_context_has() -> None:
    processes = Stand_ins("trap '' PIPE; read order; echo ready; read word || exit 7")
    with watchdog(processes, "qemu:///system", UUID, 5):
        pass
    assert processes.children[0].returncode() == 7


def test_one_that_does_not_end_by_itself_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_END_LIMIT_S", 0.1)
    processes = Stand_ins("trap '' TERM; exec sleep 1000")
    with watchdog(processes, "qemu:///system", UUID, 5):
        pass
    assert processes.children[0].returncode() is not None


def test_one_that_may_still_have_to_thaw_sees_our_end_and_goes_on(tmp_path: Path) -> None:
    mark = tmp_path / "thawed"
    processes = Stand_ins(
        f"read order; echo ready; read word; echo watching; read word; sleep 0.3; echo x > {mark}"
    )
    with pytest.raises(RuntimeError), watchdog(processes, "qemu:///system", UUID, 5) as dog:
        dog.freezing()
        raise RuntimeError("we fail with the guest frozen")
    assert exit_code(processes.children[0]) == 0
    assert mark.exists()


@pytest.mark.parametrize("script", ["exit 1", "echo what", "echo ready; read a; read b; exit 1"])
def test_no_freeze_under_one_that_does_not_work(script: str) -> None:
    with (
        watchdog(Stand_ins(script), "qemu:///system", UUID, 5) as dog,
        pytest.raises(ProcessFailed, match="the thaw watchdog does not work"),
    ):
        dog.freezing()


def test_no_freeze_while_that_of_an_earlier_capture_may_thaw() -> None:
    with (
        watchdog(Stand_ins("read order; echo busy"), "qemu:///system", UUID, 5) as dog,
        pytest.raises(ProcessFailed, match="earlier capture is still thawing"),
    ):
        dog.get_ready()


def test_no_freeze_under_one_that_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_READY_LIMIT_S", 0.1)
    with (
        watchdog(Stand_ins("read a; read b"), "qemu:///system", UUID, 5) as dog,
        pytest.raises(ProcessFailed, match="said nothing"),
    ):
        dog.get_ready()


def test_what_it_works_on_stands_neither_in_its_arguments_nor_in_its_environment() -> None:
    processes = Stand_ins(GOOD)
    with watchdog(processes, "qemu+ssh://me:secret@host/system", UUID, 5):
        ((argv, options),) = processes.seen
    assert argv[0] == sys.executable
    assert "secret" not in repr((argv, options))
    assert options["detach"] is True


def test_the_real_one_ends_at_once_where_it_reaches_no_libvirtd() -> None:
    clock = SystemClock()
    start_s = clock.monotonic_s()
    with (
        watchdog(SystemProcesses(), "qemu+unix:///system?socket=/nowhere", UUID, 5) as dog,
        pytest.raises(ProcessFailed, match="does not work"),
    ):
        dog.get_ready()
    assert clock.monotonic_s() - start_s < 10
