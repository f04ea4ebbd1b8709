"""Pruning a repository: what the plan is made of, and what a crash, a pin or a rival leaves."""

import datetime as dt
from collections.abc import Callable

import pytest
from msgspec.structs import replace

from drvm.core.errors import PacksCondemned, StoreUnreachable
from drvm.core.ids import new_point_id
from drvm.repository.layout import CONDEMNED, FINALS, PACKS, POINTS, pack_object, tombstone
from drvm.repository.pins import Pin
from drvm.repository.points import Listing, Point
from drvm.upkeep.prune import PrunePlan, plan_prune, run_prune
from drvm.upkeep.retention import NO_RULES, Now, Rules
from tests.checking import check
from tests.unit.repository.conftest import Vault
from tests.unit.repository.test_round_trip import SMALL, noise
from tests.unit.upkeep.test_check import flipped

PIN = Pin("keep it", "2026-11-23T04:00:00.000000Z", "kvm1")
LATER = dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)
NOW = Now(LATER, LATER)


def plan(vault: Vault, rules: Rules = Rules(last=1), now: Now = NOW) -> PrunePlan:  # noqa: B008
    return plan_prune(vault.repository, vault.repository.points(), lambda vm: rules, now)


def points(vault: Vault) -> tuple[Point, ...]:
    return vault.repository.points().points


def reasons(plan: PrunePlan) -> dict[str, tuple[str, ...]]:
    return {decision.point.id: decision.reasons for decision in plan.decisions}


def test_what_no_rule_keeps_is_removed_and_the_rest_still_reads(faulty):
    old = points(faulty)
    planned = plan(faulty)
    assert planned.going == old[:2]
    pruned = run_prune(faulty.repository, planned.going)
    assert (pruned.ended, pruned.spared) == (old[:2], ())
    assert points(faulty) == old[2:]
    assert faulty.load(old[2]) == [noise(SMALL, 2)]


def test_planning_writes_nothing(faulty):
    faulty.store.calls.clear()
    plan(faulty)
    assert {call.split()[0] for call in faulty.store.calls} <= {"list", "get", "tail", "head"}


def test_packs_and_finals_are_left_alone(faulty):
    before = set(faulty.store.objects)
    run_prune(faulty.repository, plan(faulty).going)
    assert all(name.startswith(POINTS) for name in before - set(faulty.store.objects))
    assert not set(faulty.store.objects) - before


def test_without_rules_nothing_goes(faulty):
    assert plan(faulty, NO_RULES).going == ()


@pytest.mark.parametrize("status", ["pending", "aborted"])
def test_a_point_that_was_never_finished_counts_for_nothing(faulty, status):
    newest = points(faulty)[-1]
    manifest = replace(newest.manifest, id=new_point_id(), created="2026-01-02T00:00:00.000000Z")
    if status == "pending":

        def dies(verb: str, name: str) -> None:
            if verb == "create" and name.startswith(FINALS):
                raise KeyboardInterrupt

        faulty.store.before = dies
        with pytest.raises(KeyboardInterrupt):
            faulty.repository.commit(manifest)
        faulty.store.before = lambda verb, name: None
    else:
        faulty.store.put(f"{CONDEMNED}{min(faulty.repository.need(manifest)).hex()}", b"")
        with pytest.raises(PacksCondemned):
            faulty.repository.commit(manifest)
    assert newest not in plan(faulty).going
    assert len(plan(faulty).decisions) == 3


def data_pack(vault: Vault, point: Point) -> str:
    """The pack that only this point needs: the disks share nothing."""
    return pack_object(max(vault.repository.disk_map(point.manifest.disks[0]).packs()))


def damage_manifest(vault: Vault, point: Point) -> None:
    (name,) = (n for n in vault.store.objects if n.startswith(POINTS) and point.id in n)
    vault.store.put(name, b"")


def lose_a_pack(vault: Vault, point: Point) -> None:
    vault.store.delete(data_pack(vault, point))


def lose_all_packs(vault: Vault, point: Point) -> None:
    for pack in vault.repository.need(point.manifest):
        vault.store.delete(pack_object(pack))


@pytest.mark.parametrize("damage", [lose_a_pack, lose_all_packs])
def test_a_newer_point_that_lacks_packs_pushes_nobody_out(
    faulty: Vault, damage: Callable[[Vault, Point], None]
) -> None:
    oldest, middle, newest = points(faulty)
    damage(faulty, newest)
    planned = plan(faulty.reopen())
    assert [point.id for point in planned.going] == [oldest.id]
    told = reasons(planned)
    assert told[newest.id] == ("not whole: it counts for nothing",)
    assert told[middle.id] == ("the last good point", "last 1")


def test_newer_points_that_all_lack_packs_leave_the_last_whole_one(faulty):
    _, middle, newest = points(faulty)
    lose_a_pack(faulty, middle)
    lose_a_pack(faulty, newest)
    assert plan(faulty.reopen()).going == ()


def test_a_newer_point_that_needs_a_pack_which_a_check_set_aside_pushes_nobody_out(faulty):
    oldest, middle, newest = points(faulty)
    flipped(faulty.store, data_pack(faulty, newest))
    assert [hit.id for hit in check(faulty.reopen().repository).hits] == [newest.id]
    planned = plan(faulty.reopen())
    assert [point.id for point in planned.going] == [oldest.id]
    assert reasons(planned)[newest.id] == ("not whole: it counts for nothing",)
    assert reasons(planned)[middle.id][0] == "the last good point"


