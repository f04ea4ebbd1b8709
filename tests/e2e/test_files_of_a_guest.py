"""The command, on a point of a guest that ran and wrote: nobody unmounted its file systems."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.appliance import make_appliance
from tests.guests import MakeGuest

pytestmark = [pytest.mark.guest, pytest.mark.long]


def test_files_of_a_guest_that_runs_come_out_of_its_point(
    make_guest: MakeGuest, tmp_path: Path
) -> None:
    guest = make_guest("files")
    guest.run("mkdir -p /data/deep; seq 1 200000 > /data/deep/numbers; echo hello > /data/hello")
    numbers = guest.run("sync; md5sum < /data/deep/numbers").split()[0]
    guest.run("(while :; do date; done > /data/busy) > /dev/null 2>&1 &")
    home = make_appliance(tmp_path / "drvm", f"file://{tmp_path}/store", None)
    home.drvm("init")
    home.backup(guest.name)

    found = home.json("files", "ls", guest.name)
    by_device = {fs["device"]: fs for fs in found["file_systems"]}
    assert by_device["/dev/vdb"]["type"] == "ext4" and by_device["/dev/vda1"]["type"] == "ext4"

    told = home.drvm("files", "cat", guest.name, "/dev/vdb:/hello")
    assert told.out == "hello\n"

    output = tmp_path / "out"
    get = ("files", "get", guest.name, "/dev/vdb:/deep", "--output", str(output))
    fetched = home.json(*get)
    assert (fetched["fetched"]["files"], fetched["fetched"]["failed"]) == (1, [])
    copied = guest.processes.run(["md5sum", str(output / "deep/numbers")], timeout_s=30)
    assert copied.stdout.split()[0].decode() == numbers
