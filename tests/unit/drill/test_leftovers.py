"""What killed drills left is found and removed; what is alive or foreign is never touched."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

import pytest

from drvm.core.clock import SystemClock
from drvm.core.errors import HostError
from drvm.drill import place as places
from drvm.drill.leftovers import find_leftovers, remove_leftovers
from drvm.drill.place import Note, drill_name, drill_uuid, made, remember, remembered, tear_down
from drvm.host.places import StatePlaces
from drvm.host.tpm import write_state
from tests.fakes.drill_host import DrillHost

ID = "0123456789abcdef"
NAME = drill_name(ID)
HERE = Note(DrillHost().uri)


def abandon(directory: Path) -> Path:
    """As a drill leaves it that was killed: everything there, the lock given up."""
    place = directory / NAME
    with made(place, HERE, SystemClock()):
        (place / "vda.raw").write_bytes(b"disk")
        (place / ".vdb.raw.1234.drvm-partial").write_bytes(b"half a disk")
    return place


def test_a_dead_drill_is_found_with_all_its_parts_and_looking_changes_nothing(
    tmp_path: Path,
) -> None:
    host = DrillHost(networks={NAME, "default"}, machines={NAME: "<domain/>"})
    place = abandon(tmp_path)
    found = find_leftovers(host, tmp_path)
    assert [leftover.parts for leftover in found.dead] == [
        (f"machine {NAME}", f"network {NAME}", str(place))
    ]
    assert found.left_alone == ()
    assert host.calls == []
    assert len([*place.iterdir()]) == 4


def test_a_dead_drill_is_removed_and_removing_again_is_harmless(tmp_path: Path) -> None:
    host = DrillHost(networks={NAME, "default"}, machines={NAME: "<domain/>", "web1": "<domain/>"})
    abandon(tmp_path)
    states = tmp_path.with_name("states")
    states.mkdir()
    host.places = StatePlaces(nvram=states, tpm=states, machines=states)
    for name in (NAME, "web1"):
        write_state(states, drill_uuid(name), {"tpm2-00.permall": b"secrets"})
    found = find_leftovers(host, tmp_path)
    for _ in range(2):
        assert not any(removed.problems for removed in remove_leftovers(host, found))
    assert (host.networks, set(host.machines)) == ({"default"}, {"web1"})
    assert [path.name for path in states.iterdir()] == [drill_uuid("web1")]
    assert [*tmp_path.iterdir()] == []


def test_a_drill_that_runs_is_not_a_leftover(tmp_path: Path) -> None:
    host = DrillHost(networks={NAME})
    with made(tmp_path / NAME, HERE, SystemClock()):
        assert find_leftovers(host, tmp_path) == find_leftovers(DrillHost(), tmp_path / "nothing")
    assert len(find_leftovers(host, tmp_path).dead) == 1


def test_a_drill_that_runs_is_not_removed_even_if_it_was_found_dead_before(tmp_path: Path) -> None:
    host = DrillHost(networks={NAME})
    found = find_leftovers(host, abandon(tmp_path).parent)
    with made(tmp_path / NAME, HERE, SystemClock()):
        assert remove_leftovers(host, found) == ()
        assert (tmp_path / NAME / "vda.raw").exists()
    assert host.networks == {NAME}


@pytest.mark.parametrize("name", ["drvm-drill-short", "web1", f"{NAME}x", f"x{NAME}"])
def test_what_has_another_name_is_foreign(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "lock").touch()
    host = DrillHost(networks={name})
    found = find_leftovers(host, tmp_path)
    assert (found.dead, found.left_alone) == ((), ())


def test_a_directory_that_no_drill_made_is_named_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    (tmp_path / NAME / "precious").touch()
    found = find_leftovers(DrillHost(), tmp_path)
    assert found.dead == ()
    assert "no lock file" in found.left_alone[0]


def test_a_network_without_a_directory_is_named_and_left_alone(tmp_path: Path) -> None:
    found = find_leftovers(DrillHost(networks={NAME}), tmp_path)
    assert found.dead == ()
    assert NAME in found.left_alone[0]


def test_a_network_whose_drill_lies_in_another_directory_of_ours_is_known(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    abandon(tmp_path / "a")
    found = find_leftovers(DrillHost(networks={NAME}), tmp_path / "a", tmp_path / "b")
    assert (len(found.dead), found.left_alone) == (1, ())


def test_links_are_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    place = abandon(elsewhere)
    drills = tmp_path / "drills"
    drills.mkdir()
    (drills / drill_name("f" * 16)).symlink_to(place)
    assert find_leftovers(DrillHost(), drills).dead == ()
    (place / "link").symlink_to(tmp_path / "kept")
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    remove_leftovers(DrillHost(), find_leftovers(DrillHost(), elsewhere))
    assert (tmp_path / "kept" / "file").exists()
    assert not place.exists()


def test_an_empty_directory_is_what_a_kill_between_two_steps_leaves(tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    found = find_leftovers(DrillHost(), tmp_path)
    assert len(found.dead) == 1
    assert not remove_leftovers(DrillHost(), found)[0].problems
    assert [*tmp_path.iterdir()] == []


def test_what_can_not_be_removed_is_said_and_found_again(tmp_path: Path) -> None:
    host = DrillHost(networks={NAME}, fail={"destroy-network": HostError("busy")})
    abandon(tmp_path)
    removed = remove_leftovers(host, find_leftovers(host, tmp_path))
    assert "busy" in removed[0].problems[0]
    host.fail.clear()
    assert not remove_leftovers(host, find_leftovers(host, tmp_path))[0].problems
    assert (host.networks, [*tmp_path.iterdir()]) == (set(), [])


def test_as_long_as_anything_is_left_the_lock_file_says_whose_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = abandon(tmp_path)

    def killed(path: Path, **_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(Path, "unlink", killed)
        tear_down(DrillHost(), place)
    assert (place / "lock").exists()
    assert len(find_leftovers(DrillHost(), tmp_path).dead) == 1


def test_a_drill_that_begins_while_somebody_cleans_up_gets_its_directory(tmp_path: Path) -> None:
    stop = threading.Event()

    def sweep() -> None:
        while not stop.is_set():
            remove_leftovers(DrillHost(), find_leftovers(DrillHost(), tmp_path))

    sweeper = threading.Thread(target=sweep)
    sweeper.start()
    try:
        for number in range(100):
            place = tmp_path / drill_name(f"{number:016x}")
            with made(place, HERE, SystemClock()):
                (place / "vda.raw").touch(exist_ok=False)
                assert tear_down(DrillHost(), place) == []
    finally:
        stop.set()
        sweeper.join()
    assert [*tmp_path.iterdir()] == []


def test_where_drills_were_is_remembered_when_no_config_names_it_any_more(tmp_path: Path) -> None:
    notes, place = tmp_path / "state" / "drills", tmp_path / "images"
    assert remembered(notes) == set()
    for _ in range(2):
        remember(notes, place)
    assert remembered(notes) == set(), "it is not there"
    abandon(place)
    assert remembered(notes) == {place}
    assert len(find_leftovers(DrillHost(), *remembered(notes), notes).dead) == 1
    assert len([*notes.iterdir()]) == 1


def test_a_directory_that_can_not_be_noted_is_not_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(places, "write_durably", full)
    with pytest.raises(OSError, match="No space"), made(tmp_path / NAME, HERE, SystemClock()):
        pytest.fail("made")
    assert [*tmp_path.iterdir()] == []