def test_a_pack_that_a_collector_condemned_is_as_good_as_any(faulty):
    """It found it needed by nobody; a writer came, and needs it."""
    *_, newest = points(faulty)
    for name in faulty.repository.need(newest.manifest):
        faulty.store.put(tombstone(name), b"")
    assert len(plan(faulty).going) == 2


def test_a_damaged_manifest_is_told_and_pushes_nobody_out(faulty):
    oldest, middle, newest = points(faulty)
    damage_manifest(faulty, newest)
    planned = plan(faulty)
    assert [point.id for point in planned.going] == [oldest.id]
    assert middle.id in reasons(planned)
    assert len(planned.problems) == 1


def test_packs_are_looked_up_only_where_something_goes(faulty):
    faulty.store.calls.clear()
    plan(faulty, Rules(last=3))
    assert f"list {PACKS}" not in faulty.store.calls


@pytest.mark.parametrize("prefix", [POINTS, FINALS, PACKS, "pins/"])
def test_a_listing_that_fails_means_no_plan(faulty, prefix):
    def fails(verb: str, name: str) -> None:
        if f"{verb} {name}" == f"list {prefix}":
            raise StoreUnreachable("half of the listing was lost")

    faulty.store.before = fails
    with pytest.raises(StoreUnreachable):
        plan(faulty)


def test_a_clock_that_is_wrong_removes_nothing_and_is_told(faulty):
    planned = plan(faulty, now=Now(LATER + dt.timedelta(days=3650), LATER))
    assert planned.going == ()
    assert planned.refusal is not None and "ahead of the store's" in planned.refusal.message


def test_a_pinned_point_stays_with_its_note(faulty):
    oldest, _, _ = points(faulty)
    faulty.repository.pin(oldest, PIN)
    planned = plan(faulty)
    assert oldest not in planned.going
    assert reasons(planned)[oldest.id] == ("pinned: keep it",)


def test_a_point_pinned_after_the_plan_is_spared(faulty):
    planned = plan(faulty)
    first, second = planned.going
    faulty.repository.pin(first, PIN)
    pruned = run_prune(faulty.repository, planned.going)
    assert (pruned.ended, pruned.spared) == ((second,), (first,))


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", range(4))
def test_a_crash_at_any_step_leaves_points_ended_or_untouched(faulty, step, after):
    """Two points go, one of them with two generations: three deletes."""
    old = points(faulty)
    faulty.repository.commit(old[0].manifest)
    contents = {point.id: noise(SMALL, seed) for seed, point in enumerate(old)}
    planned = plan(faulty)
    seen = 0

    def dies(verb: str, name: str) -> None:
        nonlocal seen
        if verb == "delete":
            seen += 1
            if seen == step + 1:
                if after:
                    faulty.store.objects.pop(name)
                raise KeyboardInterrupt

    faulty.store.before = dies
    if step < 3:
        with pytest.raises(KeyboardInterrupt):
            run_prune(faulty.repository, planned.going)
    else:
        run_prune(faulty.repository, planned.going)
    faulty.store.before = lambda verb, name: None
    left = points(faulty)
    assert {point.id for point in left} <= contents.keys()
    assert old[2].id in {point.id for point in left}
    assert faulty.repository.points().problems == ()
    for point in left:
        assert faulty.load(point) == [contents[point.id]]
    run_prune(faulty.repository, plan(faulty).going)
    assert [point.id for point in points(faulty)] == [old[2].id]


def test_a_point_that_is_being_written_anew_is_not_ended_yet(faulty):
    """Its new manifest is younger than a request lives: a late duplicate could bring it back."""
    oldest, middle, _ = points(faulty)

    def dies(verb: str, name: str) -> None:
        if verb == "create" and name.startswith(FINALS):
            raise KeyboardInterrupt

    begun = dt.datetime.now(dt.UTC)
    for name, (data, _) in list(faulty.store.objects.items()):
        faulty.store.objects[name] = data, begun - dt.timedelta(hours=2)
    faulty.store.before = dies
    with pytest.raises(KeyboardInterrupt):
        faulty.repository.commit(oldest.manifest)
    faulty.store.before = lambda verb, name: None
    planned = plan(faulty, now=Now(begun, begun))
    assert planned.going == (middle,)
    assert planned.held == (oldest,)
    assert reasons(planned)[oldest.id] == ("is being written anew",)
    later = begun + dt.timedelta(hours=1)
    assert plan(faulty, now=Now(later, later)).going == (oldest, middle)


def test_only_the_points_that_are_given_are_decided_about(faulty):
    other = points(faulty)[0].manifest
    faulty.repository.commit(replace(other, id=new_point_id(), vm="db1"))
    listed = Listing(tuple(p for p in points(faulty) if p.manifest.vm == "db1"), ())
    planned = plan_prune(faulty.repository, listed, lambda _: Rules(last=1), NOW)
    assert [decision.point.vm for decision in planned.decisions] == ["db1"]


def test_a_point_whose_disk_map_cannot_be_read_pushes_none_out(faulty):
    last = faulty.save([noise(SMALL, 9)])
    broken = points(faulty)[2]
    root = broken.manifest.disks[0].root
    faulty.store.put(f"{PACKS}{root.pack}", b"noise")
    fresh = faulty.reopen()
    planned = plan(fresh, Rules(last=2))
    assert [point.id for point in planned.going] == [points(fresh)[0].id]
    assert reasons(planned)[broken.id] == ("not whole: it counts for nothing",)
    assert last.id not in [point.id for point in planned.going]
