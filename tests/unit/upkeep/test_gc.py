"""Collecting: what goes, what stays, and what makes a collector refuse."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable

import msgspec
import pytest
from msgspec.structs import replace

from drvm.chunker.blocks import BLOCK_BYTES, LEAF_BYTES
from drvm.core.errors import (
    DamageFound,
    ObjectMissing,
    RepositoryError,
    StoreRefused,
    StoreUnreachable,
    TamperingFound,
    UnsupportedFormat,
    UsageError,
)
from drvm.core.ids import new_point_id
from drvm.repository.generations import Generation, Status
from drvm.repository.layout import (
    CONDEMNED,
    FINALS,
    INDEX,
    PACKS,
    POINTS,
    final_object,
    pack_object,
    tombstone,
)
from drvm.repository.pins import Pin
from drvm.repository.points import Point
from drvm.upkeep.gc import Collected, GcPlan, GcRules, forget_damaged, plan_gc, refusal, run_gc
from drvm.upkeep.prune import run_prune
from drvm.upkeep.retention import Now
from drvm.upkeep.survey import _Needs, survey
from tests.unit.repository.conftest import VM, Vault
from tests.unit.repository.test_round_trip import SMALL, noise

HOUR = dt.timedelta(hours=1)
DAY = dt.timedelta(days=1)
PIN = Pin("keep it", "2026-11-23T04:00:00.000000Z", "kvm1")
AT_ONCE = GcRules(grace=dt.timedelta(0), settled=dt.timedelta(0))


def points(vault: Vault) -> tuple[Point, ...]:
    return vault.repository.points().points


def plan(
    vault: Vault,
    rules: GcRules = AT_ONCE,
    *,
    later: dt.timedelta = dt.timedelta(0),
    trace: Callable[[str], None] = lambda step: None,
) -> GcPlan:
    """As it is, or as if so much time had passed."""
    now = dt.datetime.now(dt.UTC) + later
    return plan_gc(survey(vault.repository, now, trace), Now(now, now), rules)


def collect(
    vault: Vault,
    rules: GcRules = AT_ONCE,
    *,
    later: dt.timedelta = dt.timedelta(0),
    trace: Callable[[str], None] = lambda step: None,
) -> Collected:
    done = Collected()
    run_gc(vault.repository, plan(vault, rules, later=later, trace=trace), done, trace)
    return done


def packs(vault: Vault) -> set[str]:
    return {name for name in vault.store.objects if name.startswith(PACKS)}


def own_packs(vault: Vault, point: Point) -> set[str]:
    return {pack_object(name) for name in vault.repository.need(point.manifest)}


def end(vault: Vault, *ended: Point) -> None:
    assert len(run_prune(vault.repository, ended).ended) == len(ended)


def leave_pending(vault: Vault, disk: bytes = noise(SMALL, 99)) -> Generation:
    """A writer that dies between manifest and final, of a disk that nobody else has."""

    def dies(verb: str, name: str) -> None:
        if verb == "create" and name.startswith(FINALS):
            raise KeyboardInterrupt

    vault.store.before = dies
    with pytest.raises(KeyboardInterrupt):
        vault.save([disk])
    vault.store.before = lambda verb, name: None
    generations = vault.repository.generations
    (left,) = (g for g in generations.listed() if generations.decided(g).status is Status.PENDING)
    return left


# -- what goes, and what stays --------------------------------------------------------------------
def test_where_every_point_stays_nothing_is_condemned(faulty):
    before = dict(faulty.store.objects)
    assert collect(faulty) == Collected()
    assert faulty.store.objects == before


def test_what_an_ended_point_alone_needed_is_condemned_and_deleted_by_the_next_run(faulty):
    gone, *staying = points(faulty)
    theirs = own_packs(faulty, gone)
    end(faulty, gone)
    first = collect(faulty)
    assert (first.condemned, first.deleted) == (2, 0)
    assert theirs <= packs(faulty)
    second = collect(faulty)
    assert (second.condemned, second.deleted) == (0, 2)
    assert second.deleted_bytes > SMALL
    assert packs(faulty) == set().union(*(own_packs(faulty, point) for point in staying))
    assert not [name for name in faulty.store.objects if name.startswith(CONDEMNED)]
    fresh = faulty.reopen()
    assert [fresh.load(point) for point in staying] == [[noise(SMALL, 1)], [noise(SMALL, 2)]]


def test_what_points_share_stays_as_long_as_one_of_them(faulty):
    parent = points(faulty)[-1]
    child = faulty.save([noise(SMALL, 2)], parent)
    end(faulty, *points(faulty)[:-1])
    collect(faulty)
    collect(faulty)
    assert faulty.reopen().load(child) == [noise(SMALL, 2)]


def test_a_pack_within_the_grace_is_not_condemned(faulty):
    end(faulty, points(faulty)[0])
    rules = GcRules(grace=DAY)
    waiting = plan(faulty, rules, later=HOUR)
    assert (len(waiting.waiting), waiting.condemn) == (2, ())
    assert len(plan(faulty, rules, later=DAY).condemn) == 2


def test_a_pack_younger_than_any_request_lives_is_not_deleted(faulty):
    """Planted fault of the model: young-packs-collected."""
    end(faulty, points(faulty)[0])
    rules = GcRules(grace=dt.timedelta(0))
    collect(faulty, rules)
    young = plan(faulty, rules)
    assert (len(young.waiting), young.delete) == (2, ())
    assert len(plan(faulty, rules, later=dt.timedelta(minutes=20)).delete) == 2


def test_a_pack_is_deleted_only_if_it_was_condemned_before(faulty):
    """Planted fault of the model: no-tombstones."""
    end(faulty, points(faulty)[0])
    planned = plan(faulty)
    assert (len(planned.condemn), planned.delete) == (2, ())


def test_a_condemned_pack_that_a_point_needs_stays_and_so_does_its_tombstone(faulty):
    """Planted fault of the model: pardon."""
    needed = min(faulty.repository.need(points(faulty)[0].manifest))
    faulty.store.put(tombstone(needed), b"")
    collect(faulty)
    assert {pack_object(needed), tombstone(needed)} <= faulty.store.objects.keys()


def test_a_tombstone_whose_pack_is_gone_is_removed(faulty):
    faulty.store.put(tombstone(bytes(32)), b"")
    assert collect(faulty).deleted == 1
    assert tombstone(bytes(32)) not in faulty.store.objects


def test_each_tombstone_goes_after_its_pack(faulty):
    """Planted fault of the model: tombstone-removed-first."""
    end(faulty, points(faulty)[0])
    collect(faulty)
    faulty.store.calls.clear()
    collect(faulty)
    calls = [call.split() for call in faulty.store.calls]
    deletes = [n for v, n in calls if v == "delete" and n.startswith((PACKS, CONDEMNED))]
    wanted = [(a, a.replace(PACKS, CONDEMNED)) for a in deletes if a.startswith(PACKS)]
    assert [*zip(deletes[::2], deletes[1::2], strict=True)] == wanted
    assert len(wanted) == 2


def test_the_listings_come_in_the_order_of_the_protocol(faulty):
    """Planted faults of the model: points-listed-before-condemned, and finals before points."""
    faulty.store.calls.clear()
    steps: list[str] = []
    plan(faulty, trace=steps.append)
    calls = faulty.store.calls
    order = [calls.index(f"list {prefix}") for prefix in (INDEX, CONDEMNED, PACKS, POINTS)]
    first_final = min(i for i, call in enumerate(calls) if call.startswith(f"tail {FINALS}"))
    first_manifest = min(i for i, call in enumerate(calls) if call.startswith(f"get {POINTS}"))
    assert [*order, first_final, first_manifest] == sorted([*order, first_final, first_manifest])
    assert steps == ["tombstones-listed", "packs-listed", "points-listed", "finals-read"]
    assert {call.split()[0] for call in calls} <= {"list", "get", "tail", "head"}


def test_a_pending_point_counts_as_needed_until_its_writer_is_given_up(faulty):
    """Planted fault of the model: pending-not-needed."""
    left = leave_pending(faulty)
    before = packs(faulty)
    collect(faulty)
    collect(faulty)
    assert packs(faulty) == before
    assert collect(faulty, later=8 * DAY).given_up == 1
    assert collect(faulty).condemned == 2
    assert left.name not in faulty.store.objects
    assert collect(faulty).deleted == 2
    assert final_object(left.point_id, left.generation) in faulty.store.objects
    assert len(packs(faulty)) == len(before) - 2


def test_an_aborted_final_is_never_deleted(faulty):
    """Planted fault of the model: aborted-final-removed."""
    left = leave_pending(faulty)
    faulty.repository.generations.give_up(left)
    for _ in range(3):
        collect(faulty, later=400 * DAY)
    assert final_object(left.point_id, left.generation) in faulty.store.objects


def test_a_writer_that_was_faster_is_not_given_up(faulty):
    """Planted fault of the model: final-overwritten."""
    left = leave_pending(faulty)
    planned = plan(faulty, later=8 * DAY)
    final = final_object(left.point_id, left.generation)
    faulty.store.put_if_absent(final, b"its own")
    done = Collected()
    run_gc(faulty.repository, planned, done)
    assert done.given_up == 0
    assert faulty.store.get(final) == b"its own"


def test_a_lost_answer_does_not_hide_that_a_writer_was_given_up(faulty):
    left = leave_pending(faulty)
    faulty.store.lose_reply = lambda verb, name: verb == "create"
    assert collect(faulty, later=8 * DAY).given_up == 1
    assert faulty.repository.generations.decided(left).status is Status.ABORTED


def test_a_final_that_nobody_can_read_counts_as_needed(faulty):
    (name,) = (n for n in faulty.store.objects if n.startswith(FINALS + points(faulty)[0].id))
    faulty.store.put(name, b"noise")
    assert plan(faulty).condemn == ()


def test_a_final_of_an_unknown_status_counts_as_needed(faulty):
    (name,) = (n for n in faulty.store.objects if n.startswith(FINALS + points(faulty)[0].id))
    odd = msgspec.json.encode({"status": "odd", "manifest_sha256": "0" * 64})
    faulty.store.put(name, faulty.repository._sealer.seal_object(b"final", name, odd))
    assert len(points(faulty)) == 2
    assert plan(faulty).condemn == ()


def test_an_index_object_that_tells_of_nothing_any_more_goes(faulty):
    before = {name for name in faulty.store.objects if name.startswith(INDEX)}
    end(faulty, points(faulty)[0])
    collect(faulty)
    assert collect(faulty).index_objects == 1
    left = {name for name in faulty.store.objects if name.startswith(INDEX)}
    assert left < before
    told = set().union(
        *(faulty.repository.catalog.told_by(n) for n in faulty.repository.catalog.index_objects())
    )
    assert {pack_object(name) for name in told} == packs(faulty)


def test_an_index_object_that_nobody_can_read_is_left_alone(faulty):
    faulty.store.put(f"{INDEX}{'ab' * 32}", b"noise")
    end(faulty, points(faulty)[0])
    collect(faulty)
    collect(faulty)
    assert f"{INDEX}{'ab' * 32}" in faulty.store.objects


@pytest.mark.parametrize("name", ["probe/aa/time", f"leases/{VM}/0123456789abcdef"])
def test_old_probes_and_leases_go_and_young_ones_stay(faulty, name):
    faulty.store.put(name, b"")
    assert collect(faulty).probes == 0
    assert collect(faulty, later=DAY).probes == 1
    assert name not in faulty.store.objects


def test_what_is_not_of_the_repository_is_left_alone(faulty):
    for name in ("packs/readme", f"{POINTS}x/y", f"{CONDEMNED}zz"):
        faulty.store.put(name, b"foreign")
    end(faulty, points(faulty)[0])
    collect(faulty)
    collect(faulty)
    assert {"packs/readme", f"{POINTS}x/y", f"{CONDEMNED}zz"} <= faulty.store.objects.keys()


def test_nothing_is_found_in_a_pack_once_it_is_deleted(faulty):
    end(faulty, points(faulty)[0])
    collect(faulty)
    collect(faulty)
    again = faulty.save([noise(SMALL, 0)])
    assert again.manifest.disks[0].new_bytes == SMALL
    assert faulty.load(again) == [noise(SMALL, 0)]


def test_a_point_made_during_a_survey_is_no_damage_and_keeps_its_packs(faulty):
    """Its packs are not in the listing of packs, which was made before."""
    made: list[Point] = []

    def meanwhile(step: str) -> None:
        if step == "packs-listed":
            made.append(faulty.save([noise(SMALL, 7)]))

    planned = plan(faulty, trace=meanwhile)
    assert (planned.damaged, planned.condemn, planned.delete) == ((), (), ())


def test_a_point_ended_during_a_survey_is_no_damage(faulty):
    gone = points(faulty)[0]

    def meanwhile(step: str) -> None:
        if step == "finals-read":
            end(faulty, gone)
            for name in own_packs(faulty, gone):
                faulty.store.delete(name)

    assert plan(faulty, trace=meanwhile).damaged == ()


# -- refusals -------------------------------------------------------------------------------------
def refused(vault: Vault) -> GcPlan:
    """Neither now nor later is anything done; there is something to be done."""
    left = points(vault)
    for point in left[:1]:
        end(vault, point)
    before = dict(vault.store.objects)
    planned = plan(vault, later=HOUR)
    assert planned.refused
    done = Collected()
    with pytest.raises(RepositoryError) as raised:
        run_gc(vault.repository, planned, done)
    assert raised.value.hint
    assert done == Collected()
    assert vault.store.objects == before
    return planned


def only_pack(vault: Vault, point: Point) -> str:
    """The data pack that only this point needs."""
    return pack_object(max(vault.repository.disk_map(point.manifest.disks[0]).packs()))


def test_a_good_point_that_lacks_a_data_pack_makes_it_refuse_and_is_named(faulty):
    damaged = points(faulty)[-1]
    nodes = faulty.repository.disk_map(damaged.manifest.disks[0])
    (lost,) = nodes.packs() - {damaged.manifest.disks[0].root.ref().pack}
    faulty.store.delete(pack_object(lost))
    planned = refused(faulty)
    (found,) = planned.damaged
    assert found.generation.point_id == damaged.id
    assert found.reasons == (f"pack {lost.hex()} is missing",)
    assert damaged.id in str(refusal(planned))


@pytest.mark.parametrize("damage", ["missing", "flipped", "emptied"])
def test_a_node_that_cannot_be_read_makes_it_refuse(faulty, damage):
    damaged = points(faulty)[-1]
    name = pack_object(damaged.manifest.disks[0].root.ref().pack)
    data = faulty.store.get(name)
    if damage == "missing":
        faulty.store.delete(name)
    else:
        faulty.store.put(name, bytes(len(data)) if damage == "flipped" else b"")
    (found,) = refused(faulty.reopen()).damaged
    assert found.generation.point_id == damaged.id


def test_a_manifest_that_cannot_be_read_makes_it_refuse(faulty):
    damaged = points(faulty)[-1]
    (name,) = (n for n in faulty.store.objects if n.startswith(POINTS) and damaged.id in n)
    faulty.store.put(name, b"noise")
    (found,) = refused(faulty).damaged
    assert found.generation.point_id == damaged.id


def test_a_manifest_that_is_larger_than_any_object_makes_it_refuse(faulty, monkeypatch):
    monkeypatch.setattr("drvm.repository.generations.MAX_OBJECT_BYTES", 10)
    planned = plan(faulty)
    assert len(planned.damaged) == 3
    assert "larger than any object" in planned.damaged[0].reasons[0]


def test_damage_that_passes_is_none_and_all_that_was_read_late_is_needed(faulty):
    """A node reads badly at first, also when it is asked for anew; then it reads well."""
    broken = points(faulty)[-1]
    name = pack_object(broken.manifest.disks[0].root.ref().pack)
    data, bad = faulty.store.get(name), [2]
    fresh = faulty.reopen()

    def flips(verb: str, asked: str) -> None:
        if asked == name:
            bad[0] -= 1
            whole = bad[0] < 0
            fresh.store.objects[name] = (data if whole else bytes(len(data)), data_time)

    data_time = faulty.store.objects[name][1]
    faulty.store.before = flips
    planned = plan(fresh)
    assert (planned.damaged, planned.condemn) == ((), ())


def test_a_manifest_that_reads_badly_once_is_read_again_and_its_packs_stay(faulty):
    broken = points(faulty)[-1]
    (name,) = (n for n in faulty.store.objects if n.startswith(POINTS) and broken.id in n)
    data, stored = faulty.store.objects[name]
    reads = [0]

    def flips(verb: str, asked: str) -> None:
        if (verb, asked) == ("get", name):
            reads[0] += 1
            faulty.store.objects[name] = (data if reads[0] > 1 else b"noise", stored)

    faulty.store.before = flips
    planned = plan(faulty)
    assert reads[0] == 2
    assert (planned.damaged, planned.condemn) == ((), ())


@pytest.mark.parametrize("whole_disk_map", [True, False])
def test_a_pending_point_that_lacks_packs_does_not_make_it_refuse(faulty, whole_disk_map):
    left = leave_pending(faulty)
    manifest = faulty.repository.generations.manifest(left)
    root = manifest.disks[0].root.ref().pack
    (data,) = faulty.repository.disk_map(manifest.disks[0]).packs() - {root}
    faulty.store.delete(pack_object(data if whole_disk_map else root))
    assert not plan(faulty.reopen()).refused


def test_a_pending_point_whose_manifest_cannot_be_read_makes_it_refuse_until_given_up(faulty):
    left = leave_pending(faulty)
    faulty.store.put(left.name, b"noise")
    (found,) = refused(faulty).damaged
    assert not found.good
    assert not plan(faulty, later=8 * DAY).refused
    assert collect(faulty, later=8 * DAY).given_up == 1
    assert not plan(faulty).refused


def test_it_stops_where_the_writer_of_an_unknown_point_comes_back(faulty):
    left = leave_pending(faulty)
    faulty.store.put(left.name, b"noise")
    end(faulty, points(faulty)[0])
    planned = plan(faulty, later=8 * DAY)
    faulty.store.put_if_absent(final_object(left.point_id, left.generation), b"its own")
    with pytest.raises(RepositoryError, match="came back to life"):
        run_gc(faulty.repository, planned, done := Collected())
    assert done == Collected()


def test_a_point_that_is_whole_by_another_generation_is_no_reason_to_refuse(faulty):
    point = points(faulty)[0]
    faulty.repository.commit(point.manifest)
    first, _ = (n for n in faulty.store.objects if n.startswith(POINTS) and point.id in n)
    faulty.store.put(first, b"noise")
    assert not plan(faulty).refused


def test_a_manifest_of_a_newer_drvm_stops_it(faulty):
    point = points(faulty)[0]
    (name,) = (n for n in faulty.store.objects if n.startswith(POINTS) and point.id in n)
    sealed = faulty.store.get(name)
    faulty.store.put(name, sealed[:8] + b"\x07\x00" + sealed[10:])
    with pytest.raises((UnsupportedFormat, DamageFound)):
        run_gc(faulty.repository, plan(faulty), Collected())


@pytest.mark.parametrize("prefix", [CONDEMNED, PACKS, POINTS, INDEX, "probe/"])
def test_a_listing_that_fails_means_no_collection(faulty, prefix):
    def fails(verb: str, name: str) -> None:
        if f"{verb} {name}" == f"list {prefix}":
            raise StoreUnreachable("half of the listing was lost")

    faulty.store.before = fails
    with pytest.raises(StoreUnreachable):
        plan(faulty)


@pytest.mark.parametrize("prefix", [FINALS, POINTS, PACKS])
def test_a_store_that_does_not_answer_means_no_collection(faulty, prefix):
    vault = faulty.reopen()

    def fails(verb: str, name: str) -> None:
        if verb in ("get", "tail") and name.startswith(prefix):
            raise StoreUnreachable("no answer")

    faulty.store.before = fails
    with pytest.raises(StoreUnreachable):
        plan(vault)


def test_clocks_that_are_apart_mean_no_collection(faulty):
    end(faulty, points(faulty)[0])
    now = dt.datetime.now(dt.UTC)
    planned = plan_gc(survey(faulty.repository, now), Now(now + HOUR, now), AT_ONCE)
    assert planned.refused
    with pytest.raises(RepositoryError, match="1 h 00 min ahead of the store's"):
        run_gc(faulty.repository, planned, Collected())


# -- the way on -----------------------------------------------------------------------------------
def test_a_damaged_point_can_be_ended_and_then_it_collects(faulty):
    damaged = points(faulty)[-1]
    faulty.store.delete(only_pack(faulty, damaged))
    planned = plan(faulty.reopen())
    assert forget_damaged(faulty.repository, planned, [damaged.id[:6]]) == (damaged.id,)
    assert not plan(faulty).refused
    assert damaged.id not in {point.id for point in points(faulty)}


def test_a_dry_run_ends_nothing(faulty):
    damaged = points(faulty)[-1]
    faulty.store.delete(only_pack(faulty, damaged))
    planned = plan(faulty.reopen())
    assert forget_damaged(faulty.repository, planned, [damaged.id], dry_run=True)
    assert damaged.id in {point.id for point in points(faulty)}


@pytest.mark.parametrize("text", ["", "abc", "0" * 16])
def test_only_a_point_that_is_damaged_can_be_ended_so(faulty, text):
    whole = points(faulty)[0]
    for wanted in (text, whole.id):
        with pytest.raises(UsageError, match="not one of the points"):
            forget_damaged(faulty.repository, plan(faulty), [wanted])
    assert len(points(faulty)) == 3


def test_a_damaged_point_that_is_pinned_is_not_ended(faulty):
    damaged = points(faulty)[-1]
    faulty.repository.pin(damaged, PIN)
    faulty.store.delete(only_pack(faulty, damaged))
    with pytest.raises(UsageError, match="is pinned"):
        forget_damaged(faulty.repository, plan(faulty.reopen()), [damaged.id])
    assert len(points(faulty)) == 3


# -- crashes and rivals ---------------------------------------------------------------------------
class Killed(BaseException):
    """SIGKILL, as near as one process can."""


@pytest.mark.parametrize("number", range(24))
def test_a_crash_at_any_step_loses_nothing_and_the_next_runs_finish(faulty, number):
    """Something of every kind is to be done; every step is a place to die."""
    contents = {point.id: noise(SMALL, seed) for seed, point in enumerate(points(faulty))}
    left = leave_pending(faulty)
    faulty.store.put("probe/aa/time", b"")
    end(faulty, points(faulty)[0])
    old = 8 * DAY
    steps = [0]

    def dies(step: str) -> None:
        steps[0] += 1
        if steps[0] == number + 1:
            raise Killed

    killed = 0
    for _ in range(4):
        try:
            collect(faulty.reopen(), later=old, trace=dies)
        except Killed:
            killed += 1
    assert killed == (number < steps[0])
    for _ in range(3):
        collect(faulty.reopen(), later=old)
    assert collect(faulty.reopen(), later=old) == Collected()
    fresh = faulty.reopen()
    assert len(points(fresh)) == 2
    for point in points(fresh):
        assert fresh.load(point) == [contents[point.id]]
    assert packs(fresh) == set().union(*(own_packs(fresh, point) for point in points(fresh)))
    assert left.name not in fresh.store.objects


def test_a_writer_that_relied_on_a_condemned_pack_begins_anew(faulty):
    """The pack is condemned after the writer's look at the tombstones, and before its check."""
    gone = points(faulty)[0]
    end(faulty, gone)
    collect(faulty)
    again = faulty.save([noise(SMALL, 0)])
    collect(faulty)
    assert faulty.reopen().load(again) == [noise(SMALL, 0)]


