"""Points in a second repository: the same bytes, under its own keys, whatever happens meanwhile."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from drvm.chunker.blocks import BLOCK_BYTES, LEAF_BYTES
from drvm.core.errors import DrvmError, StoreUnreachable, UsageError
from drvm.core.ids import new_point_id
from drvm.core.progress import NoProgress, Trace, no_trace
from drvm.repository import pack
from drvm.repository.layout import (
    CONDEMNED,
    CONFIG,
    FINALS,
    KEYS,
    PACKS,
    POINTS,
    pack_object,
    point_object,
)
from drvm.repository.pins import Pin
from drvm.repository.points import Point
from drvm.upkeep.copy import Copied, CopyPlan, plan_copy, run_copy
from drvm.upkeep.rewrite import rewrite_point
from tests.fakes.clock import FakeClock
from tests.unit.repository.conftest import Vault, new_vault
from tests.unit.repository.faults import FaultyStore
from tests.unit.repository.test_round_trip import noise

NVRAM = b"variables" * 100
OTHER_VM = "22222222-2222-4333-8444-555555555555"


@pytest.fixture(autouse=True)
def small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a frame or two, so that a small disk needs many."""
    monkeypatch.setattr(pack, "PACK_MAX_BYTES", pack._TABLES_RESERVE_BYTES + 150_000)


def blocks(*seeds: int) -> bytes:
    """A block per seed, of zeroes for 0."""
    return b"".join(noise(BLOCK_BYTES, seed) if seed else bytes(BLOCK_BYTES) for seed in seeds)


HISTORY = [
    [blocks(*range(1, 101)), blocks(7, 8)],
    [blocks(*range(1, 40), *range(201, 211), 0, 0, *range(52, 101)) + b"end", blocks(7, 8)],
    [blocks(*range(1, 40), *range(201, 211)), blocks(7, 9), blocks(*range(301, 340))],
]
"""Of the disks of one machine: changed in the middle and grown by a little; cut, one more disk."""


@pytest.fixture
def source() -> Vault:
    vault, parent = new_vault(FaultyStore()), None
    for disks in HISTORY:
        parent = vault.save(disks, parent, nvram=NVRAM)
    return vault


@pytest.fixture
def target() -> Vault:
    return new_vault(FaultyStore())


def plan(source: Vault, target: Vault, named: frozenset[str] = frozenset()) -> CopyPlan:
    listing = source.repository.points()
    wanted: Callable[[Point], bool] = lambda point: not named or point.id in named  # noqa: E731
    return plan_copy(source.repository, target.repository, listing, wanted, named)


def copy(
    source: Vault,
    target: Vault,
    named: frozenset[str] = frozenset(),
    trace: Trace = no_trace,
    planned: CopyPlan | None = None,
) -> Copied:
    return run_copy(
        source.repository,
        target.repository,
        planned or plan(source, target, named),
        writer="copier",
        level=1,
        clock=FakeClock(),
        progress=NoProgress(),
        trace=trace,
    )


def points(vault: Vault) -> tuple[Point, ...]:
    return vault.repository.points().points


def assert_holds_the_history(target: Vault) -> None:
    """Read by somebody who has only the target."""
    fresh = target.reopen()
    assert [fresh.load(point) for point in points(fresh)] == HISTORY
    for point in points(fresh):
        assert fresh.repository.blob(point.manifest.definition) == b"<domain/>"
        assert fresh.repository.blob(point.manifest.nvram) == NVRAM


def test_copies_restore_when_the_source_is_gone(source, target):
    ids = [point.id for point in points(source)]
    copied = copy(source, target)
    source.store.objects.clear()
    assert [point.id for point in copied.points] == ids
    assert_holds_the_history(target)


