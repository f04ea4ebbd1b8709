"""Key slots in a store: one that opens is always left."""

import contextlib
import itertools
import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from drvm.core.errors import (
    DamageFound,
    DrvmError,
    NoRepository,
    RepositoryError,
    StoreRefused,
    UsageError,
    WrongKey,
)
from drvm.repository import paper
from drvm.repository.crypto import MasterKeys
from drvm.repository.keyring import MAX_SLOTS, Keyring, from_paper, new_slot, read_slots
from drvm.repository.keys import MAX_LABEL_CHARS, UNNAMED, About
from drvm.repository.layout import RepositoryConfig
from drvm.repository.paper import Paper
from drvm.repository.repository import Repository
from drvm.store.memory import MemoryStore

FIRST, SECOND, THIRD = b"first passphrase", b"second passphrase", b"third passphrase"
ABOUT = About("second", "2026-01-31T23:59:59.000000Z", "host1")


@pytest.fixture
def store() -> MemoryStore:
    store = MemoryStore()
    Repository.create(store, FIRST)
    return store


def ring(store: MemoryStore, passphrase: bytes = FIRST) -> Keyring:
    return Repository.open(store, passphrase).keyring


def opens(store: MemoryStore, passphrase: bytes) -> bool:
    try:
        Repository.open(store, passphrase)
    except (WrongKey, DamageFound):
        return False
    return True


def names(store: MemoryStore) -> list[str]:
    return [info.name for info in store.list("keys/")]


# -- add, change, list ------------------------------------------------------------------------
def test_an_added_passphrase_opens_the_same_repository(store: MemoryStore) -> None:
    ring(store).add(SECOND, ABOUT)
    assert Repository.open(store, FIRST).id == Repository.open(store, SECOND).id
    assert ring(store).paper() == ring(store, SECOND).paper()


def test_the_list_says_what_each_slot_is(store: MemoryStore) -> None:
    added = ring(store).add(SECOND, ABOUT)
    rows = {row.id: row for row in ring(store, SECOND).slots()}
    assert len(rows) == 2
    assert rows[added].in_use and rows[added].about.host == "host1"
    assert {row.state for row in rows.values()} == {"good"}


def test_a_slot_that_somebody_put_there_is_told_as_foreign_and_can_be_removed(
    store: MemoryStore,
) -> None:
    config = RepositoryConfig(0, Repository.open(store, FIRST).id, ())
    planted = new_slot(store, MasterKeys.generate(), config, SECOND, ABOUT).slot.split("/")[1]
    store.put("keys/0000000000000000", b"noise")
    keyring = ring(store)
    states = {row.id: (row.state, row.about.label) for row in keyring.slots()}
    assert states[planted] == ("foreign", "")
    assert states["0" * 16] == ("damaged", "")
    keyring.remove(planted)
    keyring.remove("0" * 16)
    assert len(names(store)) == 1 and opens(store, FIRST)


def test_a_slot_is_found_by_its_id_or_its_label(store: MemoryStore) -> None:
    added = ring(store).add(SECOND, ABOUT)
    assert ring(store).find(added[:4]).id == ring(store).find("second").id == added
    ring(store).add(THIRD, ABOUT)
    with pytest.raises(UsageError, match="several"):
        ring(store).find("second")
    for text in ("", "zzzz", added[:3]):
        with pytest.raises(UsageError, match="no key slot"):
            ring(store).find(text)


def test_a_change_leaves_the_new_passphrase_only(store: MemoryStore) -> None:
    ring(store).change(SECOND, ABOUT)
    assert opens(store, SECOND) and not opens(store, FIRST)
    assert len(names(store)) == 1


def test_a_label_that_is_too_long_is_refused_before_anything_is_written(store: MemoryStore) -> None:
    with pytest.raises(UsageError):
        ring(store).add(SECOND, About("x" * (MAX_LABEL_CHARS + 1)))
    assert len(names(store)) == 1


