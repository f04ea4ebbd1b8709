"""Making and opening a repository, also where something went wrong before."""

import dataclasses
import datetime as dt

import pytest

from drvm.core.errors import (
    DamageFound,
    NoRepository,
    ObjectDamaged,
    RepositoryError,
    StoreUnreachable,
    UsageError,
    WrongKey,
)
from drvm.repository.keyring import from_paper
from drvm.repository.keys import UNNAMED
from drvm.repository.layout import CONFIG, KEYS
from drvm.repository.repository import Repository
from drvm.store.memory import MemoryStore
from tests.unit.repository.conftest import PASSPHRASE, Vault
from tests.unit.repository.test_round_trip import SMALL, noise


class DiesAtConfig(MemoryStore):
    """The process ends between the key slot and ``drvm.json``."""

    def put_if_absent(self, name: str, data: bytes) -> None:
        if name == CONFIG:
            raise StoreUnreachable("the cable was pulled")
        super().put_if_absent(name, data)


def died_in_init() -> MemoryStore:
    dying, store = DiesAtConfig(), MemoryStore()
    with pytest.raises(StoreUnreachable):
        Repository.create(dying, PASSPHRASE)
    store.objects.update(dying.objects)
    return store


def test_there_is_no_repository_where_nothing_is():
    with pytest.raises(NoRepository):
        Repository.open(MemoryStore(), PASSPHRASE)


def test_a_second_init_is_refused_and_leaves_the_first_as_it_is(vault):
    before = dict(vault.store.objects)
    with pytest.raises(RepositoryError, match="already"):
        Repository.create(vault.store, PASSPHRASE)
    assert vault.store.objects == before


def test_an_empty_passphrase_is_refused():
    with pytest.raises(UsageError):
        Repository.create(MemoryStore(), b"")


def test_an_init_that_died_is_finished_by_the_next_one_with_the_same_passphrase():
    store = died_in_init()
    first = Repository.create(store, PASSPHRASE)
    assert len([name for name in store.objects if name.startswith(KEYS)]) == 1
    assert Repository.open(store, PASSPHRASE).id == first.id


def test_init_beside_key_slots_of_another_passphrase_is_refused():
    """Those slots may be all that is left of somebody's data."""
    store = died_in_init()
    before = dict(store.objects)
    with pytest.raises(WrongKey):
        Repository.create(store, b"another passphrase")
    assert store.objects == before


def test_init_over_objects_of_a_repository_without_keys_is_refused(vault):
    vault.save([noise(SMALL)])
    for name in [CONFIG, *(name for name in vault.store.objects if name.startswith(KEYS))]:
        vault.store.delete(name)
    with pytest.raises(RepositoryError, match="lost"):
        Repository.create(vault.store, PASSPHRASE)


@pytest.mark.parametrize("damage", [None, b"", b"{", b"\x00" * 200])
def test_a_lost_config_is_read_from_the_key_slot_and_said_to_be_lost(vault, damage):
    content = noise(SMALL)
    point = vault.save([content])
    vault.store.delete(CONFIG)
    if damage is not None:
        vault.store.put(CONFIG, damage)
    again = Vault(vault.store, Repository.open(vault.store, PASSPHRASE))
    listing = again.repository.points()
    assert listing.points == (point,)
    assert [problem for problem in listing.problems if CONFIG in problem]
    assert again.load(point) == [content]


def test_a_config_larger_than_any_object_is_as_good_as_none(vault, monkeypatch):
    point = vault.save([noise(SMALL)])
    page = vault.repository.keyring.paper()
    get = vault.store.get

    def refused(name: str, **asked: int) -> bytes:
        if name == CONFIG:
            raise ObjectDamaged(f"{name}: more bytes at once than are taken")
        return get(name, **asked)

    monkeypatch.setattr(vault.store, "get", refused)
    again = Repository.open(vault.store, PASSPHRASE)
    assert again.points().points == (point,)
    assert [problem for problem in again.points().problems if CONFIG in problem]
    from_paper(vault.store, page, b"another", UNNAMED)
    assert Repository.open(vault.store, b"another").points().points == (point,)


def test_init_puts_a_lost_config_back(vault):
    point = vault.save([noise(SMALL)])
    vault.store.delete(CONFIG)
    Repository.create(vault.store, PASSPHRASE)
    assert vault.reopen().repository.points() == dataclasses.replace(
        vault.repository.points(), points=(point,), problems=()
    )


def test_a_config_of_another_repository_is_refused(vault):
    other = MemoryStore()
    Repository.create(other, PASSPHRASE)
    vault.store.put(CONFIG, other.get(CONFIG))
    with pytest.raises(DamageFound, match="changed"):
        vault.reopen()


def test_a_key_slot_of_absurd_size_is_not_fetched(vault):
    vault.store.put(f"{KEYS}00", bytes(1 << 20))
    fetched = []
    get = vault.store.get
    vault.store.get = lambda name, **k: fetched.append(name) or get(name, **k)
    vault.reopen()
    assert f"{KEYS}00" not in fetched


VM = "11111111-2222-4333-8444-555555555555"


def test_drill_records_come_back_and_damaged_ones_are_said_to_be_so(vault):
    drills = vault.repository.drills
    drills.put(VM, "a" * 16, b"passed")
    drills.put(VM, "b" * 16, b"failed")
    (name,) = (name for name in vault.store.objects if name.endswith("b" * 16))
    vault.store.put(name, b"drvmseal\xff\xff" + bytes(100))
    good, damaged = drills.listed()
    assert drills.read(good) == b"passed"
    with pytest.raises(RepositoryError):
        drills.read(damaged)


def test_when_a_machine_was_drilled_last_is_known_without_reading_and_not_from_the_future(vault):
    drills = vault.repository.drills
    drills.put(VM, "a" * 16, b"passed")
    (info,) = drills.listed()
    vault.store.get = lambda name, **k: pytest.fail(f"{name} was read")
    assert drills.times(info.modified) == {VM: info.modified}
    assert drills.times(info.modified - dt.timedelta(seconds=1)) == {}
