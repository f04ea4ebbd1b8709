"""Retiring packs: which are worth it, what is written anew for it, and what a crash leaves."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace

import pytest
from msgspec.structs import replace as altered

from drvm.chunker.blocks import BLOCK_BYTES, LEAF_BYTES
from drvm.core.errors import DamageFound
from drvm.core.ids import new_point_id
from drvm.repository.layout import pack_object
from drvm.repository.nodes import Child, Node
from drvm.repository.packs import BlobRef
from drvm.repository.points import Point
from drvm.store import first_versions
from drvm.upkeep import retire
from drvm.upkeep.retire import Retired, RetirePlan, RetireRules, _Sample, plan_retire, run_retire
from drvm.upkeep.rewrite import rewrite_point
from drvm.upkeep.survey import survey
from tests.unit.repository.conftest import VM, Vault, new_vault
from tests.unit.repository.faults import FaultyStore
from tests.unit.repository.test_round_trip import SMALL, noise
from tests.unit.upkeep.test_gc import collect, end, leave_pending, packs, points

DAYS = dt.timedelta(days=2)
RULES = RetireRules(most_bytes=1 << 30)
BLOCKS = SMALL // BLOCK_BYTES


@pytest.fixture
def faulty() -> Vault:
    return new_vault(FaultyStore())


def plan(vault: Vault, rules: RetireRules = RULES, later: dt.timedelta = DAYS) -> RetirePlan:
    now = dt.datetime.now(dt.UTC) + later
    return plan_retire(vault.repository, survey(vault.repository, now), rules)


def done(vault: Vault, planned: RetirePlan) -> Retired:
    retired = Retired()
    run_retire(vault.repository, planned, retired, level=1)
    return retired


def mostly_dead(vault: Vault) -> tuple[Point, bytes]:
    """A point that needs four blocks of forty of the pack of one that was ended."""
    whole = vault.save([noise(SMALL)])
    content = noise(SMALL)[: 4 * BLOCK_BYTES] + bytes(SMALL - 4 * BLOCK_BYTES)
    small = vault.save([content], whole)
    end(vault, whole)
    return small, content


def test_a_pack_of_which_little_is_needed_goes_and_the_point_stays(faulty):
    point, content = mostly_dead(faulty)
    planned = plan(faulty)
    assert [group.why for group in planned.groups] == ["10% of it is needed"]
    assert [generation.generation for generation in planned.points] == [point.generation]
    assert 0 < planned.write_bytes < SMALL // 4
    assert done(faulty, planned) == Retired(condemned=1, rewritten=1)
    for _ in range(2):
        collect(faulty)
    (left,) = points(faulty)
    assert (left.id, left.generation != point.generation) == (point.id, True)
    assert faulty.reopen().load(left) == [content]
    assert not {pack_object(name) for name in planned.packs} & packs(faulty)
    stored = sum(len(data) for name, (data, _) in faulty.store.objects.items() if "packs" in name)
    assert stored < SMALL // 2


def test_what_was_written_anew_is_not_retired_again(faulty):
    mostly_dead(faulty)
    done(faulty, plan(faulty))
    assert plan(faulty) == RetirePlan()


def test_a_pack_that_is_needed_as_a_whole_stays(faulty):
    faulty.save([noise(SMALL)])
    assert plan(faulty) == RetirePlan()


def test_blocks_that_only_a_pending_point_needs_are_alive(faulty):
    """The whole point is not good any more, but may become so."""
    mostly_dead(faulty)
    leave_pending(faulty, noise(SMALL))
    assert plan(faulty) == RetirePlan()


@pytest.mark.parametrize(
    "rules",
    [
        replace(RULES, most_bytes=100),
        replace(RULES, most_points=0),
        replace(RULES, age=3 * DAYS),
        replace(RULES, settled=3 * DAYS),
        replace(RULES, most_leaves=0),
        replace(RULES, dead_share=0.05),
    ],
    ids=["bytes", "points", "young-pack", "young-point", "leaves", "share"],
)
def test_the_bounds_of_a_run_hold(faulty, rules):
    mostly_dead(faulty)
    assert plan(faulty, rules) == RetirePlan()


def test_no_locked_pack_and_no_pack_of_a_locked_point_is_retired(faulty, monkeypatch):
    mostly_dead(faulty)
    until = dt.datetime.now(dt.UTC) + 3 * DAYS
    for prefix in ("packs/", "points/"):
        monkeypatch.setattr(
            first_versions,
            "retained_until",
            lambda store, name, prefix=prefix: until if name.startswith(prefix) else None,
        )
        assert plan(faulty) == RetirePlan()
        assert plan(faulty, later=4 * DAYS) != RetirePlan()


def test_every_pack_has_its_turn(faulty):
    for seed in range(6):
        whole = faulty.save([noise(SMALL, seed)])
        faulty.save([noise(SMALL, seed)[:BLOCK_BYTES] + bytes(SMALL - BLOCK_BYTES)], whole)
        end(faulty, whole)
    rules = replace(RULES, sample=4)
    daily = [plan(faulty, rules, later=DAYS + dt.timedelta(days=n)).packs for n in range(6)]
    assert len(frozenset().union(*daily)) == 6
    assert max(map(len, daily)) < 6


def many_small(vault: Vault, count: int) -> tuple[list[Point], list[bytes]]:
    """A machine each of whose points stores one block more."""
    made: list[Point] = []
    contents = []
    for number in range(count):
        content = noise((number + 1) * BLOCK_BYTES) + bytes(SMALL - (number + 1) * BLOCK_BYTES)
        made.append(vault.save([content], made[-1] if made else None))
        contents.append(content)
    return made, contents


def test_many_small_packs_become_one_and_every_point_stays(faulty):
    made, contents = many_small(faulty, 16)
    planned = plan(faulty)
    assert len(planned.packs) == 16 and len(planned.points) == 16
    assert planned.points[0].point_id == made[-1].id
    assert done(faulty, planned).rewritten == 16
    for _ in range(2):
        collect(faulty)
    fresh = faulty.reopen()
    assert [point.id for point in points(fresh)] == [point.id for point in made]
    assert [fresh.load(point) for point in points(fresh)] == [[content] for content in contents]
    needed = set().union(*(fresh.repository.need(point.manifest) for point in points(fresh)))
    kinds = [fresh.repository.packs.open(name).footer.kind for name in needed]
    assert kinds.count("data") == 1
    assert plan(fresh) == RetirePlan()


def test_of_many_small_packs_so_many_go_together_as_may_be_written(faulty):
    many_small(faulty, 20)
    sizes = sorted(len(data) for name, (data, _) in faulty.store.objects.items() if "packs" in name)
    planned = plan(faulty, replace(RULES, most_bytes=17 * sizes[-1]))
    assert 16 <= len(planned.packs) < 20
    assert planned.write_bytes <= 17 * sizes[-1]
    assert len(plan(faulty, replace(RULES, sample=18)).packs) == 18


def test_every_machine_has_its_turn(faulty):
    base = faulty.save([noise(SMALL)]).manifest
    base = altered(base, disks=(altered(base.disks[0], size_bytes=3 * LEAF_BYTES),))
    latest = {str(n): altered(base, vm=str(n)) for n in range(5)}
    today = dt.datetime(2026, 11, 23, tzinfo=dt.UTC)
    turns = [
        [m.vm for m in retire._in_turn(latest, today + dt.timedelta(days=n), 7)] for n in range(5)
    ]
    assert [len(turn) for turn in turns] == [2] * 5
    assert {vm for turn in turns for vm in turn} == set(latest)
    assert [m.vm for m in retire._in_turn(latest, today, 1)] == turns[0][:1]
    assert [*retire._in_turn({}, today, 1)] == []


def test_few_small_packs_stay(faulty):
    many_small(faulty, 15)
    assert plan(faulty) == RetirePlan()


def test_a_pack_that_the_latest_point_reads_again_and_again_is_put_together(faulty, monkeypatch):
    """Its one frame is wanted in three windows of the disk."""
    monkeypatch.setattr(retire, "WINDOW_LEAVES", 1)
    content = bytearray(3 * LEAF_BYTES)
    for leaf in range(3):
        at = leaf * LEAF_BYTES
        content[at : at + 2 * BLOCK_BYTES] = noise(2 * BLOCK_BYTES, leaf)
    faulty.save([content], step=LEAF_BYTES)
    (group,) = plan(faulty).groups
    assert "reads its frames 3 times" in group.why


def test_a_point_ended_before_its_turn_does_not_come_back(faulty):
    point, _ = mostly_dead(faulty)
    planned = plan(faulty)
    end(faulty, point)
    assert done(faulty, planned) == Retired(condemned=1)
    assert points(faulty) == ()


def test_a_point_that_cannot_be_read_stays_as_it_was(faulty):
    point, _ = mostly_dead(faulty)
    planned = plan(faulty)
    (lost,) = planned.packs
    data, stored = faulty.store.objects[pack_object(lost)]
    faulty.store.objects[pack_object(lost)] = (bytes(64) + data[64:], stored)
    vault = faulty.reopen()
    assert done(vault, planned) == Retired(condemned=1, failed=1)
    assert points(vault) == (point,)


class Killed(BaseException):
    """SIGKILL, as near as one process can."""


@pytest.mark.parametrize("number", range(12))
def test_a_crash_at_any_step_leaves_the_point_good_and_the_next_runs_finish(faulty, number):
    _, content = mostly_dead(faulty)
    steps: list[str] = []

    def dies(step: str) -> None:
        steps.append(step)
        if len(steps) == number + 1:
            raise Killed

    try:
        run_retire(faulty.repository, plan(faulty), Retired(), level=1, trace=dies)
    except Killed:
        pass
    else:
        assert steps[-1] == "manifest-deleted" and len(steps) <= number
    fresh = faulty.reopen()
    assert fresh.load(points(fresh)[0]) == [content]
    done(fresh, plan(fresh))
    for _ in range(2):
        collect(fresh, later=DAYS)
    again = faulty.reopen()
    assert [again.load(left) for left in points(again)] == [[content]]


def test_points_of_other_machines_that_share_a_pack_are_written_anew_too(faulty):
    point, content = mostly_dead(faulty)
    other = faulty.repository.commit(altered(point.manifest, id=new_point_id(), vm="db1"))
    planned = plan(faulty)
    assert {generation.point_id for generation in planned.points} == {point.id, other.id}
    assert done(faulty, planned).rewritten == 2
    for _ in range(2):
        collect(faulty)
    fresh = faulty.reopen()
    assert [fresh.load(left) for left in points(fresh)] == [[content]] * 2


def test_what_was_given_up_is_not_looked_at(faulty):
    """Its blocks are dead, though its manifest is still there."""
    mostly_dead(faulty)
    leave_pending(faulty, noise(SMALL))
    generations = faulty.repository.generations
    for generation in generations.listed():
        generations.give_up(generation)  # of those that are decided nothing changes
    assert len(plan(faulty).packs) == 1


def test_a_point_ended_since_the_survey_is_left_out(faulty):
    point, _ = mostly_dead(faulty)
    now = dt.datetime.now(dt.UTC) + DAYS
    found = survey(faulty.repository, now)
    end(faulty, point)
    assert plan_retire(faulty.repository, found, RULES) == RetirePlan()


@pytest.mark.parametrize("part", ["points/", "root"])
def test_a_damaged_generation_of_a_point_that_is_whole_by_another_is_left_out(faulty, part):
    """A collector does not refuse for it; so it must not end in an error every day."""
    point, _ = mostly_dead(faulty)
    whole = rewrite_point(faulty.repository, point, faulty.repository.need(point.manifest), level=1)
    assert points(faulty)[0].generation == whole.generation
    root = pack_object(point.manifest.disks[0].root.ref().pack)
    name = root if part == "root" else f"points/{VM}/{point.id}.{point.generation}"
    faulty.store.put(name, b"noise")
    fresh = faulty.reopen()
    collect(fresh)
    assert plan(fresh) == RetirePlan()


def test_a_leaf_that_cannot_be_read_stops_the_planning(faulty, monkeypatch):
    mostly_dead(faulty)

    def damaged(*_: object) -> None:
        raise ValueError("it has no runs")

    monkeypatch.setattr(retire, "decode_leaf", damaged)
    with pytest.raises(DamageFound, match="it has no runs"):
        plan(faulty)


def test_a_point_ended_between_plan_and_run_is_passed_over(faulty):
    point, _ = mostly_dead(faulty)
    planned = plan(faulty)
    ended: list[str] = []

    def ends(step: str) -> None:
        if step == "data-stored" and not ended:
            ended.append(step)
            end(faulty, point)

    retired = Retired()
    run_retire(faulty.repository, planned, retired, level=1, trace=ends)
    assert (retired.rewritten, points(faulty)) == (0, ())


def test_a_manifest_that_is_not_the_one_its_final_names_is_not_written_anew(faulty):
    """Whoever holds a key could have sealed another in its place since it was surveyed."""
    point, _ = mostly_dead(faulty)
    planned = plan(faulty)
    (generation,) = planned.points
    lie = altered(point.manifest, vm="another").encode()
    sealed = faulty.repository._sealer.seal_object(b"point", generation.name, lie)
    faulty.store.put(generation.name, sealed)
    assert done(faulty, planned) == Retired(condemned=1, failed=1)
    assert len(faulty.repository.generations.listed()) == 1


def test_a_leaf_that_was_seen_is_none_beyond_the_bound():
    child = Child(BlobRef(bytes(32), 1), packs=(b"a" * 32,))
    node = Node(1, 1, {0: child})
    sample = _Sample(frozenset(child.packs), 1)
    sample.look(node)
    sample.look(node)
    assert sample.beyond == set()
    sample.look(Node(1, 1, {0: Child(BlobRef(bytes(32), 2), packs=child.packs)}))
    assert sample.beyond == set(child.packs)
