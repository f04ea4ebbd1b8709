"""The daemon on a real guest: puts right what was left, takes points by itself, stops cleanly."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from drvm.core.clock import SystemClock
from drvm.lab.guest import wait_for_text
from drvm.lab.services import S3Server
from tests.appliance import make_appliance
from tests.guests import MakeGuest

pytestmark = [pytest.mark.guest, pytest.mark.s3]

LIMIT_S = 150.0


@pytest.mark.parametrize(
    "program", ["tests.hurried_daemon", pytest.param("drvm", marks=pytest.mark.long)]
)
def test_a_daemon_recovers_at_the_start_takes_points_on_schedule_and_stops_on_sigterm(
    program: str, make_guest: MakeGuest, seaweedfs: S3Server, libvirt_uri: str, tmp_path: Path
) -> None:
    guest = make_guest("daemon")
    told = tmp_path / "hooks"
    hook = f'["sh", "-c", "echo $DRVM_VM $DRVM_OUTCOME >> {told}"]'
    policy = (
        f'policies:\n  - {{name: often, vms: ["{guest.name}"], schedule: "* * * * *", '
        f"hooks: {{before: [{hook}], after: [{hook}]}}}}\n"
    )
    url = f"s3://{seaweedfs.bucket}/{guest.name}"
    appliance = make_appliance(tmp_path, url, seaweedfs, policy)
    appliance.drvm("init")
    appliance.backup_killed_at(guest.name, "reading")
    assert "overlay" in guest.virsh("domblklist")
    log = tmp_path / "daemon.log"
    with log.open("wb") as stream:
        daemon = subprocess.Popen(
            [sys.executable, "-m", program, "--config", str(appliance.config), "daemon"],
            env=dict(appliance.env),
            stdin=subprocess.DEVNULL,
            stderr=stream,
        )
    try:
        assert wait_for_text(log, "1 jobs; stop", LIMIT_S, SystemClock()), log.read_text()
        assert guest.name in log.read_text()
        assert "overlay" not in guest.virsh("domblklist")
        done = f"backup often: {guest.name}: done"
        assert wait_for_text(log, done, LIMIT_S, SystemClock()), log.read_text()
    finally:
        daemon.send_signal(signal.SIGTERM)
        code = daemon.wait(30)
    assert code == 0, log.read_text()
    told.unlink()
    by_hand = appliance.json("run", "backup", "often")["runs"]
    assert [(run["vm"], run["state"]) for run in by_hand] == [(guest.name, "done")]
    assert told.read_text() == f"{guest.name}\n{guest.name} done\n"
    points = appliance.json("points", guest.name)["points"]
    assert points[-1]["id"] == by_hand[0]["result"]
    assert {point["consistency"] for point in points} == {"filesystem"}
    assert "overlay" not in guest.virsh("domblklist")
