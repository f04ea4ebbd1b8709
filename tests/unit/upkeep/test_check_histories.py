"""Backups, damage, checks, repairs and removals in any order: a check says what is hit, backups
after it heal, and what is repaired is whole."""

from hypothesis import given, settings
from hypothesis import strategies as st

from drvm.chunker.blocks import BLOCK_BYTES
from drvm.core.errors import PacksCondemned
from drvm.repository.layout import PACKS
from drvm.repository.points import Point
from drvm.repository.repository import Repository
from drvm.upkeep.repair import run_repair
from tests.checking import brute_force, check, told
from tests.unit.repository.conftest import PASSPHRASE, Vault, new_vault
from tests.unit.repository.test_round_trip import noise
from tests.unit.upkeep.test_check import changed
from tests.unit.upkeep.test_repair import tools

BLOCKS = 70
STEPS = st.one_of(
    st.tuples(st.just("backup"), st.integers(0, BLOCKS - 1), st.integers(0, 3)),
    st.tuples(st.just("child"), st.integers(0, BLOCKS - 1), st.integers(0, 3)),
    st.tuples(st.just("flip"), st.integers(0, 40), st.integers(0, 1 << 20)),
    st.tuples(st.just("lose"), st.integers(0, 40), st.just(0)),
    st.tuples(st.just("check"), st.just(0), st.just(0)),
    st.tuples(st.just("repair"), st.just(0), st.just(0)),
    st.tuples(st.just("remove"), st.integers(0, 40), st.just(0)),
)


class Life:
    """A repository, what its points must hold, and a second one with copies as of some time."""

    def __init__(self) -> None:
        self.vault = new_vault()
        self.saved: dict[str, tuple[Point, list[bytes]]] = {}
        self.disk = noise(BLOCKS * BLOCK_BYTES, 1)
        self.spoilt = True
        """Whether something was damaged since the last check."""
        self.healed: set[str] = set()
        """Points that were taken when all damage was known."""

    def step(self, what: str, at: int, more: int) -> None:
        if what in ("backup", "child"):
            self.disk = changed(self.disk, at, more)
            self.backup(child=what == "child")
        elif what in ("flip", "lose"):
            self.damage(at, more, lose=what == "lose")
        elif what == "remove" and self.saved:
            names = sorted(self.saved)
            point, _ = self.saved.pop(names[at % len(names)])
            self.vault.repository.end_point(point)
            self.healed.discard(point.id)
        elif what in ("check", "repair"):
            self.check(repair=what == "repair")

    def backup(self, *, child: bool) -> None:
        vault = self.vault.reopen()
        points = vault.repository.points().points
        parent = points[-1] if child and points else None
        banned: frozenset[bytes] = frozenset()
        for _ in range(3):
            try:
                point = vault.save([self.disk], parent, banned=banned)
                break
            except PacksCondemned as error:  # as Backup does
                banned |= error.packs
        self.saved[point.id] = (point, [self.disk])
        if not self.spoilt:
            self.healed.add(point.id)

    def damage(self, at: int, more: int, *, lose: bool) -> None:
        packs = [name for name in self.vault.store.objects if name.startswith(PACKS)]
        if not packs:
            return
        name = packs[at % len(packs)]
        whole = self.vault.store.get(name)
        self.vault.store.delete(name)
        if not lose:
            place = more % len(whole)
            self.vault.store.put(
                name, whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
            )
        self.spoilt = True
        self.healed.clear()

    def check(self, *, repair: bool) -> None:
        repository = self.vault.reopen().repository
        found = check(repository)
        expected = brute_force(self.vault.reopen().repository, self.saved)
        assert told(found) == expected
        self.spoilt = False
        if repair:
            bad = frozenset(pack.name for pack in found.bad_packs)
            repairs = run_repair(repository, found.hits, bad, None, tools())
            whole = {point.id for point in repairs.points if point.generation}
            after = told(check(self.vault.reopen().repository))
            assert whole.isdisjoint(after) and after.keys() <= expected.keys()


@settings(deadline=None, max_examples=40)
@given(st.lists(STEPS, min_size=4, max_size=14))
def test_whatever_happens_a_check_knows_it_and_backups_after_it_are_whole(steps):
    life = Life()
    life.step("backup", 0, 0)
    for step in steps:
        life.step(*step)
    life.check(repair=False)
    fresh = Vault(life.vault.store, Repository.open(life.vault.store, PASSPHRASE))
    for point in fresh.repository.points().points:
        if point.id in life.healed:
            assert fresh.load(point) == life.saved[point.id][1]
