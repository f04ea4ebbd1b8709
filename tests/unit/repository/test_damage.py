"""Any object damaged in any way: it is found, nothing wrong comes back, the other points do.

Also with the cache of tables from before the damage.
"""

import functools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drvm.core.errors import DamageFound, PacksCondemned, RepositoryError
from drvm.repository.layout import INDEX, pack_name
from drvm.repository.points import Point
from drvm.repository.repository import Repository
from drvm.store.memory import MemoryStore
from tests.unit.repository.conftest import PASSPHRASE, Vault, new_vault
from tests.unit.repository.test_round_trip import SMALL, noise

KINDS = ["drvm.json", "keys", "data", "meta", "points", "final", "index"]
DAMAGES = ["missing", "emptied", "truncated", "tail only", "flipped", "overwritten", "swapped"]
DISKS = {1: [noise(SMALL, 1), b"text" * 5000], 2: [noise(SMALL, 2), bytes(SMALL) + b"end"]}


@functools.cache
def filled() -> tuple[Vault, dict[str, tuple[Point, int]]]:
    """Two points that share nothing but the repository."""
    vault = new_vault()
    saved = {}
    for number, disks in DISKS.items():
        point = vault.save(disks)
        saved[point.id] = (point, number)
    return vault, saved


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@functools.cache
def warmed(cache_dir: Path) -> Path:
    """Filled from the whole repository, before any damage."""
    Repository.open(filled()[0].store, PASSPHRASE, cache_dir).refresh()
    return cache_dir


def kind_of(vault: Vault, name: str) -> str:
    pack = pack_name(name)
    return name.split("/")[0] if pack is None else vault.repository.packs.open(pack).footer.kind


def objects_of(vault: Vault, kind: str) -> list[str]:
    return sorted(name for name in vault.store.objects if kind_of(vault, name) == kind)


def damaged(vault: Vault, name: str, damage: str, at: int) -> MemoryStore:
    store = MemoryStore()
    store.objects = dict(vault.store.objects)
    whole = store.get(name)
    at %= len(whole)
    others = [other for other in objects_of(vault, kind_of(vault, name)) if other != name]
    other = store.get(others[0]) if others else b"{}"
    flipped = whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :]
    store.delete(name)
    if damage != "missing":
        content = {
            "emptied": b"",
            "truncated": whole[:at],
            "tail only": whole[at + 1 :],
            "flipped": flipped,
            "overwritten": whole[:at] + noise(len(whole) - at),
            "swapped": other,
        }
        store.put(name, content[damage])
    return store


def without_index_objects(store: MemoryStore) -> None:
    for name in [name for name in store.objects if name.startswith(INDEX)]:
        store.delete(name)


def needed(vault: Vault, point: Point) -> set[str]:
    names = {f"packs/{pack.hex()}" for pack in vault.repository.need(point.manifest)}
    key = f"{point.id}.{point.generation}"
    return names | {f"points/{point.manifest.vm_uuid}/{key}", f"final/{key}"}


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(KINDS), st.sampled_from(DAMAGES), st.integers(0, 1), st.integers(0, 1 << 30))
@pytest.mark.parametrize("cached", [False, True])
def test_damage_is_found_and_hits_only_the_points_that_need_the_object(
    cache_dir, cached, kind, damage, which, at
):
    vault, saved = filled()
    names = objects_of(vault, kind)
    name = names[which % len(names)]
    store = damaged(vault, name, damage, at)
    try:
        repository = Repository.open(store, PASSPHRASE, warmed(cache_dir) if cached else None)
    except RepositoryError:
        assert kind in ("drvm.json", "keys")
        return
    listing = repository.points()
    repository.refresh()
    again = Vault(store, repository)
    hit = []
    for point, number in saved.values():
        if point not in listing.points:
            hit.append(point)
            continue
        try:
            assert again.load(point) == DISKS[number]
            definition = repository.blob(point.manifest.definition)
            assert definition == b"<domain/>"
        except DamageFound:
            hit.append(point)
    assert all(name in needed(vault, point) for point in hit)
    if kind in ("data", "meta"):
        with pytest.raises(DamageFound):
            repository.packs.verify(pack_name(name))
    if kind in ("points", "final"):
        assert len(hit) == 1
        assert damage == "missing" or listing.problems
    if kind == "index":
        assert hit == []
    elif damage in ("missing", "emptied") and kind not in ("drvm.json", "keys"):
        assert len(hit) == 1


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(["data", "meta"]), st.sampled_from(DAMAGES), st.integers(0, 1 << 30))
def test_the_next_backup_is_good_whatever_happened_to_the_tables_of_its_parents_packs(
    kind, damage, at
):
    """Damage inside a frame that is shared unread, of blocks or of a leaf, is left to a check; so
    are tables that an index object spares from being read."""
    vault, saved = filled()
    point, number = next(iter(saved.values()))
    name = next(n for n in objects_of(vault, kind) if n in needed(vault, point))
    if damage == "tail only":
        damage = "missing"
    in_the_tables = len(vault.store.get(name)) - 200 + at % 200
    store = damaged(vault, name, damage, in_the_tables)
    without_index_objects(store)
    again = Vault(store, Repository.open(store, PASSPHRASE))
    try:
        healed = again.save(DISKS[number], point)
    except PacksCondemned as error:  # a data pack that the parent's leaves name is not there
        healed = again.save(DISKS[number], point, banned=error.packs)
    assert again.load(healed) == DISKS[number]
    assert again.reopen().load(healed) == DISKS[number]


def test_an_older_version_of_an_object_is_no_object_of_the_newer_point():
    """Names are never used twice, so rolling back can only remove or swap."""
    vault, saved = filled()
    (first, _), (second, _) = saved.values()
    for prefix in ("points/11111111-2222-4333-8444-555555555555/", "final/"):
        store = MemoryStore()
        store.objects = dict(vault.store.objects)
        old, new = (f"{prefix}{p.id}.{p.generation}" for p in (first, second))
        store.put(new, store.get(old))
        listing = Repository.open(store, PASSPHRASE).points()
        assert listing.points == (first,)
        assert len(listing.problems) == 1
