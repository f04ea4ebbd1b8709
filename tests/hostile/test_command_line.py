"""The real command over everything harmless that a liar can write, all in one repository."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from drvm.repository.repository import Repository
from drvm.store.directory import DirectoryStore
from drvm.store.memory import MemoryStore
from tests.appliance import Appliance, Result, make_appliance
from tests.hostile import definitions, manifests, objects
from tests.hostile.forge import Forge
from tests.hostile.trial import assert_plain

CASES = {
    name: case
    for module in (manifests, objects, definitions)
    for name, case in module.CASES.items()
    if case.expect == "harmless" and not case.long and "thousands" not in name
}


@pytest.fixture(scope="module")
def appliance(tmp_path_factory: pytest.TempPathFactory) -> Appliance:
    made = make_appliance(tmp_path_factory.mktemp("lies") / "own", "file:///nowhere", None)
    made = make_appliance(made.directory, f"file://{made.directory}/store", None)
    passphrase = (made.directory / "passphrase").read_bytes().strip()
    memory = MemoryStore()
    honest = Repository.create(memory, passphrase)
    forge = Forge(memory, honest.keyring._opened.keys, honest.id)
    for case in CASES.values():
        case.plant(forge)
    store = DirectoryStore.create(made.directory / "store")
    for name, (data, _) in forge.store.objects.items():
        store.put(name, data)
    return made


def assert_understood(done: Result) -> None:
    """It did what it was told, perhaps with warnings or damage told."""
    assert done.code in (0, 3, 4), done.err[-2000:]
    assert_plain(done.out)
    assert_plain(done.err)


@pytest.mark.long
@pytest.mark.parametrize(
    "arguments",
    [
        ("points",),
        ("points", "--json"),
        ("check", "--read-data", "--dry-run"),
        ("gc", "--dry-run"),
        ("prune", "--dry-run"),
        ("key", "list"),
        ("index", "rebuild", "--dry-run"),
    ],
    ids=" ".join,
)
def test_what_is_printed_is_plain_and_every_command_does_its_work(
    appliance: Appliance, arguments: tuple[str, ...]
) -> None:
    done = appliance.drvm(*arguments, expect=None)
    assert_understood(done)


@pytest.mark.long
def test_every_point_can_be_shown_and_restored(appliance: Appliance, tmp_path: Path) -> None:
    with appliance.wiring() as wiring:
        ids = [point.id for point in wiring.repository().points().points]
    assert len(ids) > 50
    for point_id in ids[:: len(ids) // 12]:
        for arguments in (
            ("show", point_id),
            ("restore", point_id, "--output", str(tmp_path / "o")),
        ):
            done = appliance.drvm(*arguments, expect=None)
            assert_understood(done)
        shutil.rmtree(tmp_path / "o", ignore_errors=True)
    assert list(tmp_path.iterdir()) == []