def test_two_collectors_that_take_turns_at_every_step_lose_nothing(faulty):
    end(faulty, points(faulty)[0])
    collect(faulty)
    turns = []

    def turn(step: str) -> None:
        if len(turns) < 6:
            turns.append(step)
            collect(faulty)

    collect(faulty, trace=turn)
    assert len(turns) == 6
    fresh = faulty.reopen()
    assert [fresh.load(point) for point in points(fresh)] == [[noise(SMALL, 1)], [noise(SMALL, 2)]]


def test_an_answer_that_was_lost_to_another_is_told_as_such(faulty):
    generations = faulty.repository.generations
    left = leave_pending(faulty)
    assert generations.give_up(left)
    assert not generations.give_up(left)


def test_a_manifest_under_the_name_of_another_point_makes_it_refuse(faulty):
    """A key holder can seal anything under any name."""
    point = points(faulty)[0]
    (name,) = (n for n in faulty.store.objects if n.startswith(POINTS) and point.id in n)
    other = replace(point.manifest, id=new_point_id())
    sealed = faulty.repository._sealer.seal_object(b"point", name, other.encode())
    faulty.store.put(name, sealed)
    faulty.store.put(final_object(point.id, name[-16:]), b"unreadable")
    (found,) = plan(faulty).damaged
    assert "the manifest of another point" in found.reasons[0]