def test_the_manifest_says_the_same_and_where_it_came_from(source, target):
    copy(source, target)
    ours = ("disks", "definition", "nvram", "stored_bytes", "copied_from")
    for theirs, copied in zip(points(source), points(target), strict=True):
        for name in theirs.manifest.__struct_fields__:
            if name not in ours:
                assert getattr(copied.manifest, name) == getattr(theirs.manifest, name)
        origin = copied.manifest.copied_from
        assert (origin.repository, origin.host) == (source.repository.id, "copier")
        assert theirs.manifest.copied_from is None
        assert copied.generation != theirs.generation


def test_the_state_of_a_tpm_comes_along(source, target):
    first = points(source)[0].manifest
    files = {"tpm2-00.permall": first.nvram, "tpm2-00.savestate": first.definition}
    source.repository.commit(replace(first, id="ab" * 8, tpm=files))
    copy(source, target)
    (made,) = [point for point in points(target) if point.id == "ab" * 8]
    assert target.reopen().repository.tpm_state(made.manifest) == {
        "tpm2-00.permall": NVRAM,
        "tpm2-00.savestate": b"<domain/>",
    }


def test_a_second_copy_writes_nothing(source, target):
    copy(source, target)
    target.store.calls.clear()
    again = copy(source, target)
    assert again.points == ()
    assert {state.state for state in plan(source, target).points} == {"there"}
    assert {call.split()[0] for call in target.store.calls} <= {"list", "get", "tail", "head"}


def test_planning_writes_nothing(source, target):
    target.store.calls.clear()
    source.store.calls.clear()
    assert len(plan(source, target).going) == 3
    verbs = {call.split()[0] for call in (*target.store.calls, *source.store.calls)}
    assert verbs <= {"list", "get", "tail", "head"}


def test_points_that_come_later_are_copied_with_what_is_new_in_them(source, target):
    copy(source, target)
    content = bytearray(HISTORY[2][2])
    content[5 * BLOCK_BYTES : 6 * BLOCK_BYTES] = noise(BLOCK_BYTES, 999)
    newest = source.save([*HISTORY[2][:2], bytes(content)], points(source)[2], nvram=NVRAM)
    read = blocks_read(source)
    (made,) = copy(source, target).points
    assert read() <= 32  # blocks of one frame
    assert [disk.new_bytes for disk in made.manifest.disks] == [0, 0, BLOCK_BYTES]
    assert target.reopen().load(made) == [*HISTORY[2][:2], bytes(content)]
    assert made.id == newest.id


def blocks_read(vault: Vault) -> Callable[[], int]:
    """Tells how many data blocks were fetched since."""
    count = 0
    frames = vault.repository.packs.frames

    def counted(name, numbers):
        nonlocal count
        for plain in frames(name, numbers):
            count += len(plain) // BLOCK_BYTES
            yield plain

    vault.repository.packs.frames = counted
    return lambda: count


def test_leaves_that_are_as_before_are_not_read_at_all(source, target):
    old = source.save([noise(50 * BLOCK_BYTES, 5) + bytes(LEAF_BYTES) + blocks(1, 2)])
    copy(source, target)
    read = blocks_read(source)
    content = noise(50 * BLOCK_BYTES, 5) + bytes(LEAF_BYTES) + blocks(1, 3)
    new = source.save([content], old)
    copy(source, target)
    assert read() <= 32
    theirs = source.repository.disk_map(new.manifest.disks[0])
    (made,) = [point for point in points(target) if point.id == new.id]
    ours = target.repository.disk_map(made.manifest.disks[0])
    (base,) = [point for point in points(target) if point.id == old.id]
    before = target.repository.disk_map(base.manifest.disks[0])
    assert ours.leaf_child(0) == before.leaf_child(0) != theirs.leaf_child(0)
    assert target.reopen().load(made) == [content]


def test_blocks_that_another_point_of_the_target_has_are_stored_once(source, target):
    target.save([HISTORY[0][0]])
    (first, *_) = copy(source, target).points
    assert first.manifest.disks[0].new_bytes == 0
    assert_holds_the_history_of(target, [first.id], [HISTORY[0]])


