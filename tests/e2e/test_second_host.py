"""The second host that other tests restore to: what they rely on."""

from __future__ import annotations

from pathlib import Path

import pytest

from drvm.core.process import Processes
from tests.second_host import IMAGES, POOL, second_host

pytestmark = pytest.mark.guest


def test_it_is_reached_by_tcp_and_ssh_and_has_storage_of_its_own(
    processes: Processes, libvirt_uri: str
) -> None:
    with second_host(processes) as second:
        for uri in (second.uri, second.ssh_uri):
            said = processes.run(["virsh", "-q", "-c", uri, "hostname"], timeout_s=60)
            assert said.stdout.strip() == b"second"
        second.virsh("vol-create-as", POOL, "there", "4096", "--format", "raw")
        assert (second.images / "there").stat().st_size == 4096
        assert second.run(["ls", str(IMAGES)]).stdout == b"there\n"
        assert not Path(IMAGES, "there").exists()
        second.libvirtd.kill()
        second.libvirtd.wait()
        assert "there" in second.virsh("vol-list", POOL)
