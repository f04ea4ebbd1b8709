"""Repositories that are damaged, locked away or not there, through the real command."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from drvm.core.process import Processes
from drvm.core.units import KIB, MIB
from drvm.lab.services import S3Server
from tests.appliance import Appliance, make_appliance
from tests.refusals import assert_clear, read_only, refused, small_disk, unchanged

SECRET = "a secret that no message may hold"


def random_image(path: Path, seed: int, size_bytes: int = 2 * MIB) -> str:
    path.write_bytes(np.random.default_rng(seed).bytes(size_bytes))
    return str(path)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Appliance:
    """A repository with one point of each of the machines ``one`` and ``two``; nothing shared."""
    directory = tmp_path_factory.mktemp("bad-repository")
    made = make_appliance(directory, f"file://{directory}/store", None)
    made.drvm("init")
    for seed, name in enumerate(("one", "two")):
        image = random_image(directory / f"{name}.raw", seed)
        made.drvm("-q", "backup", "--image", "--name", name, image)
    return made


@pytest.fixture
def appliance(pristine: Appliance, tmp_path: Path) -> Appliance:
    """The same for one test alone, with an empty cache."""
    made = make_appliance(tmp_path / "own", f"file://{tmp_path}/own/store", None)
    shutil.copytree(pristine.directory / "store", made.directory / "store")
    return made


def packs_of(appliance: Appliance, vm: str) -> list[Path]:
    """The packs that only this machine's point needs, the largest (its data) first."""
    with appliance.wiring() as wiring:
        repository = wiring.repository()
        (point,) = (p for p in repository.points().points if p.manifest.vm == vm)
        names = [name.hex() for name in repository.need(point.manifest)]
    paths = [appliance.directory / "store" / "packs" / name for name in names]
    return sorted(paths, key=lambda path: -path.stat().st_size)