class Edges:
    """33 leaves of zeroes, but for a block in the first and in the last, cut as bytes are: all of
    them at once would be half a gigabyte of memory."""

    leaves = 33
    zeroes = bytes(LEAF_BYTES)

    def __len__(self) -> int:
        return self.leaves * LEAF_BYTES

    def __getitem__(self, part):
        leaf = part.start // LEAF_BYTES
        assert (part.start, part.stop) == (leaf * LEAF_BYTES, (leaf + 1) * LEAF_BYTES)
        if leaf in (0, self.leaves - 1):
            return noise(BLOCK_BYTES, 50 + leaf) + bytes(LEAF_BYTES - BLOCK_BYTES)
        return self.zeroes


def test_a_map_without_a_root_and_one_of_two_levels_are_walked(faulty):
    """A disk of zeroes, and one with nodes above its level-1 nodes."""
    point = faulty.save([bytes(BLOCK_BYTES), Edges()], step=LEAF_BYTES)
    need = faulty.repository.generations.need()
    need.add(point.manifest)
    assert need.needed == faulty.repository.need(point.manifest)
    end(faulty, *points(faulty)[:-1])
    collect(faulty)
    collect(faulty)
    assert packs(faulty) == own_packs(faulty, point)


def test_a_node_that_belongs_elsewhere_is_no_node(faulty):
    """A disk that claims to be larger than its map is."""
    point = points(faulty)[0]
    (disk,) = point.manifest.disks
    larger = replace(point.manifest, disks=(replace(disk, size_bytes=33 * LEAF_BYTES),))
    need = faulty.repository.generations.need()
    need.add(larger)
    assert list(need.unread.values()) == ["a disk map is damaged: node belongs elsewhere"]