class Forgetful(MemoryStore):
    """Keeps other bytes than it was given, under ``keys/``, once ``lies`` is set."""

    lies = ""

    def put_if_absent(self, name: str, data: bytes) -> None:
        if self.lies == "garbled" and name.startswith("keys/"):
            data = data.replace(b'"wrapped": "', b'"wrapped": "00', 1)
        super().put_if_absent(name, data)

    def get(self, name: str, *, offset: int = 0, length: int | None = None) -> bytes:
        data = super().get(name, offset=offset, length=length)
        if self.lies == "swapped" and name.startswith("keys/"):
            config = RepositoryConfig(0, "ff" * 16, ())
            return new_slot(MemoryStore(), MasterKeys.generate(), config, SECOND, UNNAMED).data
        return data

    def delete(self, name: str) -> None:
        if self.lies == "kept" and name.startswith("keys/"):
            raise StoreRefused("no")
        super().delete(name)


@pytest.mark.parametrize("lie", ["garbled", "swapped"])
def test_a_new_slot_that_does_not_open_as_stored_takes_nothing_away(lie: str) -> None:
    store = Forgetful()
    Repository.create(store, FIRST)
    keyring = ring(store)
    store.lies = lie
    with pytest.raises(DamageFound, match="can't be relied on"):
        keyring.change(SECOND, ABOUT)
    store.lies = ""
    assert opens(store, FIRST) and not opens(store, SECOND)
    assert len(names(store)) == 1


def test_other_keys_under_the_new_passphrase_are_found(store: MemoryStore) -> None:
    keyring = ring(store)
    config = RepositoryConfig(0, Repository.open(store, FIRST).id, ())
    other = new_slot(MemoryStore(), MasterKeys.generate(), config, SECOND, UNNAMED).data
    get = store.get
    store.get = lambda name, **kw: other if name.startswith("keys/") else get(name, **kw)  # type: ignore[method-assign, assignment]
    with pytest.raises(DamageFound, match="other keys"):
        keyring.add(SECOND, ABOUT)


# -- remove -----------------------------------------------------------------------------------
def test_a_removed_passphrase_opens_nothing(store: MemoryStore) -> None:
    added = ring(store).add(SECOND, ABOUT)
    ring(store).remove(added)
    assert opens(store, FIRST) and not opens(store, SECOND)
    assert len(names(store)) == 1


def test_the_slot_in_use_can_not_be_removed(store: MemoryStore) -> None:
    keyring = ring(store)
    with pytest.raises(UsageError, match="is the one that was opened"):
        keyring.remove(keyring.slot_in_use)
    assert opens(store, FIRST)


def test_nothing_is_removed_where_the_slot_that_stays_is_gone_or_another(
    store: MemoryStore,
) -> None:
    added = ring(store).add(SECOND, ABOUT)
    keyring = ring(store)
    own = f"keys/{keyring.slot_in_use}"
    kept = store.get(own)
    store.put(own, kept + b"\n")
    with pytest.raises(DamageFound, match="not what it was"):
        keyring.remove(added)
    store.delete(own)
    with pytest.raises(RepositoryError, match="somebody removes"):
        keyring.remove(added)
    assert names(store) == [f"keys/{added}"]


def test_a_store_that_lets_nobody_delete_is_told_and_the_slot_still_opens() -> None:
    store = Forgetful()
    Repository.create(store, FIRST)
    added = ring(store).add(SECOND, ABOUT)
    store.lies = "kept"
    with pytest.raises(StoreRefused):
        ring(store).remove(added)
    store.lies = ""
    assert opens(store, SECOND)
    ring(store).remove(added)
    assert names(store) == [f"keys/{ring(store).slot_in_use}"]
    assert list(store.list("leaving/")) == []


@dataclass
class Turns:
    """Lets threads take their steps in a given order, one at a time."""

    order: list[int]
    ready: threading.Condition = field(default_factory=threading.Condition)
    done: set[int] = field(default_factory=set)

    def take(self, who: int) -> None:
        with self.ready:
            assert self.ready.wait_for(lambda: self._next() in (None, who), timeout=30)

    def taken(self) -> None:
        with self.ready:
            if self.order:
                self.order.pop(0)
            self.ready.notify_all()

    def ended(self, who: int) -> None:
        with self.ready:
            self.done.add(who)
            self.ready.notify_all()

    def _next(self) -> int | None:
        while self.order and self.order[0] in self.done:
            self.order.pop(0)
        return self.order[0] if self.order else None


