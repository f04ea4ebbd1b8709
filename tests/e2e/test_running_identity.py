"""What comes back of a running machine is, byte for byte, what was frozen of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from drvm.backup.run import Backup
from drvm.core.clock import SystemClock
from drvm.core.ids import new_point_id
from drvm.core.process import Processes
from drvm.core.progress import NoProgress, no_trace
from drvm.lab.services import S3Server
from drvm.snapshot.capture import CaptureRequest
from drvm.snapshot.choose import choose
from tests import chain
from tests.appliance import make_appliance
from tests.capturing import KeepingEngine, image_digest
from tests.guests import MakeGuest

pytestmark = [pytest.mark.guest, pytest.mark.s3]


def test_restored_disks_are_the_frozen_ones_although_the_guest_writes_on(
    make_guest: MakeGuest,
    seaweedfs: S3Server,
    libvirt_uri: str,
    processes: Processes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    guest = make_guest("identity")
    appliance = make_appliance(tmp_path, f"s3://{seaweedfs.bucket}/identity", seaweedfs)
    appliance.drvm("init")
    for name, value in appliance.env.items():
        monkeypatch.setenv(name, value)
    chain.start(guest)
    with appliance.wiring() as wiring:
        backup = Backup(
            wiring.repository(),
            writer=wiring.writer,
            level=1,
            clock=SystemClock(),
            progress=NoProgress(),
            trace=no_trace,
        )
        host, domain = wiring.find(guest.name)
        for _ in range(2):  # the first point, and one with a parent
            engine = choose(wiring.parts(host), domain.uuid).engine
            keeping = KeepingEngine(engine, guest, tmp_path, processes)
            request = CaptureRequest(vm=guest.name, point_id=new_point_id())
            point = backup.run(keeping, request, domain.uuid).point
            out = tmp_path / point.id
            appliance.drvm("restore", point.id, "--output", str(out))
            found = {
                disk.target: image_digest(
                    out / f"{disk.target}.{disk.format}", disk.format, tmp_path, processes
                )
                for disk in point.manifest.disks
            }
            assert found == keeping.frozen
    written = chain.stop(guest)
    assert chain.verify([guest.run(f"cat {path}") for path in chain.FILES]) == [written, written]