def test_what_is_locked_is_not_deleted_before_its_time(faulty, monkeypatch):
    left = leave_pending(faulty)
    end(faulty, points(faulty)[0])
    collect(faulty)
    faulty.repository.generations.give_up(left)
    until = [dt.datetime.now(dt.UTC) + HOUR]
    monkeypatch.setattr("drvm.store.first_versions.retained_until", lambda store, name: until[0])
    done = collect(faulty)
    assert (done.deleted, done.locked, done.cleared) == (0, 2, 0)
    until[0] -= 2 * HOUR
    done = collect(faulty)
    assert (done.deleted, done.locked, done.cleared) == (4, 0, 1)


def test_a_manifest_that_is_listed_and_not_found_was_not_ended(faulty):
    """A store that says 404 of an object once, and of no other."""
    point, *_ = points(faulty)
    for name in own_packs(faulty, point):
        faulty.store.put(tombstone(bytes.fromhex(name.removeprefix(PACKS))), b"")
    (manifest,) = (name for name in faulty.store.objects if point.id in name and POINTS in name)

    def errs(verb: str, name: str) -> None:
        if (verb, name) == ("get", manifest):
            raise ObjectMissing(f"there is no {name}")

    faulty.store.before = errs
    with pytest.raises(DamageFound, match=point.id):
        collect(faulty)
    faulty.store.before = lambda verb, name: None
    assert own_packs(faulty, point) <= packs(faulty)


