"""Damaged points are written again from wherever their blocks still are."""

import datetime as dt

import pytest
from msgspec.structs import replace

from drvm.core.clock import SystemClock
from drvm.core.errors import DamageFound, StoreRefused, StoreUnreachable
from drvm.core.progress import NoProgress, no_trace
from drvm.repository.layout import POINTS, pack_object
from drvm.repository.points import Point, end_point
from drvm.repository.repository import Repository
from drvm.repository.trust import HostTrust
from drvm.upkeep.copy import plan_copy, run_copy
from drvm.upkeep.repair import Repairs, Tools, _Repairing, run_repair
from drvm.upkeep.rewrite import rewrite_point
from tests.checking import Kinds, check, told
from tests.unit.repository.conftest import PASSPHRASE, Vault, new_vault
from tests.unit.repository.test_round_trip import SMALL, noise
from tests.unit.upkeep.test_check import changed, flipped, with_wrong_addresses
from tests.unit.upkeep.test_gc import collect

DISK = noise(3 * SMALL, 1)
NOW = dt.timedelta(0)


def tools(settled: dt.timedelta = NOW, trace=no_trace) -> Tools:
    return Tools("here", 1, SystemClock(), NoProgress(), trace, settled)


def repair(vault: Vault, other: Vault | None = None, **more) -> Repairs:
    """As the command: a check of everything, then the repair of what it found."""
    repository = vault.reopen().repository
    found = check(repository)
    bad = frozenset(pack.name for pack in found.bad_packs)
    theirs = other.reopen().repository if other is not None else None
    return run_repair(repository, found.hits, bad, theirs, tools(**more))


def copied(vault: Vault) -> Vault:
    """A second repository with copies of all points."""
    other = new_vault()
    source = vault.repository
    plan = plan_copy(source, other.repository, source.points(), lambda point: True)
    run_copy(
        source,
        other.repository,
        plan,
        writer="there",
        level=1,
        clock=SystemClock(),
        progress=NoProgress(),
    )
    return other


def damage(vault: Vault, kind: str, at: int = 20) -> str:
    name = max(Kinds(vault.repository).names(kind), key=lambda name: len(vault.store.get(name)))
    flipped(vault.store, name, at)
    return name


def as_before(vault: Vault, point: Point, disks: list[bytes]) -> bool:
    """Whether the point is whole, by one generation of its old id, and nothing is hit."""
    again = vault.reopen()
    (now,) = (p for p in again.repository.points().points if p.id == point.id)
    assert now.manifest.created == point.manifest.created
    result = check(vault.reopen().repository)
    return again.load(now) == disks and not result.hits


def generations(vault: Vault, point: Point) -> int:
    return sum(point.id in name for name in vault.store.objects if name.startswith(POINTS))


def test_blocks_that_a_later_backup_stored_anew_repair_older_points(vault):
    old = vault.save([DISK])
    damage(vault, "data")
    check(vault.reopen().repository)
    vault.reopen().save([changed(DISK, 50, 9)], old)
    assert set(told(check(vault.reopen().repository))) == {old.id}
    (repaired,) = repair(vault).points
    assert repaired.generation and not repaired.left
    assert as_before(vault, old, [DISK])
    assert generations(vault, old) == 1


@pytest.mark.parametrize("kind", ["data", "meta", "points", "final"])
def test_a_twin_in_a_second_repository_repairs_any_damage(vault, kind):
    parent = vault.save([DISK, b"text" * 5000])
    disks = [changed(DISK, 3, 4), b"text" * 5000]
    child = vault.save(disks, parent)
    other = copied(vault)
    damage(vault, kind)
    hits = set(told(check(vault.reopen().repository, write=False)))
    assert hits
    repairs = repair(vault, other)
    assert not repairs.failed and not repairs.left and {p.id for p in repairs.points} == hits
    assert as_before(vault, parent, [DISK, b"text" * 5000])
    assert as_before(vault, child, disks)


def test_wrong_addresses_are_repaired_from_the_twin(vault, monkeypatch):
    good = vault.save([DISK])
    other = copied(vault)
    wrong = with_wrong_addresses(vault, monkeypatch, DISK)
    repairs = repair(vault, other)
    assert [point.id for point in repairs.failed] == [wrong.id]
    assert "no twin" in repairs.failed[0].reason
    assert as_before(vault, good, [DISK]) is False  # the other one is still hit
    assert set(told(check(vault.reopen().repository))) == {wrong.id}


def test_what_is_nowhere_else_is_named_and_left_as_it_is(vault):
    point = vault.save([DISK])
    damage(vault, "data")
    check(vault.reopen().repository)
    before = {name for name in vault.store.objects if name.startswith("points/")}
    (failed,) = repair(vault).failed
    assert failed.id == point.id and "nowhere else" in failed.reason
    assert "no second repository" in failed.reason
    assert {name for name in vault.store.objects if name.startswith("points/")} == before