def truncate(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def alter(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[20] ^= 1  # of the first thing in it; what fills a pack up at the end is never read
    path.write_bytes(data)


def delete(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize(
    ("which", "damage"),
    [("data", truncate), ("data", alter), ("data", delete), ("metadata", alter)],
)
def test_a_damaged_pack_is_found_on_read_and_others_still_restore(
    which: str, damage: Callable[[Path], None], appliance: Appliance
) -> None:
    pack = packs_of(appliance, "one")[0 if which == "data" else -1]
    damage(pack)
    out = appliance.directory / "out"
    with unchanged(appliance.directory / "store"):
        arguments = ("restore", "one", "--output", str(out))
        refused(appliance, *arguments, code=4, says=pack.name, hint="can still be restored")
        assert not out.exists()
        if damage is delete:
            appliance.drvm("-q", "restore", "two", "--output", str(out))


def test_two_packs_that_changed_places_are_both_found(appliance: Appliance) -> None:
    first, second = packs_of(appliance, "one")[0], packs_of(appliance, "two")[0]
    aside = first.with_name("aside")
    first.rename(aside)
    second.rename(first)
    aside.rename(second)
    for vm, pack in (("one", first), ("two", second)):
        arguments = ("restore", vm, "--output", str(appliance.directory / "out"))
        refused(appliance, *arguments, code=4, says=pack.name, hint="can still be restored")


def test_a_damaged_point_is_named_and_the_others_are_listed(appliance: Appliance) -> None:
    manifest = next((appliance.directory / "store" / "points").rglob("*.*"))
    alter(manifest)
    for flags in ([], ["--json"], ["-q"]):
        result = appliance.drvm("points", *flags, expect=4)
        assert "drvm: error: 1 objects of the repository are damaged or lost" in result.err
        assert ("-q" in flags) != (manifest.name in result.err)
        assert ("one" in result.out) != ("two" in result.out)


def test_a_repository_of_a_newer_drvm_is_neither_read_nor_written(appliance: Appliance) -> None:
    store = appliance.directory / "store"
    config = json.loads((store / "drvm.json").read_text())
    (store / "drvm.json").write_text(json.dumps({**config, "format_version": 99}))
    image = random_image(appliance.directory / "x.raw", 9)
    with unchanged(store):
        for arguments in (("points",), ("backup", "--image", "--name", "x", image)):
            refused(appliance, *arguments, code=1, says="version 99", hint="or a newer one")


def test_a_damaged_drvm_json_is_told_and_its_copy_serves(appliance: Appliance) -> None:
    (appliance.directory / "store" / "drvm.json").write_text("{")
    result = appliance.drvm("points", expect=4)
    assert "its copy in the key slot was used" in result.err
    assert "one" in result.out and "two" in result.out


def test_a_directory_without_a_repository_and_a_missing_one(appliance: Appliance) -> None:
    place = appliance.directory
    for code, url, says, hint in (
        (10, f"file://{place}", "no repository at", "drvm init"),
        (1, f"file://{place}/absent", "no directory", "mount it"),
        (2, f"file://{place}/../x", "..", "file:///absolute/path"),
        (2, "gopher://x", "must begin with", "s3://"),
    ):
        refused(appliance, "points", code=code, says=says, hint=hint, env={"DRVM_REPOSITORY": url})
    assert not (place / "absent").exists()
    refused(appliance, "init", code=1, says="a repository at", hint="another place")


def test_without_the_right_to_write_reading_works_and_nothing_is_written(
    appliance: Appliance, processes: Processes, tmp_path: Path
) -> None:
    image = random_image(tmp_path / "x.raw", 9)
    with read_only(processes, appliance.directory / "store", tmp_path / "ro") as place:
        env = {"DRVM_REPOSITORY": f"file://{place}"}
        assert "one" in appliance.drvm("points", env=env).out
        with unchanged(place):
            arguments = ("backup", "--image", "--name", "x", image)
            refused(appliance, *arguments, code=1, says="Read-only", hint="mount options", env=env)


def test_a_full_store_fails_the_backup_and_keeps_the_points(
    appliance: Appliance, processes: Processes, tmp_path: Path
) -> None:
    with small_disk(processes, tmp_path / "small") as place:
        env = {"DRVM_REPOSITORY": f"file://{place}"}
        appliance.drvm("init", env=env)
        image = random_image(tmp_path / "x.raw", 9)
        arguments = ("backup", "--image", "--name", "x", image)
        refused(appliance, *arguments, code=1, says="full", hint="prune", env=env)
        assert "no points yet" in appliance.drvm("points", env=env).out
        assert list(place.rglob("~*")) == []


@pytest.mark.s3
def test_s3_that_refuses_or_is_not_there(seaweedfs: S3Server, tmp_path: Path) -> None:
    bucket = f"s3://{seaweedfs.bucket}/bad-repository"
    made = make_appliance(tmp_path / "a", bucket, seaweedfs)
    foreign = {"AWS_ACCESS_KEY_ID": "NOBODY", "AWS_SECRET_ACCESS_KEY": SECRET}
    closed = dataclasses.replace(seaweedfs, endpoint="http://127.0.0.1:9")
    image = random_image(tmp_path / "x.raw", 9)
    for appliance, env, code, says, hint in (
        (made, {}, 10, "no repository at", "drvm init"),
        (made, foreign, 1, "access key is unknown", "AWS_ACCESS_KEY_ID"),
        (made, {"AWS_SECRET_ACCESS_KEY": SECRET}, 1, "secret key is wrong", "AWS_"),
        (made, {"DRVM_REPOSITORY": "s3://absent-bucket/x"}, 1, "no such bucket", "create it"),
        (make_appliance(tmp_path / "b", bucket, closed), {}, 1, "connection refused", "endpoint"),
    ):
        arguments = ("backup", "--image", "--name", "x", image)
        told = refused(appliance, *arguments, code=code, says=says, hint=hint, env=env).err
        assert SECRET not in told and seaweedfs.secret_key not in told
    refused(made, "points", code=10, says="no repository at", hint="drvm init")


def test_an_index_is_made_anew_by_hand_and_says_which_packs_are_damaged(appliance):
    planned = appliance.json("index", "rebuild", "--dry-run")
    assert planned == {"dry_run": True, "packs": 4, "tables_cached": 0}
    truncate(packs_of(appliance, "one")[0])
    result = appliance.drvm("index", "rebuild", expect=4)
    assert_clear(result.err, packs_of(appliance, "one")[0].name, "next backup")
    assert "512 hooks" in result.out  # of the other machine's pack
    findings = appliance.json("doctor", expect=None)["findings"]
    (index,) = (finding for finding in findings if finding["name"] == "index")
    assert "512 hooks" in index["detail"]


def flip(path: Path, *places: int) -> None:
    data = bytearray(path.read_bytes())
    for place in places:
        data[place] ^= 1
    path.write_bytes(data)


def test_a_check_says_what_damage_costs_and_the_next_backup_heals(appliance: Appliance) -> None:
    store = appliance.directory / "store"
    flip(packs_of(appliance, "one")[0], 100, 1 << 20)
    with unchanged(store):
        found = appliance.json("check", "--read-data", "--dry-run", expect=4)
    (hit,) = found["points_hit"]
    (disk,) = hit["disks"]
    assert (hit["vm"], hit["lost_parts"]) == ("one", [])
    frame = 128 * KIB
    assert disk["ranges"] == [
        {"offset_bytes": 0, "length_bytes": frame},
        {"offset_bytes": 7 * frame, "length_bytes": frame},
    ]
    result = appliance.drvm("check", "--read-data", expect=4)
    assert "set aside" in result.out and f"{hit['id']} of one" in result.out
    assert_clear(result.err, "1 of 2 points are damaged", "drvm backup")
    image = random_image(appliance.directory / "again.raw", 0)
    appliance.drvm("-q", "backup", "--image", "--name", "one", image)
    still = appliance.json("check", expect=4)["points_hit"]
    assert [point["id"] for point in still] == [hit["id"]]
    out = appliance.directory / "out"
    appliance.drvm("-q", "restore", "one", "--output", str(out))
    assert next(out.iterdir()).read_bytes() == Path(image).read_bytes()


def test_packs_are_checked_without_the_passphrase(appliance: Appliance) -> None:
    (appliance.directory / "passphrase").unlink()
    assert appliance.json("check", "--without-key")["read_packs"] == 4
    pack = next((appliance.directory / "store" / "packs").iterdir())
    flip(pack, 100)
    result = appliance.drvm("check", "--without-key", "--dry-run", expect=4)
    assert pack.name in result.out
    assert "Traceback" not in result.err


def test_damaged_points_are_repaired_from_a_copy(appliance: Appliance) -> None:
    place = appliance.directory
    for path in (place / "store").rglob("*"):  # else they are too young to be removed
        os.utime(path, (1.7e9, 1.7e9))
    url = f"file://{place}/second"
    second = {"DRVM_REPOSITORY": url}
    appliance.drvm("init", env=second)
    options = ("--from-password-file", str(place / "passphrase"))
    appliance.drvm("-q", "copy", "--to", url, "--to-password-file", str(place / "passphrase"))
    truncate(packs_of(appliance, "one")[0])
    delete(packs_of(appliance, "two")[-1])
    alone = appliance.json("check", "--read-data", "--repair", expect=4)
    assert [point["repaired"] for point in alone["repairs"]] == [False, False]
    assert "no second repository" in alone["repairs"][0]["reason"]
    result = appliance.drvm("check", "--repair", "--from", url, *options, expect=3)
    assert result.out.count("was repaired") == 2
    assert appliance.json("check", "--read-data")["damaged"] is False
    out = place / "out"
    appliance.drvm("-q", "restore", "one", "--output", str(out))
    expected = random_image(place / "expected.raw", 0)
    assert next(out.iterdir()).read_bytes() == Path(expected).read_bytes()


@pytest.mark.s3
def test_a_check_of_a_bucket(seaweedfs: S3Server, tmp_path: Path) -> None:
    made = make_appliance(tmp_path / "a", f"s3://{seaweedfs.bucket}/check", seaweedfs)
    made.drvm("init")
    made.drvm("-q", "backup", "--image", "--name", "one", random_image(tmp_path / "x.raw", 1))
    found = made.json("check", "--read-data", "100%")
    assert (found["damaged"], found["read_packs"], found["never_read_packs"]) == (False, 2, 0)
