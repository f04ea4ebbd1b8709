"""``--map-pool`` and ``--map-network``: what of the original they mean."""

from __future__ import annotations

import pytest

from drvm.repository.manifest import Disk
from drvm.restore.mapping import pools_of, unused
from tests.unit.restore.hostile import domain


def disk(kind: str, source: str, target: str) -> str:
    return f"<disk type='{kind}'><source {source}/><target dev='{target}'/></disk>"


ORIGINAL = domain(
    disk("file", "file='/srv/vms/a/root.qcow2'", "vda")
    + disk("file", "file='/srv/vms/a/data.raw'", "vdb")
    + disk("volume", "pool='fast' volume='x'", "vdc")
    + disk("block", "dev='/dev/vg/lv'", "vdd")
    + "<disk type='file' device='cdrom'><target dev='sda'/></disk>"
    + "<interface type='bridge'><source bridge='br0'/></interface>"
    + "<interface type='direct'><source dev='eno1'/></interface>"
    + "<interface type='user'/>"
)
DISKS = tuple(
    Disk(target, 1 << 20, "raw", "full", 0, 0, 0) for target in ("vda", "vdb", "vdc", "vdd")
)


@pytest.mark.parametrize(
    ("mapped", "goes"),
    [
        ({}, "d d d d"),
        ({"vdb": "x"}, "d x d d"),
        ({"/srv/vms/a": "x"}, "x x d d"),
        ({"/srv/vms/a": "x", "vda": "y"}, "y x d d"),
        ({"fast": "x"}, "d d x d"),
        ({"/dev/vg": "x"}, "d d d x"),
        ({"/srv": "x", "sda": "y", "/srv/vms/a/": "z"}, "d d d d"),
    ],
)
def test_disks_go_by_their_target_their_pool_or_their_directory(
    mapped: dict[str, str], goes: str
) -> None:
    found = pools_of(ORIGINAL, DISKS, "d", mapped)
    assert [found[disk.target] for disk in DISKS] == goes.split()


def test_what_names_nothing_of_the_original_is_told_with_what_there_is() -> None:
    pools = {"/srv/vms/a": "x", "vda": "x", "/srv": "x\x1b"}
    networks = {"br0": "lan", "eno1": "lan", "br1": "lan"}
    of_pools, of_networks = unused(ORIGINAL, DISKS, pools, networks)
    assert "--map-pool /srv=x" in of_pools
    assert "/dev/vg, /srv/vms/a, fast, vda" in of_pools
    assert "--map-network br1=lan" in of_networks
    assert "br0, eno1" in of_networks
    assert of_pools.isprintable()


def test_a_disk_that_the_definition_does_not_know_goes_by_its_target_only() -> None:
    other = Disk("vdz", 1 << 20, "raw", "full", 0, 0, 0)
    assert pools_of(ORIGINAL, (other,), "d", {"/srv/vms/a": "x"}) == {"vdz": "d"}
    assert pools_of(ORIGINAL, (other,), "d", {"vdz": "x"}) == {"vdz": "x"}