def test_a_lost_definition_comes_from_the_twin(vault):
    point = vault.save([])
    other = copied(vault)
    damage(vault, "meta")
    assert not repair(vault, other).failed
    again = vault.reopen().repository
    (now,) = again.points().points
    assert now.id == point.id and again.blob(now.manifest.definition) == b"<domain/>"


def test_a_young_damaged_generation_stays_and_goes_with_a_later_repair(vault):
    old = vault.save([DISK])
    other = copied(vault)
    damage(vault, "data")
    (repaired,) = repair(vault, other, settled=dt.timedelta(hours=1)).points
    assert "too young" in repaired.left and generations(vault, old) == 2
    assert as_before(vault, old, [DISK])
    repairs = repair(vault, other)
    assert repairs == Repairs((), ())
    assert as_before(vault, old, [DISK]) and generations(vault, old) == 1


def test_without_the_right_to_delete_points_are_repaired_and_that_is_told(vault, monkeypatch):
    old = vault.save([DISK])
    other = copied(vault)
    damage(vault, "data")

    def refuses(name: str) -> None:
        raise StoreRefused("no deletes here")

    monkeypatch.setattr(vault.store, "delete", refuses)
    (repaired,) = repair(vault, other).points
    assert "no deletes here" in repaired.left
    assert as_before(vault, old, [DISK])


@pytest.mark.parametrize("kind", ["data", "meta", "points"])
def test_a_point_that_was_removed_meanwhile_does_not_come_back(vault, kind):
    old = vault.save([DISK])
    other = copied(vault)
    damage(vault, kind)
    found = check(vault.reopen().repository)
    bad = frozenset(pack.name for pack in found.bad_packs)
    end_point(vault.store, old.manifest.vm_uuid, old.id)
    repairs = run_repair(vault.reopen().repository, found.hits, bad, other.repository, tools())
    assert [point.reason for point in repairs.failed] == ["it was removed meanwhile"]
    assert generations(vault, old) == 0


def test_a_point_that_is_removed_while_it_is_repaired_does_not_come_back(vault):
    old = vault.save([DISK])
    other = copied(vault)
    damage(vault, "data")

    def removed(step: str) -> None:
        if step == "data-stored":
            end_point(vault.store, old.manifest.vm_uuid, old.id)

    (failed,) = repair(vault, other, trace=removed).failed
    assert "removed meanwhile" in failed.reason
    assert generations(vault, old) == 0


def test_bad_packs_that_could_not_be_set_aside_serve_no_repair(vault):
    old = vault.save([DISK])
    other = copied(vault)
    damage(vault, "data")
    vault.store.put(damage(vault, "meta"), b"noise")  # the disk map can't be read
    found = check(vault.reopen().repository, write=False)
    bad = frozenset(pack.name for pack in found.bad_packs)
    assert len(bad) == 2
    believing = HostTrust("repository")
    repository = Repository.open(vault.store, PASSPHRASE, trust=believing)
    assert not run_repair(repository, found.hits, bad, other.repository, tools()).failed
    assert as_before(vault, old, [DISK])


def test_an_older_generation_that_is_whole_repairs_the_one_that_is_read(vault):
    """What a rewriter leaves that was killed before it ended the old one."""
    old = vault.save([DISK])
    root = old.manifest.disks[0].root.ref().pack
    made = rewrite_point(vault.repository, old, frozenset((root,)), level=1)
    flipped(vault.store, pack_object(made.manifest.disks[0].root.ref().pack))
    assert set(told(check(vault.reopen().repository))) == {old.id}
    (repaired,) = repair(vault).points
    assert repaired.generation and not repaired.left
    assert as_before(vault, old, [DISK])
    assert generations(vault, old) == 1


def test_of_generations_that_show_different_things_none_repairs_another(vault):
    """Whoever holds the keys can have written one of them."""
    true, other = vault.save([DISK]), vault.save([changed(DISK, 3, 4)])
    false = vault.repository.commit(replace(true.manifest, disks=other.manifest.disks))
    root = true.manifest.disks[0].root.ref().pack
    made = rewrite_point(vault.repository, true, frozenset((root,)), level=1)
    flipped(vault.store, pack_object(made.manifest.disks[0].root.ref().pack))
    (failed,) = repair(vault).failed
    assert failed.id == true.id
    left = {g.generation for g in vault.repository.generations.listed() if g.point_id == true.id}
    assert left == {true.generation, false.generation, made.generation}


