"""Whoever may write to the bucket can put objects there that are larger than any of drvm: a store
refuses to read them, and they stand in nobody's way."""

import pytest

from drvm.core.errors import ObjectDamaged, UsageError
from drvm.repository.keyring import from_paper
from drvm.repository.keys import UNNAMED
from drvm.repository.layout import CHECKS, DRILLS, FINALS, INDEX, KEYS, PINS
from drvm.repository.pins import UNREADABLE
from tests.unit.repository.conftest import Vault, new_vault
from tests.unit.repository.faults import FaultyStore
from tests.unit.repository.test_round_trip import SMALL, noise

HALF = "0" * 16


@pytest.fixture
def planted() -> Vault:
    vault = new_vault(FaultyStore())
    vault.save([noise(SMALL)])
    names = {
        f"{PINS}{HALF}.{HALF}",
        f"{DRILLS}11111111-2222-4333-8444-555555555555/{HALF}",
        f"{CHECKS}{HALF}",
        f"{INDEX}{HALF * 4}",
        f"{FINALS}{HALF}.{HALF}",
    }
    for name in names:
        vault.store.put(name, b"x")

    def refuses(verb: str, name: str) -> None:
        if verb == "get" and name in names:
            raise ObjectDamaged(f"{name}: 100000000 bytes at once")

    vault.store.before = refuses
    return vault


def test_such_pins_drills_and_checks_are_unreadable(planted):
    repository = planted.repository
    assert repository.pins() == {HALF: (UNREADABLE,)}
    (drill,) = repository.drills.listed()
    with pytest.raises(ObjectDamaged):
        repository.drills.read(drill)
    assert repository.checks.history().unreadable == (f"{CHECKS}{HALF}",)


def test_such_index_objects_tell_nothing(planted):
    vault = planted.reopen()
    vault.repository.refresh()
    assert vault.repository.catalog.told_by(bytes.fromhex(HALF * 4)) is None


def test_such_finals_prove_nothing(planted):
    held = planted.repository.keyring.paper()
    mine = f"{FINALS}{HALF}.{HALF}"
    for info in [*planted.store.list(KEYS), *planted.store.list(FINALS)]:
        if info.name != mine:
            planted.store.delete(info.name)
    with pytest.raises(UsageError, match="open nothing"):
        from_paper(planted.store, held, b"a passphrase of some length", UNNAMED)


def test_such_slots_are_told(planted):
    name = f"{KEYS}{HALF}"
    planted.store.put(name, b"x")
    before = planted.store.before

    def refuses(verb: str, name_: str) -> None:
        before(verb, name_)
        if (verb, name_) == ("get", name):
            raise ObjectDamaged(f"{name}: 100000000 bytes at once")

    planted.store.before = refuses
    assert planted.repository.checks.unreadable_slots() == [name]