@pytest.mark.parametrize("why", ["clock", "tampering"])
def test_damaged_points_are_ended_only_where_nothing_else_speaks_against_it(
    faulty, monkeypatch, why
):
    def tampered() -> None:
        raise TamperingFound("objects were changed by somebody")

    point, *_ = points(faulty)
    for name in own_packs(faulty, point):
        faulty.store.delete(name)
    if why == "tampering":
        monkeypatch.setattr(faulty.repository, "check_untouched", tampered)
    now = dt.datetime.now(dt.UTC)
    host = now + DAY if why == "clock" else now
    planned = plan_gc(survey(faulty.repository, now), Now(host, now), AT_ONCE)
    assert [damaged.generation.point_id for damaged in planned.damaged] == [point.id]
    before = set(faulty.store.objects)
    with pytest.raises(RepositoryError, match=why if why == "clock" else "changed"):
        forget_damaged(faulty.repository, planned, [point.id])
    assert set(faulty.store.objects) == before


def test_tampering_means_no_collection(faulty, monkeypatch):
    def tampered() -> None:
        raise TamperingFound("objects were changed by somebody")

    end(faulty, points(faulty)[0])
    monkeypatch.setattr(faulty.repository, "check_untouched", tampered)
    planned = plan(faulty)
    with pytest.raises(TamperingFound):
        run_gc(faulty.repository, planned, Collected())
    assert planned.condemn == ()


