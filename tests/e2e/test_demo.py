"""The demo does the main job, and leaves nothing behind, also when it is interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from drvm.core.process import Processes
from drvm.lab.guest import IMAGES

pytestmark = [pytest.mark.guest, pytest.mark.s3]

LIMIT_S = 400.0


def leftovers(uri: str, processes: Processes) -> set[str]:
    """Domains, networks, pools, directories and processes of demos and drills."""
    found = {str(path) for path in IMAGES.glob("drvm-demo-*")}
    for command in ("list", "net-list", "pool-list"):
        argv = ["virsh", "-q", "-c", uri, command, "--all", "--name"]
        names = processes.run(argv, timeout_s=60).stdout.decode().split()
        found |= {name for name in names if name.startswith(("drvm-demo-", "drvm-drill-"))}
    table = processes.run(["ps", "-eo", "args="], timeout_s=30).stdout.decode()
    return found | {line for line in table.splitlines() if "drvm-demo-" in line}


def demo(log: Path, report: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as stream:
        return subprocess.Popen(
            [sys.executable, "-m", "drvm", "demo", "--report-dir", str(report)],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        )


def test_an_interrupted_demo_leaves_nothing_and_the_next_one_does_the_main_job(
    libvirt_uri: str, guest_template: object, virt_type: str, processes: Processes, tmp_path: Path
) -> None:
    before = leftovers(libvirt_uri, processes)
    log = tmp_path / "interrupted"
    interrupted = demo(log, tmp_path)
    deadline = time.monotonic() + LIMIT_S
    while "$ drvm backup" not in log.read_text():
        assert interrupted.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
    interrupted.send_signal(signal.SIGINT)
    assert interrupted.wait(LIMIT_S) == 130, log.read_text()
    assert leftovers(libvirt_uri, processes) == before

    log = tmp_path / "whole"
    reports = tmp_path / "reports"
    assert demo(log, reports).wait(LIMIT_S) == 0, log.read_text()
    assert leftovers(libvirt_uri, processes) == before
    story = log.read_text()
    for verb in ("init", "vms", "backup", "points", "restore", "clone", "drill"):
        assert f"$ drvm {verb}" in story
    assert "all checksums are right" in story
    assert "data:image/png" in (reports / "demo-report.html").read_text()