class InTurn:
    """A store whose every request waits for its turn."""

    def __init__(self, store: MemoryStore, turns: Turns, who: int) -> None:
        self._store, self._turns, self._who = store, turns, who

    def __getattr__(self, name: str):  # type: ignore[no-untyped-def]
        method = getattr(self._store, name)

        def call(*args: object, **kw: object) -> object:
            self._turns.take(self._who)
            try:
                found = method(*args, **kw)
                return iter(list(found)) if name == "list" else found
            finally:
                self._turns.taken()

        return call


def removed_at_once(store: MemoryStore, order: tuple[int, ...], going: dict[int, int]) -> None:
    """Host n, who opened by passphrase n, removes the slot of passphrase ``going[n]``."""
    passphrases = (FIRST, SECOND, THIRD)
    turns = Turns(list(order))
    keyrings = {who: ring(store, passphrases[who]) for who in going}
    ids = {who: ring(store, passphrases[who]).slot_in_use for who in range(len(passphrases))
           if opens(store, passphrases[who])}  # fmt: skip

    def act(who: int) -> None:
        keyring = keyrings[who]
        keyring._store = InTurn(store, turns, who)  # type: ignore[assignment]
        try:
            with contextlib.suppress(DrvmError):
                keyring.remove(ids[going[who]])
        finally:
            turns.ended(who)

    threads = [threading.Thread(target=act, args=(who,)) for who in going]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)


def orders(steps: int) -> Iterator[tuple[int, ...]]:
    """Every way in which two can take ``steps`` steps each."""
    for places in itertools.combinations(range(2 * steps), steps):
        yield tuple(0 if at in places else 1 for at in range(2 * steps))


def test_two_who_remove_each_others_slot_never_leave_none() -> None:
    """Notice, listing, reading again, delete: every interleaving of these."""
    left = set()
    for order in orders(4):
        store = MemoryStore()
        Repository.create(store, FIRST)
        ring(store).add(SECOND, ABOUT)
        removed_at_once(store, order, {0: 1, 1: 0})
        open_ = tuple(passphrase for passphrase in (FIRST, SECOND) if opens(store, passphrase))
        assert open_, f"nobody is left after {order}"
        left.add(open_)
    assert (FIRST,) in left and (SECOND,) in left


def test_three_who_remove_each_others_slot_never_leave_none() -> None:
    dice = random.Random(5)
    for _ in range(60):
        store = MemoryStore()
        Repository.create(store, FIRST)
        ring(store).add(SECOND, ABOUT)
        ring(store).add(THIRD, ABOUT)
        order = [0, 1, 2] * 4
        dice.shuffle(order)
        removed_at_once(store, tuple(order), {0: 1, 1: 2, 2: 0})
        assert any(opens(store, passphrase) for passphrase in (FIRST, SECOND, THIRD)), order


@pytest.mark.parametrize("died", ["slot-notice-created", "slots-listed", "slot-deleted"])
def test_a_removal_that_died_anywhere_is_gone_on_with(store: MemoryStore, died: str) -> None:
    added = ring(store).add(SECOND, ABOUT)

    def die(step: str) -> None:
        if step == died:
            raise SystemExit

    with pytest.raises(SystemExit):
        ring(store).remove(added, die)
    assert opens(store, FIRST)
    states = {row.id: row.state for row in ring(store).slots()}
    assert states.get(added, "gone") == ("gone" if died == "slot-deleted" else "leaving")
    ring(store).remove(added)
    assert opens(store, FIRST) and not opens(store, SECOND)
    assert names(store) == [f"keys/{ring(store).slot_in_use}"]
    assert list(store.list("leaving/")) == []


@pytest.mark.parametrize("died", ["slot-created", "slot-proven", "slot-notice-created"])
def test_a_change_that_died_in_between_leaves_both(store: MemoryStore, died: str) -> None:
    def die(step: str) -> None:
        if step == died:
            raise SystemExit

    with pytest.raises(SystemExit):
        ring(store).change(SECOND, ABOUT, die)
    assert opens(store, FIRST) and opens(store, SECOND)


