"""The units of systemd are read by systemd itself, where it is installed, and agree."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from drvm.core.process import SystemProcesses

UNITS = Path(__file__).parents[2] / "contrib" / "systemd"
SHARED = re.compile(
    r"(KillMode|OOMPolicy|\w+Directory(Mode)?|CPUWeight|IOWeight|NoNew\w+|Protect\w+|Lock\w+|"
    r"Restrict\w+|SystemCall\w+|CapabilityBoundingSet|KeyringMode)=.*"
)
NO_MAN = re.compile(r".*Command 'man drvm\(1\)' failed.*")


def text(name: str) -> str:
    return (UNITS / name).read_text("utf-8")


def test_the_daemon_and_single_jobs_run_under_the_same_rules() -> None:
    kept = [
        [line for line in text(name).splitlines() if SHARED.fullmatch(line)]
        for name in ("drvm.service", "drvm-run@.service")
    ]
    assert kept[0] == kept[1] and len(kept[0]) > 15


def test_the_watchdog_and_the_stop_leave_the_daemon_its_time() -> None:
    unit = text("drvm.service")
    assert "Type=notify\n" in unit and "WatchdogSec=3min" in unit and "TimeoutStopSec=60s" in unit


@pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)
def test_systemd_finds_nothing_wrong(tmp_path: Path) -> None:
    for unit in UNITS.iterdir():
        there = unit.read_text("utf-8").replace("/usr/local/bin/drvm", "/bin/true")
        (tmp_path / unit.name).write_text(there)
    instance = tmp_path / "drvm-run@backup\\x20nightly.service"
    shutil.copy(tmp_path / "drvm-run@.service", instance)
    units = [str(tmp_path / "drvm.service"), str(instance), str(tmp_path / "drvm-run@.timer")]
    output = SystemProcesses().run(["systemd-analyze", "verify", "--man=no", *units], timeout_s=60)
    said = (output.stdout + output.stderr).decode().splitlines()
    assert [line for line in said if "drvm" in line and not NO_MAN.fullmatch(line)] == []
