"""Pins: created once, counted by their names, and never in a point's way."""

import pytest

from drvm.core.errors import DamageFound, UnknownPoint, UsageError
from drvm.repository.layout import PINS
from drvm.repository.pins import MAX_NOTE_CHARS, UNREADABLE, Pin
from tests.unit.repository.conftest import Vault, new_vault
from tests.unit.repository.faults import FaultyStore
from tests.unit.repository.test_round_trip import SMALL, noise

PIN = Pin("before the upgrade", "2026-11-23T04:00:00.000000Z", "kvm1")


@pytest.fixture
def faulty() -> Vault:
    vault = new_vault(FaultyStore())
    vault.save([noise(SMALL)])
    return vault


def test_a_pin_is_listed_with_its_note_until_it_is_taken_off(faulty):
    (point,) = faulty.repository.points().points
    assert not faulty.repository.is_pinned(point.id)
    told = []
    faulty.repository.pin(point, PIN, told.append)
    assert faulty.repository.pins() == {point.id: (PIN,)}
    assert faulty.repository.is_pinned(point.id)
    assert faulty.repository.unpin(point.id, told.append) == 1
    assert faulty.repository.pins() == {}
    assert told == ["pin-created", "pin-deleted"]


def test_two_pins_of_a_point_have_names_of_their_own(faulty):
    (point,) = faulty.repository.points().points
    faulty.repository.pin(point, PIN)
    faulty.repository.pin(point, PIN)
    assert faulty.repository.pins() == {point.id: (PIN, PIN)}
    assert faulty.repository.unpin(point.id) == 2


@pytest.mark.parametrize("damage", [b"", b"drvmseal", "another"])
def test_a_pin_that_cannot_be_read_pins_all_the_same(faulty, damage):
    (point,) = faulty.repository.points().points
    faulty.repository.pin(point, PIN)
    (name,) = (name for name in faulty.store.objects if name.startswith(PINS))
    if damage == "another":  # a sealed object under a name that is not its own
        damage = faulty.store.get(name)
        name = f"{PINS}{point.id}.{'0' * 16}"
    faulty.store.put(name, damage)
    assert UNREADABLE in faulty.repository.pins()[point.id]


def test_what_is_not_the_name_of_a_pin_pins_nothing(faulty):
    faulty.store.put(f"{PINS}readme", b"x")
    assert faulty.repository.pins() == {}


def test_a_point_that_goes_while_it_is_pinned_is_told_and_leaves_no_pin(faulty):
    (point,) = faulty.repository.points().points

    def removed(verb: str, name: str) -> None:
        if verb == "create" and name.startswith(PINS):
            faulty.store.before = lambda verb, name: None
            faulty.repository.end_point(point)

    faulty.store.before = removed
    with pytest.raises(UnknownPoint, match="removed meanwhile"):
        faulty.repository.pin(point, PIN)
    assert faulty.repository.pins() == {}


def test_a_note_that_no_reader_would_take_is_refused(faulty):
    (point,) = faulty.repository.points().points
    with pytest.raises(UsageError):
        faulty.repository.pin(point, Pin("x" * (MAX_NOTE_CHARS + 1), PIN.created, PIN.host))
    assert faulty.repository.pins() == {}


def test_pins_are_bound_to_their_names_and_purpose(faulty):
    (point,) = faulty.repository.points().points
    faulty.repository.pin(point, PIN)
    (name,) = (name for name in faulty.store.objects if name.startswith(PINS))
    with pytest.raises(DamageFound):
        faulty.repository._sealer.open_object(b"drill", name, faulty.store.get(name))


def test_the_end_of_a_point_takes_all_its_generations_and_no_final(faulty):
    (point,) = faulty.repository.points().points
    other = faulty.save([noise(SMALL, 1)])
    faulty.repository.commit(point.manifest)  # a second generation
    finals = {name for name in faulty.store.objects if name.startswith("final/")}
    told = []
    faulty.repository.end_point(point, told.append)
    assert told == ["manifests-listed", "manifest-deleted", "manifest-deleted"]
    assert faulty.repository.points().points == (other,)
    assert finals == {name for name in faulty.store.objects if name.startswith("final/")}
