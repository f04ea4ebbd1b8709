"""Copies to a second site by the real command: from a real S3 to a directory."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from drvm.core.progress import NoProgress
from drvm.core.units import MIB
from drvm.lab.services import S3Server
from drvm.snapshot.imagefiles import ImageFile
from drvm.wiring.jobs import take_image_point
from tests.appliance import Appliance, make_appliance
from tests.refusals import assert_clear

pytestmark = pytest.mark.s3

IDS = [f"{letter * 4}000000001000" for letter in "abc"]
"""Of two points of ``one`` and one of ``two``, the oldest first."""


def content(version: int) -> bytes:
    """A disk that changes by a block from version to version."""
    disk = bytearray(np.random.default_rng(7).bytes(3 * MIB))
    for number in range(1, version + 1):
        disk[number * 8192 : number * 8192 + 4096] = np.random.default_rng(number).bytes(4096)
    return bytes(disk)


@dataclass(frozen=True)
class Sites:
    """The installation of ``far`` knows nothing of ``near``."""

    near: Appliance
    far: Appliance

    def copying(self, *arguments: str) -> tuple[str, ...]:
        password = str(self.far.directory / "passphrase")
        url = f"file://{self.far.directory}/store"
        return ("copy", "--to", url, "--to-password-file", password, *arguments)


@pytest.fixture(scope="module")
def near(seaweedfs: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Appliance]:
    """Three points, and a config with a copy that can't work."""
    directory = tmp_path_factory.mktemp("near")
    url = f"s3://{seaweedfs.bucket}/{directory.name}"
    password = f"password_file: {directory}/passphrase"
    copies = f"""\
copies:
  - name: itself
    repository: {{url: "{url}", endpoint: "{seaweedfs.endpoint}", {password}}}
"""
    made = make_appliance(directory, url, seaweedfs, copies)
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in made.env.items():
            patch.setenv(variable, value)
        with made.wiring() as wiring:
            wiring.create_repository()
        with made.wiring() as wiring:
            for version, name in enumerate(["one", "one", "two"]):
                patch.setattr("drvm.wiring.jobs.new_point_id", lambda v=version: IDS[v])
                image = directory / f"{name}.raw"
                image.write_bytes(content(version))
                take_image_point(wiring, name, [ImageFile(image)], NoProgress())
    yield made


@pytest.fixture
def sites(near: Appliance, tmp_path: Path) -> Sites:
    far = make_appliance(tmp_path, f"file://{tmp_path}/store", None)
    (tmp_path / "passphrase").write_text("another passphrase\n")
    with far.wiring() as wiring:
        wiring.create_repository()
    return Sites(near, far)


def assert_listed(appliance: Appliance, versions: list[int]) -> None:
    with appliance.wiring() as wiring:
        listed = [point.id for point in wiring.repository().points().points]
    assert listed == [IDS[version] for version in versions]


def assert_restores(appliance: Appliance, version: int) -> None:
    out = appliance.directory / f"out-{version}"
    appliance.drvm("-q", "restore", IDS[version], "--output", str(out))
    (image,) = out.iterdir()
    assert image.read_bytes() == content(version)


def test_what_is_copied_restores_where_nothing_is_known_of_the_first_site(sites: Sites) -> None:
    planned = sites.near.json(*sites.copying("--dry-run"))
    assert [(p["id"], p["state"], p["copied"]) for p in planned["points"]] == [
        (point_id, "copy", False) for point_id in IDS
    ]
    assert_listed(sites.far, [])
    assert "1 of 1 points copied" in sites.near.drvm(*sites.copying("two")).out
    done = sites.near.json(*sites.copying())
    assert [(p["state"], p["copied"]) for p in done["points"]] == [
        ("copy", True), ("copy", True), ("there", False)
    ]  # fmt: skip
    assert done["points"][1]["stored_bytes"] < MIB
    assert_listed(sites.far, [0, 1, 2])
    assert_restores(sites.far, 1)
    (shown,) = sites.far.json("show", "two")["points"]
    assert shown["copied_from"]["host"] == shown["host"]


def test_a_copy_that_was_killed_goes_on(sites: Sites) -> None:
    with subprocess.Popen(
        sites.near.argv("-v", *sites.copying()),
        env=dict(sites.near.env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stderr is not None
        for line in running.stderr:
            if "final-created" in line:
                os.kill(running.pid, signal.SIGKILL)
                break
    assert running.returncode == -signal.SIGKILL
    done = sites.near.json(*sites.copying())
    assert done["points"][0]["state"] == "there"
    assert_listed(sites.far, [0, 1, 2])
    assert_restores(sites.far, 2)


def test_what_can_not_be_meant_is_refused_and_writes_nothing(sites: Sites) -> None:
    itself = sites.near.drvm("copy", "--to", "itself", expect=2)
    assert_clear(itself.err, "is the repository itself", "drvm init")
    wrong = str(sites.near.directory / "passphrase")
    done = sites.near.drvm(*sites.copying("--to-password-file", wrong), expect=12)
    assert_clear(done.err, "passphrase", "")
    assert_listed(sites.far, [])