def assert_holds_the_history_of(target: Vault, ids: list[str], history: list[list[bytes]]) -> None:
    fresh = target.reopen()
    found = {point.id: point for point in points(fresh)}
    assert [fresh.load(found[identity]) for identity in ids] == history


def test_what_is_asked_for_is_copied_and_nothing_else(source, target):
    chosen = points(source)[1].id
    copied = copy(source, target, frozenset({chosen}))
    assert [point.id for point in copied.points] == [chosen]
    assert_holds_the_history_of(target, [chosen], [HISTORY[1]])
    rest = copy(source, target)
    assert len(rest.points) == 2
    assert_holds_the_history(target)


# -- keys --------------------------------------------------------------------------------------
def test_the_target_opens_by_its_own_keys_only(source, target):
    copy(source, target)
    theirs, ours = source.repository._sealer, target.repository._sealer
    sealed = {POINTS: b"point", FINALS: b"final"}
    seen = 0
    for name, (data, _) in target.store.objects.items():
        purpose = next((p for prefix, p in sealed.items() if name.startswith(prefix)), None)
        if purpose is not None:
            ours.open_object(purpose, name, data)
            with pytest.raises(DrvmError):
                theirs.open_object(purpose, name, data)
            seen += 1
        elif name.startswith(PACKS):
            stranger = type(source.repository.packs)(target.store, theirs)
            with pytest.raises(DrvmError):
                stranger.open(bytes.fromhex(name.removeprefix(PACKS)))
            target.repository.packs.open(bytes.fromhex(name.removeprefix(PACKS)))
            seen += 1
    assert seen > 10


def test_no_object_and_no_pack_name_of_the_source_is_in_the_target(source, target):
    before = {name for name in target.store.objects if name.startswith(KEYS)}
    copy(source, target)
    names = {n.removeprefix(PACKS) for n in source.store.objects if n.startswith(PACKS)}
    common = set(source.store.objects) & set(target.store.objects) - {CONFIG}
    assert common == set()
    assert {name for name in target.store.objects if name.startswith(KEYS)} == before
    for point in points(target):
        assert not {pack.hex() for pack in target.repository.need(point.manifest)} & names


def test_a_repository_is_not_copied_into_itself(source):
    with pytest.raises(UsageError):
        plan(source, source.reopen())


# -- what goes on meanwhile --------------------------------------------------------------------
def ends(vault: Vault, point: Point, *, packs: bool) -> None:
    """As retention, or a collector that has rewritten it, and then a collector."""
    manifest = point.manifest
    vault.store.delete(point_object(manifest.vm_uuid, point.id, point.generation))
    if packs:
        kept = frozenset().union(*(vault.repository.need(p.manifest) for p in points(vault)))
        for name in [n for n in vault.store.objects if n.startswith(PACKS)]:
            if bytes.fromhex(name.removeprefix(PACKS)) not in kept:
                vault.store.delete(name)


def test_a_point_that_is_removed_from_the_source_meanwhile_is_told_and_the_rest_is_copied(
    source, target
):
    planned = plan(source, target)
    ends(source, points(source)[1], packs=True)
    copied = copy(source.reopen(), target, planned=planned)
    assert [point.id for point in copied.gone] == [planned.going[1].id]
    assert copied.failed == ()
    assert_holds_the_history_of(
        target, [planned.going[0].id, planned.going[2].id], [HISTORY[0], HISTORY[2]]
    )


def test_a_point_that_is_rewritten_meanwhile_is_read_by_its_new_generation(source, target):
    planned = plan(source, target)
    old = points(source)[1]
    every = source.repository.need(old.manifest)
    rewrite_point(source.repository, old, every, level=1)
    ends(source, old, packs=True)
    copied = copy(source.reopen(), target, planned=planned)
    assert (copied.gone, copied.failed) == ((), ())
    assert_holds_the_history(target)