def test_a_disk_that_was_unmounted_meanwhile_is_no_empty_repository(faulty):
    """An empty directory is left: nothing is listed there, and no point is made in it."""
    mounted = dict(faulty.store.objects)
    manifest = points(faulty)[0].manifest

    def unmounted(verb: str, name: str) -> None:
        if (verb, name) == ("list", POINTS):
            faulty.store.objects.clear()

    faulty.store.before = unmounted
    with pytest.raises(StoreRefused, match="not there any more"):
        collect(faulty)
    with pytest.raises(StoreRefused, match="not there any more"):
        faulty.repository.commit(manifest)
    assert faulty.store.objects == {}
    faulty.store.objects.update(mounted)


def test_only_points_that_need_what_is_lost_are_looked_at_once_more(faulty, monkeypatch):
    """Each by itself: where points share nodes that is what costs."""
    damaged, *_ = points(faulty)
    faulty.store.delete(min(own_packs(faulty, damaged)))
    looked: list[str] = []
    judge = _Needs._judge

    def counted(self, generation, decided, lost):
        looked.append(generation.point_id)
        return judge(self, generation, decided, lost)

    monkeypatch.setattr(_Needs, "_judge", counted)
    assert [found.generation.point_id for found in plan(faulty).damaged] == [damaged.id]
    assert looked == [damaged.id]