# -- many slots -------------------------------------------------------------------------------
def test_a_flood_of_slots_is_not_read_and_the_oldest_are(store: MemoryStore) -> None:
    for number in range(MAX_SLOTS + 10):
        store.put(f"keys/{number:016x}", b"x" * 20_000)
    found = read_slots(store)
    assert len(found) == MAX_SLOTS
    assert opens(store, FIRST)
    assert all(len(data) == 0 for _, data in found[1:])


def test_no_slot_goes_for_one_that_readers_would_not_look_at(store: MemoryStore) -> None:
    page = ring(store).paper()
    for number in range(MAX_SLOTS):
        store.put(f"keys/{number:016x}", b"x")
    keyring, before = ring(store), names(store)
    for make in (
        lambda: keyring.change(SECOND, ABOUT),
        lambda: keyring.add(SECOND, ABOUT),
        lambda: from_paper(store, page, SECOND, ABOUT),
    ):
        with pytest.raises(RepositoryError, match="256 older") as caught:
            make()
        assert "drvm key remove" in caught.value.hint
        assert names(store) == before
    assert opens(store, FIRST)


# -- paper ------------------------------------------------------------------------------------
def test_a_page_makes_a_new_slot_without_any_passphrase(store: MemoryStore) -> None:
    page = paper.page(ring(store).paper(), "there", "now")
    for name in names(store):
        store.delete(name)
    assert not opens(store, FIRST)
    made = from_paper(store, paper.read(page.splitlines()), SECOND, ABOUT)
    assert ring(store, SECOND).slot_in_use == made


def test_a_page_also_puts_back_a_lost_config(store: MemoryStore) -> None:
    held = ring(store).paper()
    config = store.get("drvm.json")
    store.delete("drvm.json")
    from_paper(store, held, SECOND, ABOUT)
    assert store.get("drvm.json") == config


@pytest.mark.parametrize("noise", [b"", b"{}", b'{"format_version": 0}'])
def test_a_page_opens_a_repository_whose_config_and_slots_are_noise(
    store: MemoryStore, noise: bytes
) -> None:
    keyring = ring(store)
    held = keyring.paper()
    keyring.add(SECOND, ABOUT)
    store.put("drvm.json", noise)
    store.put(f"keys/{keyring.slot_in_use}", noise)
    from_paper(store, held, THIRD, ABOUT)
    assert opens(store, THIRD) and store.get("drvm.json") == noise


def test_finals_that_somebody_added_do_not_keep_a_page_from_its_proof(vault) -> None:  # type: ignore[no-untyped-def]
    vault.save([b"x" * 4096])
    held = vault.repository.keyring.paper()
    for name in names(vault.store):
        vault.store.delete(name)
    for number in range(30):
        vault.store.put(f"final/{number:016x}.{number:016x}", b"noise")
    from_paper(vault.store, held, SECOND, ABOUT)
    assert opens(vault.store, SECOND)


def test_a_page_of_another_repository_is_refused(store: MemoryStore) -> None:
    other = MemoryStore()
    held = Repository.create(other, FIRST).keyring.paper()
    with pytest.raises(UsageError, match="is of repository"):
        from_paper(store, held, SECOND, ABOUT)
    with pytest.raises(UsageError, match="open nothing"):
        from_paper(store, Paper(Repository.open(store, FIRST).id, held.keys), SECOND, ABOUT)
    assert len(names(store)) == 1


def test_without_slots_the_finals_prove_the_keys(vault) -> None:  # type: ignore[no-untyped-def]
    vault.save([b"x" * 4096])
    held = vault.repository.keyring.paper()
    for name in names(vault.store):
        vault.store.delete(name)
    wrong = Paper(held.repository_id, MasterKeys.generate())
    with pytest.raises(UsageError, match="open nothing"):
        from_paper(vault.store, wrong, SECOND, ABOUT)
    from_paper(vault.store, held, SECOND, ABOUT)
    assert opens(vault.store, SECOND)


def test_an_empty_place_is_no_repository() -> None:
    held = Paper("00" * 16, MasterKeys.generate())
    store = MemoryStore()
    with pytest.raises(NoRepository):
        from_paper(store, held, SECOND, ABOUT)
    assert list(store.list("")) == []
    store.put("drvm.json", RepositoryConfig(0, "00" * 16, ()).encode())
    from_paper(store, held, SECOND, ABOUT)
    assert opens(store, SECOND)
