"""Repositories that lie in the tree: what was written once can be read, by drvm and without it,
and each kept damage costs drvm exactly what it costs a reader that shares no code with it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from drvm.core.errors import DamageFound, RepositoryError
from drvm.repository.manifest import Disk, StoredBlob
from drvm.repository.points import Point
from drvm.repository.reader import write_disk
from drvm.repository.repository import Repository
from drvm.store.directory import DirectoryStore
from tests.checking import check
from tests.fixtures.damages import BLOCK, PASSPHRASE, Lost, apply, digest, digest_of, verdict

VERSIONS = sorted(path for path in (Path(__file__).parents[1] / "fixtures").glob("v*"))


def load(version: Path, name: str) -> Any:
    return json.loads((version / name).read_text())


CASES = [
    pytest.param(version, case, id=f"{version.name}-{case['name']}")
    for version in VERSIONS
    for case in load(version, "damages.json")
]


def opened(directory: Path) -> Repository:
    return Repository.open(DirectoryStore(directory), PASSPHRASE)


def restored(repository: Repository, disk: Disk) -> str:
    blocks: dict[int, bytes] = {}

    def put(offset: int, data: memoryview) -> None:
        content = bytes(data)
        blocks.update((offset + n, content[n : n + BLOCK]) for n in range(0, len(content), BLOCK))

    write_disk(repository.disk_map(disk), repository.packs, repository.hasher, put)
    return digest_of(blocks, disk.size_bytes)


def blob(repository: Repository, stored: StoredBlob | None) -> str:
    assert stored is not None
    content = repository.blob(stored)
    pieces = {at: content[at : at + BLOCK] for at in range(0, len(content), BLOCK)}
    return digest_of(pieces, len(content))


def lost(repository: Repository, truth: dict[str, Any]) -> Lost:
    """What a restore of everything can't bring back; what it brings back is compared."""
    listed = {point.id: point for point in repository.points().points}
    found: Lost = {}
    for point, parts in sorted(truth.items()):
        bad = ["manifest"] if point not in listed else _bad(repository, listed[point], parts)
        if bad:
            found[point] = sorted(bad)
    return found


def _bad(repository: Repository, point: Point, truth: dict[str, Any]) -> list[str]:
    bad = []
    manifest = point.manifest
    parts = [(disk.target, lambda disk=disk: restored(repository, disk)) for disk in manifest.disks]
    parts += [("definition", lambda: blob(repository, manifest.definition))]
    parts += [("nvram", lambda: blob(repository, manifest.nvram))]
    for name, bring in parts:
        try:
            assert bring() == {**truth["disks"], **truth}[name], name
        except DamageFound:
            bad.append(name)
    return bad


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
def test_a_repository_of_this_version_is_read_by_drvm_and_without_it(version: Path) -> None:
    truth = load(version, "truth.json")
    assert len(truth) == 4
    assert verdict(version / "store", truth) == {}
    repository = opened(version / "store")
    assert {point.id for point in repository.points().points} == truth.keys()
    assert lost(repository, truth) == {}
    assert not check(repository, write=False).damaged


@pytest.mark.parametrize(("version", "case"), CASES)
def test_a_damage_costs_what_it_costs_another_reader(
    version: Path, case: dict[str, Any], tmp_path: Path
) -> None:
    truth = load(version, "truth.json")
    directory = tmp_path / "store"
    shutil.copytree(version / "store", directory)
    apply(case["patch"], directory)
    assert verdict(directory, truth) == case["lost"]
    try:
        repository = opened(directory)
    except RepositoryError:
        assert case["found"] and set(case["lost"]) == set(truth)
        return
    assert lost(repository, truth) == case["lost"]
    result = check(repository)
    assert bool(result.damaged) == case["found"]
    hit = {
        one.id: sorted(
            part
            for part in (*one.parts, *(disk.target for disk in one.disks))
            if not part.startswith("tpm")  # which the other reader doesn't know
        )
        for one in result.hits
    }
    gone = {point: parts for point, parts in case["lost"].items() if point not in hit}
    assert hit == {point: parts for point, parts in case["lost"].items() if point in hit}
    # a manifest that is nowhere can't be told from a point that was removed
    assert not gone or (not case["found"] and set(map(tuple, gone.values())) == {("manifest",)})


def test_the_reader_without_drvm_is_a_command(tmp_path: Path) -> None:
    version = VERSIONS[-1]
    (tmp_path / "passphrase").write_bytes(PASSPHRASE + b"\n")
    reader = Path(__file__).parents[2] / "contrib" / "read_drvm.py"
    words = [sys.executable, str(reader), "--password-file", str(tmp_path / "passphrase")]

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        argv = [*words, str(version / "store"), *arguments]
        return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120)

    lines = run().stdout.splitlines()
    assert [line.split()[2] for line in lines] == ["web1", "web1", "web1", "db1"]
    point, output = lines[-1].split()[0], tmp_path / "vda.raw"
    assert run(point[:6], "vda", str(output)).returncode == 0
    assert digest(output) == load(version, "truth.json")[point]["disks"]["vda"]
    refused = run(point, "vdz", str(tmp_path / "x"))
    assert refused.returncode == 1 and "definition" in refused.stderr


def test_there_are_enough_damages_and_each_is_another() -> None:
    for version in VERSIONS:
        patches = [json.dumps(case["patch"]) for case in load(version, "damages.json")]
        assert len(patches) == len(set(patches)) > 20