def test_only_the_first_reasons_of_much_damage_are_told(faulty):
    contents = [noise(SMALL, seed) for seed in range(60, 65)]
    for content in contents:
        faulty.save([content])
    whole = faulty.save(contents)
    data = {n for d in whole.manifest.disks for n in faulty.repository.disk_map(d).packs()}
    data -= {disk.root.ref().pack for disk in whole.manifest.disks}
    for name in data:
        faulty.store.delete(pack_object(name))
    (found,) = (d for d in plan(faulty).damaged if d.generation.point_id == whole.id)
    assert len(found.reasons) == 4 and found.reasons[-1] == "and 2 more"


def test_a_point_that_is_ended_while_it_is_judged_is_no_damage(faulty):
    damaged = points(faulty)[-1]
    faulty.store.delete(only_pack(faulty, damaged))
    vault = faulty.reopen()
    (name,) = (n for n in faulty.store.objects if n.startswith(POINTS) and damaged.id in n)

    def ends(verb: str, asked: str) -> None:
        if (verb, asked) == ("head", name):
            faulty.store.objects.pop(name, None)

    faulty.store.before = ends
    assert plan(vault).damaged == ()


def test_a_point_is_given_up_once(faulty):
    left = leave_pending(faulty)
    planned = plan(faulty, later=8 * DAY)
    faulty.repository.generations.give_up(left)
    run_gc(faulty.repository, planned, done := Collected())
    assert done.given_up == 0


def test_a_point_without_blobs_whose_nodes_are_lost_makes_it_refuse(faulty):
    """Beside a manifest that can't be read either."""
    whole = points(faulty)[-1]
    bare = faulty.repository.commit(replace(whole.manifest, id=new_point_id(), definition=None))
    (name,) = (n for n in faulty.store.objects if n.startswith(POINTS) and whole.id in n)
    faulty.store.put(name, b"noise")
    faulty.store.delete(pack_object(bare.manifest.disks[0].root.ref().pack))
    found = plan(faulty.reopen()).damaged
    assert {damaged.generation.point_id for damaged in found} == {whole.id, bare.id}