def test_a_damaged_point_is_named_and_the_others_are_copied(source, target):
    third = points(source)[2]
    third_disk = source.repository.disk_map(third.manifest.disks[2])
    only = max(third_disk.packs() - source.repository.need(points(source)[1].manifest))
    source.store.delete(pack_object(only))
    copied = copy(source.reopen(), target)
    assert [point.id for point, _ in copied.failed] == [third.id]
    assert "missing" in copied.failed[0][1].message
    assert_holds_the_history_of(target, [point.id for point in points(source)[:2]], HISTORY[:2])


def test_a_point_whose_forerunner_is_damaged_is_copied_all_the_same(target):
    source = new_vault()
    first = source.save([blocks(*range(1, 50))])
    second = source.save([blocks(*range(2, 51))], first)
    copy(source, target, frozenset({first.id}))
    theirs = source.repository.need(first.manifest) - source.repository.need(second.manifest)
    assert first.manifest.disks[0].root.ref().pack in theirs
    for name in theirs:
        source.store.delete(pack_object(name))
    copied = copy(source.reopen(), target, frozenset({second.id}))
    assert copied.failed == ()
    assert_holds_the_history_of(target, [second.id], [[blocks(*range(2, 51))]])


def test_a_flipped_bit_in_the_source_never_reaches_the_target(source, target):
    first = points(source)[0]
    for name in source.repository.disk_map(first.manifest.disks[0]).packs():
        data = bytearray(source.store.objects[pack_object(name)][0])
        data[100] ^= 1
        source.store.put(pack_object(name), bytes(data))
    copied = copy(source.reopen(), target)
    assert first.id in {point.id for point, _ in copied.failed}
    for point in points(target):
        assert target.reopen().load(point) in HISTORY


def test_packs_of_the_target_that_are_condemned_meanwhile_are_left(source, target):
    copy(source, target, frozenset({points(source)[0].id}))
    condemned: list[str] = []

    def trace(step: str) -> None:
        if step == "manifest-created" and not condemned:
            condemned.extend(n.removeprefix(PACKS) for n in target.store.objects if PACKS in n)
            for name in condemned:
                target.store.put(CONDEMNED + name, b"")

    copy(source, target, trace=trace)
    assert condemned
    dead = {bytes.fromhex(name) for name in condemned}
    for point in points(target)[1:]:
        assert not target.repository.need(point.manifest) & dead
    assert_holds_the_history(target)


class Killed(BaseException):
    pass


STEPS = [
    "written vda", "written vdb", "data-stored", "index-shared", "manifest-created",
    "condemned-listed", "packs-checked", "final-created",
]  # fmt: skip


def test_the_steps_of_a_copy_are_these(source, target):
    steps: list[str] = []
    copy(source, target, frozenset({points(source)[0].id}), trace=steps.append)
    assert steps == STEPS


@pytest.mark.parametrize("nth", [1, 2])
@pytest.mark.parametrize("step", STEPS)
def test_killed_at_any_step_it_goes_on_where_it_was(source, target, step, nth):
    left = nth

    def trace(reached: str) -> None:
        nonlocal left
        left -= reached == step
        if not left:
            raise Killed

    with pytest.raises(Killed):
        copy(source, target, trace=trace)
    survivor = target.reopen()
    for point in points(survivor):
        assert survivor.load(point) in HISTORY
    stored = [name for name in target.store.objects if name.startswith(PACKS)]
    copy(source.reopen(), survivor)
    assert_holds_the_history(survivor)
    if step not in ("written vda", "written vdb"):
        data = [n for n in target.store.objects if n.startswith(PACKS) and n not in stored]
        whole = new_vault()
        copy(source.reopen(), whole)
        assert len(data) < len([n for n in whole.store.objects if n.startswith(PACKS)])


