"""Collecting through the real command, on a directory and on a real S3."""

from __future__ import annotations

import datetime as dt
import json
import os
from pathlib import Path

import numpy as np
import pytest

from drvm.core.clock import SystemClock
from drvm.core.progress import NoProgress
from drvm.core.units import MIB
from drvm.daemon.tasks import Doing, job_named, jobs_of
from drvm.daemon.tasks_fleet import View
from drvm.lab.services import S3Server
from drvm.wiring.fleet import Fleet
from tests.appliance import Appliance, make_appliance
from tests.refusals import assert_clear, unchanged

CONFIG = """\
hosts:
  - uri: test:///default
gc:
  grace: 1s
"""


def content(seed: int) -> bytes:
    return np.random.default_rng(seed).bytes(MIB)


@pytest.fixture(params=["directory", pytest.param("s3", marks=pytest.mark.s3)])
def appliance(request: pytest.FixtureRequest, tmp_path: Path) -> Appliance:
    """Three points of images that share nothing."""
    server: S3Server | None = None
    url = f"file://{tmp_path}/store"
    if request.param == "s3":
        server = request.getfixturevalue("seaweedfs")
        url = f"s3://{server.bucket}/gc-{tmp_path.name}"
    made = make_appliance(tmp_path, url, server, CONFIG)
    made.drvm("init")
    for seed in range(3):
        image = tmp_path / "image.raw"
        image.write_bytes(content(seed))
        made.drvm("-q", "backup", "--image", str(image), "--name", f"vm{seed}")
    return made


def restored(appliance: Appliance, vm: str) -> bytes:
    out = appliance.directory / f"out-{vm}"
    appliance.drvm("-q", "restore", vm, "--output", str(out))
    (image,) = out.iterdir()
    return image.read_bytes()


def aged(appliance: Appliance) -> Path:
    """The repository's directory, in which everything was written an hour ago."""
    store = appliance.directory / "store"
    then = (SystemClock().now() - dt.timedelta(hours=1)).timestamp()
    for path in store.rglob("*"):
        os.utime(path, (then, then))
    return store


def test_what_was_forgotten_is_condemned_and_what_stays_restores(appliance: Appliance) -> None:
    """Young packs are not deleted, also on S3, whose times can't be turned."""
    assert appliance.json("gc")["done"]["condemned"] == 0
    appliance.drvm("forget", "--vm", "vm0", "--yes")
    SystemClock().sleep(1.5)
    assert appliance.json("gc")["done"]["condemned"] == 2
    told = appliance.json("gc")
    assert (len(told["waiting"]), told["done"]["deleted"]) == (2, 0)
    assert restored(appliance, "vm1") == content(1)
    assert restored(appliance, "vm2") == content(2)


only_directory = pytest.mark.parametrize("appliance", ["directory"], indirect=True)


@only_directory
def test_two_runs_free_the_space_and_a_dry_run_changes_nothing(appliance: Appliance) -> None:
    appliance.drvm("forget", "--vm", "vm0", "--yes")
    store = aged(appliance)
    with unchanged(store):
        told = appliance.drvm("gc", "--dry-run").out
        assert told.count("condemn  pack ") == 2
        assert "2 would be condemned" in told
    assert "2 condemned" in appliance.drvm("gc").out
    before = sum(path.stat().st_size for path in (store / "packs").iterdir())
    assert "2 packs deleted" in appliance.drvm("gc").out
    assert before - sum(path.stat().st_size for path in (store / "packs").iterdir()) > MIB
    assert not list((store / "condemned").iterdir())
    assert len(list((store / "index").iterdir())) == 2
    assert restored(appliance, "vm1") == content(1)


@only_directory
def test_the_daemon_collects_on_its_schedule(appliance: Appliance) -> None:
    appliance.config.write_text(
        appliance.config.read_text().replace("  grace: 1s", '  grace: 1s\n  schedule: "0 4 * * *"')
    )
    appliance.drvm("forget", "--vm", "vm0", "--yes")
    store = aged(appliance)
    with appliance.wiring() as wiring:
        doing = Doing(appliance.wiring, {}, wiring.processes)
        (task,) = job_named(jobs_of(wiring.settings, doing), "gc").tasks(View(Fleet((), ()), {}))
    assert task.timing.schedule == "0 4 * * *"
    for left in (2, 0):
        task.run(NoProgress())
        assert len(list((store / "condemned").iterdir())) == left
    assert len(list((store / "packs").iterdir())) == 4


@only_directory
def test_a_damaged_point_stops_it_and_there_is_a_way_on(appliance: Appliance) -> None:
    (point,) = (p for p in appliance.json("points")["points"] if p["vm"] == "vm1")
    store = aged(appliance)
    (manifest,) = (store / "points").rglob(f"{point['id']}.*")
    manifest.write_bytes(b"noise")
    with unchanged(*(store / name for name in ("packs", "points", "final", "index"))):
        refused = appliance.drvm("--json", "gc", expect=4)
        assert [d["id"] for d in json.loads(refused.out)["damaged"]] == [point["id"]]
        assert_clear(refused.err, point["id"], "--forget-damaged")
        wrong = appliance.drvm("gc", "--forget-damaged", "ffff", expect=2)
        assert_clear(wrong.err, "'ffff' is not one of the points", point["id"])
        appliance.drvm("gc", "--dry-run", "--forget-damaged", point["id"], expect=4)
    told = appliance.json("gc", "--forget-damaged", point["id"])
    assert (told["ended"], told["done"]["condemned"]) == ([point["id"]], 2)
    assert restored(appliance, "vm2") == content(2)
