"""Pruning, pinning and forgetting through the real command, on a directory and on a real S3."""

from __future__ import annotations

import datetime as dt
import os
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from drvm.core.clock import SystemClock
from drvm.core.progress import NoProgress
from drvm.core.units import MIB
from drvm.lab.services import S3Server
from drvm.snapshot.imagefiles import ImageFile
from drvm.upkeep.prune import run_prune
from drvm.wiring.jobs import take_image_point
from drvm.wiring.upkeep import plan_prune_of
from tests.appliance import Appliance, make_appliance
from tests.refusals import assert_clear, unchanged

CONFIG = """\
hosts:
  - uri: test:///default
policies:
  - name: pruned
    vms: [one]
    keep_last: 1
"""
"""libvirt's own test driver: a host in the process, with one machine called test."""

IDS = [f"{letter * 4}000000001000" for letter in "abc"]
"""Of the points of ``one``, the oldest first."""


GONE_UUID = "99999999-2222-4333-8444-555555555555"


class Earlier(SystemClock):
    """Of a host whose points were taken a while ago."""

    def now(self) -> dt.datetime:
        return super().now() - dt.timedelta(hours=2)


@pytest.fixture(params=["directory", pytest.param("s3", marks=pytest.mark.s3)])
def appliance(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Appliance:
    """Three points of ``one``, of which the policy keeps one, and one of ``two``, without rules."""
    server: S3Server | None = None
    url = f"file://{tmp_path}/store"
    if request.param == "s3":
        server = request.getfixturevalue("seaweedfs")
        url = f"s3://{server.bucket}/prune-{tmp_path.name}"
    made = make_appliance(tmp_path, url, server, CONFIG)
    made.drvm("init")
    for variable, value in made.env.items():
        monkeypatch.setenv(variable, value)
    with made.wiring() as wiring:
        wiring.clock = Earlier()
        for seed, (vm, point_id) in enumerate([*(("one", i) for i in IDS), ("two", "d" * 16)]):
            monkeypatch.setattr("drvm.wiring.jobs.new_point_id", lambda chosen=point_id: chosen)
            image = tmp_path / f"{vm}.raw"
            image.write_bytes(content(seed))
            take_image_point(wiring, vm, [ImageFile(image)], NoProgress())
    return made


def content(seed: int) -> bytes:
    return np.random.default_rng(seed).bytes(MIB)


def listed(appliance: Appliance) -> list[str]:
    return [point["id"] for point in appliance.json("points")["points"]]


def restored(appliance: Appliance, point_id: str) -> bytes:
    out = appliance.directory / f"out-{point_id}"
    appliance.drvm("-q", "restore", point_id, "--output", str(out))
    (image,) = out.iterdir()
    return image.read_bytes()


def prune_without_waiting(appliance: Appliance) -> list[str]:
    """As the command, for points that were stored a moment ago."""
    with appliance.wiring() as wiring:
        plan = plan_prune_of(wiring, settled=dt.timedelta(0))
        assert plan.refusal is None
        return [point.id for point in run_prune(wiring.repository(), plan.going).ended]


def test_prune_keeps_what_rules_and_pins_say_and_what_stays_restores(
    appliance: Appliance,
) -> None:
    appliance.drvm("pin", IDS[0], "--note", "before the upgrade")
    assert prune_without_waiting(appliance) == [IDS[1]]
    told = appliance.json("prune", "--dry-run", "one")
    assert [(p["id"], p["kept"], p["removed"]) for p in told["points"]] == [
        (IDS[0], True, False),
        (IDS[2], True, False),
    ]
    assert told["points"][0]["reasons"] == ["pinned: before the upgrade"]
    assert "before the upgrade" in appliance.drvm("show", IDS[0]).out
    assert "before the upgrade" in appliance.drvm("points").out
    assert listed(appliance) == [IDS[0], IDS[2], "d" * 16]
    assert restored(appliance, IDS[0]) == content(0)
    assert restored(appliance, IDS[2]) == content(2)
    appliance.drvm("unpin", IDS[0])
    assert prune_without_waiting(appliance) == [IDS[0]]
    appliance.drvm("forget", IDS[2], "--yes")
    assert listed(appliance) == ["d" * 16]


@pytest.fixture
def store(appliance: Appliance) -> Path:
    """The repository's directory, in which everything was written an hour ago."""
    store = appliance.directory / "store"
    then = (SystemClock().now() - dt.timedelta(hours=1)).timestamp()
    for path in store.rglob("*"):
        os.utime(path, (then, then))
    return store


only_directory = pytest.mark.parametrize("appliance", ["directory"], indirect=True)


@only_directory
def test_prune_says_why_and_a_dry_run_changes_nothing(appliance: Appliance, store: Path) -> None:
    with unchanged(store):
        told = appliance.drvm("prune", "--dry-run").out
    assert "2 of 4 points would be removed" in told
    assert told.count("no rule keeps it") == 2 and "no rules" in told
    assert "2 of 4 points removed" in appliance.drvm("prune").out
    assert listed(appliance) == [IDS[2], "d" * 16]


@only_directory
def test_a_clock_that_is_behind_the_stores_removes_nothing(
    appliance: Appliance, store: Path
) -> None:
    ahead = (SystemClock().now() + dt.timedelta(hours=1)).timestamp()
    os.utime(next((store / "final").iterdir()), (ahead, ahead))
    told = appliance.drvm("prune", "--dry-run", expect=1)
    assert "behind the store's" in told.out and "0 of 4" in told.out
    assert "nothing may be removed" in told.err and "NTP" in told.err


@only_directory
def test_what_could_be_a_mistake_is_refused_and_removes_nothing(
    appliance: Appliance, store: Path
) -> None:
    appliance.drvm("pin", IDS[0])
    with unchanged(store):
        for arguments, code, says, hint in (
            (("prune", "three"), 2, "no point of a VM 'three'", "drvm points"),
            (("forget", "one", "--yes"), 2, "names a VM, not a point", "--vm"),
            (("forget", IDS[1]), 2, "needs a yes", "--yes"),
            (("forget", IDS[0], "--yes"), 2, "pinned", "drvm unpin"),
            (("unpin", IDS[1]), 2, "is not pinned", "drvm points"),
        ):
            result = appliance.drvm(*arguments, expect=code)
            assert_clear(result.err, says, hint)


@only_directory
def test_points_of_vms_that_are_gone_are_listed_pinned_and_removed(
    appliance: Appliance, store: Path
) -> None:
    with appliance.wiring() as wiring:
        (here,) = wiring.host().domains()
        image = wiring.repository().points().points[0].manifest
        for vm, uuid, point_id in (
            (here.name, here.uuid, "e" * 16),
            ("left", GONE_UUID, "f" * 16),
            ("left", GONE_UUID, "9" * 16),
        ):
            wiring.repository().commit(
                replace(image, id=point_id, vm=vm, vm_uuid=uuid, engine="external")
            )
    gone = appliance.json("points", "--gone")["points"]
    assert {(point["id"], point["vm"]) for point in gone} == {
        ("f" * 16, "left"),
        ("9" * 16, "left"),
    }
    appliance.drvm("pin", "f" * 16)
    appliance.drvm("forget", "9" * 16, "--yes")
    appliance.drvm("unpin", "f" * 16)
    assert "would be forgotten" in appliance.drvm("forget", "--vm", "left", "--dry-run").out
    appliance.drvm("forget", "--vm", GONE_UUID, "--yes")
    assert "every VM" in appliance.drvm("points", "--gone").out