@pytest.mark.parametrize("step", STEPS)
def test_two_copies_at_once_make_good_points(source, target, step):
    other = target.reopen()
    begun = False

    def trace(reached: str) -> None:
        nonlocal begun
        if reached == step and not begun:
            begun = True
            copy(source.reopen(), other)

    copy(source, target, trace=trace)
    assert begun
    assert_holds_the_history(target)


@pytest.mark.parametrize(
    ("side", "verb"),
    [("source", "get"), ("target", "put"), ("target", "create"), ("target", "list")],
)
def test_a_store_that_is_away_ends_it_and_the_next_run_goes_on(source, target, side, verb):
    planned = plan(source, target)
    store = (source if side == "source" else target).store

    def away(called: str, name: str) -> None:
        if called == verb:
            raise StoreUnreachable("no answer")

    store.before = away
    with pytest.raises(StoreUnreachable):
        copy(source, target, planned=planned)
    store.before = lambda verb, name: None
    copy(source.reopen(), target.reopen())
    assert_holds_the_history(target)


# -- removed points, pins ----------------------------------------------------------------------
def test_what_the_target_has_removed_is_not_copied_again_unless_it_is_named(source, target):
    copy(source, target)
    first = points(target)[0]
    target.repository.end_point(first)
    assert [p.state for p in plan(source, target).points] == ["removed", "there", "there"]
    assert copy(source, target).points == ()
    copied = copy(source, target, frozenset({first.id}))
    assert [point.id for point in copied.points] == [first.id]
    assert_holds_the_history(target)


def test_a_point_whose_copy_is_damaged_is_copied_again(source, target):
    copy(source, target)
    (name, *_) = [n for n in target.store.objects if n.startswith(POINTS)]
    target.store.put(name, b"")
    assert [p.state for p in plan(source, target).points].count("copy") == 1
    copy(source, target)
    assert_holds_the_history(target)


PIN = Pin("before the upgrade", "2026-11-23T04:00:00.000000Z", "kvm1")


def test_pins_come_along_and_are_not_taken_off_again(source, target):
    first, second, _ = points(source)
    source.repository.pin(first, PIN)
    assert copy(source, target).pins == 1
    assert target.repository.pins() == {first.id: (PIN,)}
    source.repository.pin(second, replace(PIN, note="later"))
    source.repository.unpin(first.id)
    assert copy(source, target).pins == 1
    assert set(target.repository.pins()) == {first.id, second.id}


# -- any history -------------------------------------------------------------------------------
@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40
)
@given(st.data())
def test_any_history_is_copied_whatever_the_target_has_of_it(data):
    source, target = new_vault(), new_vault()
    seeds = random.Random(data.draw(st.integers(0, 1 << 30)))
    parents: dict[str, Point | None] = {}
    history: dict[str, list[bytes]] = {}
    for _ in range(data.draw(st.integers(1, 5))):
        disks = []
        for _ in range(data.draw(st.integers(0, 2))):
            count = data.draw(st.sampled_from([0, 1, 33, 70]))
            numbers = [seeds.choice([0, *range(1, 90)]) for _ in range(count)]
            disks.append(blocks(*numbers) + bytes(data.draw(st.sampled_from([0, 5]))))
        line = data.draw(st.sampled_from(["a", "b"]))
        made = source.save(disks, parents.get(line))
        parents[line], history[made.id] = made, disks
        if data.draw(st.booleans()):
            copy(source, target)
        if data.draw(st.booleans()) and points(target):
            chosen = data.draw(st.sampled_from([point.id for point in points(target)]))
            (point,) = [p for p in points(target) if p.id == chosen]
            target.repository.end_point(point)
            target.store.put(f"{FINALS}{new_point_id()}.{'0' * 16}", b"")
    copy(source, target, frozenset(history))
    source.store.objects.clear()
    fresh = target.reopen()
    found = {point.id: fresh.load(point) for point in points(fresh)}
    assert found == history
