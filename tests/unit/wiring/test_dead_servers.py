"""A server that outlived the drvm that had just started it is told of, and ended."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path

import pytest

from drvm.core.clock import SystemClock
from drvm.core.process import Child, SystemProcesses
from drvm.core.progress import Trace
from drvm.core.units import MIB
from drvm.host.images import in_use
from drvm.host.nbd import NbdExport, await_unused
from drvm.wiring.restores import dead_servers, end_dead_servers
from tests.killing import killed_at


class Bare:
    """All that is asked of the wiring here."""

    clock = SystemClock()


def test_a_server_without_its_drvm_is_told_of_and_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    disk, clock = tmp_path / "disk", SystemClock()
    disk.write_bytes(bytes(MIB))

    def first_connection(self: NbdExport, child: Child, log: Path) -> None:
        deadline_s = clock.monotonic_s() + 30
        while not in_use(disk) and clock.monotonic_s() < deadline_s:
            clock.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)

    def work(_: Trace) -> None:
        with NbdExport(SystemProcesses(), disk, "raw", writable=True):
            pass

    with monkeypatch.context() as patch:
        patch.setattr(NbdExport, "_first_connection", first_connection)
        killed_at("by itself", work)
    (told,) = dead_servers()
    assert not told.ok and "locked" in told.detail and "--fix" in told.hint
    assert [done.ok for done in end_dead_servers(Bare())] == [True]  # type: ignore[arg-type]
    assert await_unused(disk, clock, 30)
    assert dead_servers() == end_dead_servers(Bare()) == []  # type: ignore[arg-type]
