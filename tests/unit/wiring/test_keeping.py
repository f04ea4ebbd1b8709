"""A point that work needs is kept meanwhile, and what a crash leaves of that is known and goes."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from drvm.core.clock import SystemClock
from drvm.core.errors import RestoreError, StoreRefused, StoreUnreachable, UnknownPoint
from drvm.repository.pins import Pin
from drvm.repository.points import Point
from drvm.repository.repository import Repository
from drvm.snapshot.rollbacks import VERSION, Rollback, Rollbacks
from drvm.wiring import keeping
from drvm.wiring.keeping import kept, left_pins, let_go
from tests.unit.repository.conftest import Vault, cheap_key_derivation, new_vault, vault
from tests.unit.repository.test_round_trip import SMALL, noise

__all__ = ["cheap_key_derivation", "vault"]

WORK = "drvm restore --in-place of web1"


class World:
    def __init__(self, directory: Path, vault: Vault) -> None:
        self.vault, self.directory = vault, directory
        self.point: Point = vault.save([noise(SMALL, 1)])
        self.wiring: Any = SimpleNamespace(
            repository=lambda: self.vault.repository,
            settings=SimpleNamespace(state_dir=directory),
            clock=SystemClock(),
            writer="here",
        )

    def kept(self) -> Any:
        return kept(self.wiring, self.point.manifest, WORK)

    def pins(self) -> int:
        return len(self.vault.repository.pins().get(self.point.id, ()))

    def notes(self) -> int:
        return len(list((self.directory / "pins").glob("*")))

    def half(self, point_id: str) -> Rollback:
        uuid = self.point.manifest.vm_uuid
        return Rollback(VERSION, uuid, "web1", "qemu:///system", point_id, {}, None, "")


@pytest.fixture
def world(tmp_path: Path, vault: Vault) -> World:
    return World(tmp_path, vault)


def refusing(error: Exception) -> Any:
    def refuse(*_: Any, **__: Any) -> None:
        raise error

    return refuse


def die(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a SIGKILL leaves in the middle of the work."""
    with monkeypatch.context() as patch:
        patch.setattr(Repository, "unpin", refusing(StoreUnreachable("gone")))
        with world.kept():
            pass


def test_a_point_is_pinned_while_it_is_needed_and_a_pin_of_others_stays(world: World) -> None:
    world.vault.repository.pin(world.point, Pin("mine", "", "here"))
    with world.kept() as told:
        assert (world.pins(), world.notes(), told) == (2, 1, ())
        assert left_pins(world.wiring) == [] == let_go(world.wiring), "somebody works"
    assert (world.pins(), world.notes()) == (1, 0)


def test_what_dead_work_left_is_told_and_taken_off(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    die(world, monkeypatch)
    assert (world.pins(), world.notes()) == (1, 1)
    (told,) = left_pins(world.wiring)
    assert not told.ok and WORK in told.detail and "--fix" in told.hint
    (done,) = let_go(world.wiring)
    assert done.ok and (world.pins(), world.notes()) == (0, 0)
    die(world, monkeypatch)
    with world.kept():
        assert (world.pins(), world.notes()) == (1, 1), "the next work takes it off, too"
    assert (world.pins(), world.notes()) == (0, 0)


def test_while_the_machine_is_half_turned_back_its_point_stays_though_nobody_works(
    world: World,
) -> None:
    notes = Rollbacks(world.directory)
    with pytest.raises(RestoreError), world.kept():
        notes.write(world.half(world.point.id))
        raise RestoreError("no more room")
    assert let_go(world.wiring) == [] == left_pins(world.wiring)
    assert (world.pins(), world.notes()) == (1, 1)
    with world.kept():  # the same again finishes it
        assert (world.pins(), world.notes()) == (2, 2)
        notes.remove(world.point.manifest.vm_uuid)
    assert (world.pins(), world.notes()) == (0, 0)


def test_where_another_point_is_brought_back_instead_the_first_ones_pin_goes(world: World) -> None:
    notes = Rollbacks(world.directory)
    with pytest.raises(RestoreError), world.kept():
        notes.write(world.half(world.point.id))
        raise RestoreError("no more room")
    notes.write(world.half("f" * 16))
    assert len(let_go(world.wiring)) == 1
    assert (world.pins(), world.notes()) == (0, 0)


def test_a_repository_that_can_only_be_read_is_enough_and_is_told(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Repository, "pin", refusing(StoreRefused("you may only read")))
    with world.kept() as told:
        assert "could not be pinned: you may only read" in told[0]
    assert world.notes() == 0


def test_a_pin_in_another_repository_is_left_to_that(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    die(world, monkeypatch)
    first, world.vault = world.vault, new_vault()
    (told,) = let_go(world.wiring)
    assert not told.ok and "its repository is another one" in told.detail
    world.vault = first
    assert let_go(world.wiring)[0].ok and world.pins() == 0


def test_nothing_begins_without_a_note_or_without_the_point(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pins").write_text("a file where the directory is to be")
    with pytest.raises(RestoreError, match="can't be written"), world.kept():
        pytest.fail("it began")
    (tmp_path / "pins").unlink()
    world.vault.repository.end_point(world.point)
    with pytest.raises(UnknownPoint), world.kept():
        pytest.fail("it began")
    assert world.notes() == 0


def test_who_looks_just_when_a_note_is_made_is_in_nobodys_way(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    nonces = iter(["a" * 16, "b" * 16, "c" * 16])
    monkeypatch.setattr(keeping, "new_nonce", lambda: next(nonces))
    real, held = keeping.try_lock, []

    def looked_at(path: Path) -> int | None:
        if path.stem == "a" * 16:  # somebody has locked it, to see whether it is dead
            held.append(real(path))
        descriptor = real(path)
        if path.stem == "b" * 16:  # somebody has taken it for one that a crash left
            path.unlink()
        return descriptor

    with monkeypatch.context() as patch:
        patch.setattr(keeping, "try_lock", looked_at)
        with world.kept():
            monkeypatch.setattr(keeping, "try_lock", real)
            names = {path.name for path in (world.directory / "pins").iterdir()}
            assert names == {f"{'a' * 16}.json", f"{'c' * 16}.json"} and world.pins() == 1
            os.close(held[0])
    assert left_pins(world.wiring) == [] and world.notes() == 0, "an empty one went without a word"


@pytest.mark.parametrize("content", [b"[]", b"{", b"{}"])
def test_what_is_no_note_is_left_alone(world: World, content: bytes) -> None:
    (world.directory / "pins").mkdir()
    (world.directory / "pins" / f"{'0' * 16}.json").write_bytes(content)
    assert let_go(world.wiring) == [] == left_pins(world.wiring)
    assert world.notes() == 1