def test_a_store_that_goes_away_ends_the_repair(vault, monkeypatch):
    vault.save([DISK])
    other = copied(vault)
    damage(vault, "data")
    found = check(vault.reopen().repository)

    def away(name: str, data: bytes) -> None:
        raise StoreUnreachable("away")

    monkeypatch.setattr(vault.store, "put", away)
    bad = frozenset(pack.name for pack in found.bad_packs)
    with pytest.raises(StoreUnreachable):
        run_repair(vault.reopen().repository, found.hits, bad, other.repository, tools())


class Ended(BaseException):
    """Stands for SIGKILL."""


STEPS = ["written vda", "data-stored", "manifest-created", "final-created", "manifest-deleted"]


@pytest.mark.parametrize("step", STEPS)
def test_a_repair_that_ends_anywhere_is_done_by_the_next_one(vault, step):
    old = vault.save([DISK])
    other = copied(vault)
    damage(vault, "data")

    def end(now: str) -> None:
        if now == step:
            raise Ended

    with pytest.raises(Ended):
        repair(vault, other, trace=end)
    assert not repair(vault, other).failed
    assert as_before(vault, old, [DISK])


def test_a_bad_pack_that_nothing_needs_any_more_is_collected(vault):
    """And none that a damaged point needs: its other blocks can still be had."""
    old = vault.save([DISK])
    name = damage(vault, "data")
    check(vault.reopen().repository)
    for _ in range(2):
        collect(vault.reopen())
    assert name in vault.store.objects
    vault.reopen().save([changed(DISK, 50, 9)], old)
    assert not repair(vault).failed
    for _ in range(2):  # condemned by one run, deleted by the next
        collect(vault.reopen())
    assert name not in vault.store.objects
    assert as_before(vault, old, [DISK])
    assert not check(vault.reopen().repository).damaged


def test_a_generation_that_somebody_made_meanwhile_stays(vault):
    """Two repairs at once: each ends what was decided before its own, and the last one stays."""
    first = vault.save([DISK])
    second = vault.repository.commit(first.manifest)
    repairing = _Repairing(vault.reopen().repository, (), frozenset(), None, tools())
    third = vault.repository.commit(first.manifest)
    assert repairing.superseded() == ()
    left = {name.rpartition(".")[2] for name in vault.store.objects if name.startswith(POINTS)}
    assert left == {second.generation, third.generation}


@pytest.mark.parametrize("lie", ["disk", "definition", "instant", "firmware"])
def test_a_generation_that_shows_something_else_is_not_ended(vault, lie):
    """Whoever holds the keys can write a false one of any point: the true one must stay."""
    true, other = vault.save([DISK]), vault.save([changed(DISK, 3, 4)])
    (disk,) = true.manifest.disks
    fields = {
        "disk": {"disks": other.manifest.disks},
        "definition": {"definition": disk.root},
        "instant": {"created": "2026-11-23T04:00:00.000000Z"},
        "firmware": {"nvram": disk.root},
    }
    false = vault.repository.commit(replace(true.manifest, **fields[lie]))
    (told,) = repair(vault).left
    assert true.id in told and "something else" in told
    assert generations(vault, true) == 2
    vault.repository.generations.end(
        next(g for g in vault.repository.generations.listed() if g.generation == false.generation)
    )
    assert as_before(vault, true, [DISK])


def test_a_false_generation_that_is_repaired_takes_only_itself_along(vault):
    true, lie = vault.save([DISK]), noise(3 * SMALL, 7)
    other = vault.save([lie])
    false = vault.repository.commit(replace(true.manifest, disks=other.manifest.disks))
    theirs = vault.repository.disk_map(other.manifest.disks[0]).packs()
    kinds = Kinds(vault.repository).names("data")
    (pack,) = {pack_object(name) for name in theirs} & set(kinds)
    flipped(vault.store, pack, 20)
    check(vault.reopen().repository)
    vault.reopen().save([changed(lie, 50, 9)], other)
    repaired = {point.id: point for point in repair(vault).points}
    assert "something else" in repaired[true.id].left
    left = {g.generation for g in vault.repository.generations.listed() if g.point_id == true.id}
    assert left == {true.generation, repaired[true.id].generation} != {false.generation}


def test_nor_one_that_shows_something_else_as_far_as_it_can_be_read(vault):
    disks = [DISK, noise(SMALL, 5)]
    true = vault.save(disks)
    others = vault.save([changed(DISK, 3, 4), noise(SMALL, 6)])
    lost = pack_object(true.manifest.disks[1].root.ref().pack)
    vault.repository.commit(replace(true.manifest, disks=others.manifest.disks))
    repository = vault.reopen().repository
    fetch = repository.packs.blob

    def torn(ref):
        if ref == true.manifest.disks[1].root.ref():
            raise DamageFound(f"{lost} is damaged")
        return fetch(ref)

    repository.packs.blob = torn
    (told,) = run_repair(repository, (), frozenset(), None, tools()).left
    assert "something else" in told and generations(vault, true) == 2
