"""Locks are lengthened for what stays; what somebody changed or what is locked does not go."""

import datetime as dt
from types import SimpleNamespace
from typing import cast

import pytest

from drvm.core.errors import StoreRefused, TamperingFound
from drvm.core.progress import NoProgress
from drvm.repository.keys import UNNAMED
from drvm.repository.layout import (
    CHECKS,
    CONDEMNED,
    CONFIG,
    FINALS,
    INDEX,
    KEYS,
    LEAVING,
    LOCKED,
    LOOSE,
    PACKS,
    POINTS,
    pack_object,
    slot_object,
    tombstone,
)
from drvm.repository.pins import Pin
from drvm.repository.points import Point
from drvm.store.first_versions import FirstVersions
from drvm.store.history import LockRule
from drvm.upkeep.gc import Collected, Doomed, GcPlan, run_gc
from drvm.upkeep.locks import LockPlan, plan_locks, run_locks
from drvm.upkeep.prune import PrunePlan, plan_prune, run_prune
from drvm.upkeep.retention import Now, Rules
from drvm.upkeep.retire import Retired, RetirePlan, Retiring, run_retire
from drvm.upkeep.survey import survey
from drvm.wiring.assembly import Wiring
from drvm.wiring.upkeep import later_versions
from tests.fakes.clock import FakeClock
from tests.fakes.versioned_store import VersionedMemory
from tests.unit.repository.conftest import Vault, new_vault
from tests.unit.repository.test_round_trip import SMALL, noise

RULE = LockRule("governance", 30, LOCKED)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def bucket(clock: FakeClock) -> VersionedMemory:
    return VersionedMemory(clock, RULE)


@pytest.fixture
def locked(bucket: VersionedMemory) -> Vault:
    """Three points, each with a disk of its own, in a bucket with locks."""
    vault = new_vault(FirstVersions(bucket, loose=LOOSE))  # type: ignore[arg-type]
    for seed in range(3):
        vault.save([noise(SMALL, seed)])
    return vault


def points(vault: Vault) -> tuple[Point, ...]:
    return vault.repository.points().points


def locks(vault: Vault, chosen: tuple[Point, ...], now: dt.datetime) -> LockPlan:
    store = vault.store
    assert isinstance(store, FirstVersions)
    return plan_locks(vault.repository, store, chosen, RULE, now, NoProgress())


def lengthen(vault: Vault, plan: LockPlan) -> int:
    assert isinstance(vault.store, FirstVersions)
    return run_locks(vault.store, plan, RULE, NoProgress())


def prune(vault: Vault, clock: FakeClock) -> PrunePlan:
    now = clock.now() + dt.timedelta(hours=1)
    rules = Rules(last=1)
    return plan_prune(vault.repository, vault.repository.points(), lambda vm: rules, Now(now, now))


def until(bucket: VersionedMemory, prefix: str) -> set[dt.datetime | None]:
    return {kept[0].until for name, kept in bucket.kept.items() if name.startswith(prefix)}


def test_all_that_a_restore_needs_is_locked_when_it_is_written(
    locked: Vault, bucket: VersionedMemory, clock: FakeClock
) -> None:
    for prefix in (PACKS, POINTS, FINALS, KEYS, CONFIG):
        assert until(bucket, prefix) == {clock.now() + dt.timedelta(days=30)}
    assert until(bucket, INDEX) == {None}


def test_locks_are_lengthened_where_less_than_half_is_left(
    locked: Vault, bucket: VersionedMemory, clock: FakeClock
) -> None:
    assert locks(locked, points(locked), clock.now()).ending == ()
    clock.sleep(16 * 86400)
    plan = locks(locked, points(locked), clock.now())
    assert (len(plan.ending), plan.absent) == (plan.objects, ())
    assert lengthen(locked, plan) == plan.objects
    assert until(bucket, "") == {clock.now() + dt.timedelta(days=30), None}
    assert locks(locked, points(locked), clock.now()).ending == ()


def test_a_passphrase_that_is_to_go_goes_when_its_lock_ends(
    locked: Vault, bucket: VersionedMemory, clock: FakeClock
) -> None:
    keyring = locked.repository.keyring
    going = keyring.add(b"the one that leaked", UNNAMED)
    for _ in range(2):
        with pytest.raises(StoreRefused, match="locked until 2026-12-23"):
            keyring.remove(going)
    assert {slot.id: slot.state for slot in keyring.slots()}[going] == "leaving"
    clock.sleep(16 * 86400)
    plan = locks(locked, points(locked), clock.now())
    assert slot_object(going) not in plan.ending
    assert slot_object(keyring.slot_in_use) in plan.ending
    lengthen(locked, plan)
    clock.sleep(15 * 86400)
    keyring.remove(going)
    assert [slot.id for slot in keyring.slots()] == [keyring.slot_in_use]
    assert list(locked.store.list(LEAVING)) == []


def test_a_change_that_a_lock_holds_up_says_that_the_new_passphrase_opens(locked: Vault) -> None:
    keyring = locked.repository.keyring
    with pytest.raises(StoreRefused, match=r"the new passphrase opens.* locked until"):
        keyring.change(b"the new one", UNNAMED)
    assert keyring.slot_in_use in {slot.id for slot in keyring.slots() if slot.state == "good"}


def test_slots_that_somebody_put_there_are_not_locked(
    locked: Vault, bucket: VersionedMemory, clock: FakeClock
) -> None:
    bucket.lock = None
    bucket.put(f"{KEYS}{'0' * 16}", b"noise")
    clock.sleep(16 * 86400)
    plan = locks(locked, points(locked), clock.now())
    assert [name for name in plan.ending if name.startswith(KEYS)] == [
        slot_object(locked.repository.keyring.slot_in_use)
    ]


def test_where_every_slot_is_to_go_all_are_locked(locked: Vault, clock: FakeClock) -> None:
    """Somebody who can only write could say so of all."""
    slot = locked.repository.keyring.slot_in_use
    locked.store.put(f"{LEAVING}{slot}.{'0' * 16}", b"")
    clock.sleep(16 * 86400)
    assert slot_object(slot) in locks(locked, points(locked), clock.now()).ending


def test_what_only_points_that_go_need_is_not_lengthened(
    locked: Vault, bucket: VersionedMemory, clock: FakeClock
) -> None:
    clock.sleep(16 * 86400)
    lengthen(locked, locks(locked, points(locked)[2:], clock.now()))
    assert len(until(bucket, PACKS)) == len(until(bucket, POINTS)) == 2
    clock.sleep(15 * 86400)
    pruned = prune(locked, clock)
    assert pruned.going == points(locked)[:2]
    run_prune(locked.repository, pruned.going)
    assert len(points(locked)) == 1


def test_what_is_not_there_is_told_and_the_rest_is_locked(
    locked: Vault, bucket: VersionedMemory, clock: FakeClock
) -> None:
    clock.sleep(31 * 86400)
    repository = locked.repository
    pack = max(repository.disk_map(points(locked)[0].manifest.disks[0]).packs())
    locked.store.delete(f"{PACKS}{pack.hex()}")
    plan = locks(locked, points(locked), clock.now())
    assert plan.absent == (f"{PACKS}{pack.hex()}",)
    assert lengthen(locked, plan) == plan.objects - 1


def test_a_damaged_disk_map_keeps_nothing_else_from_being_locked(
    locked: Vault, bucket: VersionedMemory, clock: FakeClock
) -> None:
    damaged = points(locked)[0].manifest.disks[0].root
    assert damaged is not None
    bucket.kept[pack_object(damaged.ref().pack)][0].data = b"noise"
    clock.sleep(20 * 86400)
    vault = locked.reopen()
    plan = locks(vault, points(vault), clock.now())
    assert len(plan.ending) == plan.objects - len(plan.absent)
    assert plan.damage is not None and damaged.ref().pack.hex() in plan.damage.message
    assert lengthen(vault, plan) == len(plan.ending)


def test_a_locked_point_stays_until_its_lock_ends(locked: Vault, clock: FakeClock) -> None:
    old = points(locked)
    planned = prune(locked, clock)
    assert (planned.going, planned.held, planned.refusal) == ((), old[:2], None)
    reasons = {reason for decision in planned.decisions for reason in decision.reasons}
    assert "locked until 2026-12-23T04:00:00.000000Z" in reasons
    clock.sleep(30 * 86400)
    assert prune(locked, clock).going == old[:2]


@pytest.mark.parametrize("prefix", [FINALS, POINTS, PACKS, KEYS, CONFIG])
@pytest.mark.parametrize("how", ["overwritten", "deleted"])
def test_nothing_goes_where_somebody_changed_anything(
    locked: Vault, bucket: VersionedMemory, clock: FakeClock, prefix: str, how: str
) -> None:
    clock.sleep(31 * 86400)
    bucket.lock = None
    name = next(name for name in bucket.kept if name.startswith(prefix))
    if how == "overwritten":
        bucket.put(name, b"")
    else:
        bucket.delete(name)
    vault = locked.reopen()
    planned = prune(vault, clock)
    assert planned.going == ()
    assert isinstance(planned.refusal, TamperingFound)
    assert name in planned.refusal.message
    assert [vault.load(point) for point in points(vault)] == [[noise(SMALL, n)] for n in range(3)]
    (later,) = locked.store.later("")  # type: ignore[attr-defined]
    assert (later.name, later.what) == (name, how)
    assert locked.store.undo(later)  # type: ignore[attr-defined]
    assert len(prune(locked, clock).going) == 2


def test_a_second_version_of_a_tombstone_or_an_index_object_holds_nothing_up(
    locked: Vault, bucket: VersionedMemory, clock: FakeClock
) -> None:
    clock.sleep(31 * 86400)
    index = next(name for name in bucket.kept if name.startswith(INDEX))
    notice = f"{CONDEMNED}{'ab' * 32}"
    for name in (index, notice):
        bucket.put(name, b"ours")
        bucket.put(name, b"somebody's")
    assert len(prune(locked, clock).going) == 2
    found = survey(locked.repository, clock.now())
    assert found.tampering is None
    told = "; ".join(locked.repository.points().problems)
    assert INDEX[:-1] in told and CONDEMNED[:-1] in told


def test_whatever_alarms_is_listed_and_can_be_undone(
    locked: Vault, bucket: VersionedMemory
) -> None:
    """But for what may come and go, and what is not of the repository."""
    bucket.lock = None
    locked.repository.pin(points(locked)[0], Pin("", "2026-11-23T04:00:00.000000Z", "kvm1"))
    locked.repository.drills.put(points(locked)[0].manifest.vm_uuid, "ab" * 8, b"")
    for kind in (CONDEMNED, LEAVING, CHECKS, "probe/", "others/"):
        bucket.put(f"{kind}{'ab' * 8}", b"first")
    changed = {name.partition("/")[0]: name for name in bucket.kept}
    for name in changed.values():
        bucket.put(name, b"somebody's")
    wiring = cast(Wiring, SimpleNamespace(repository=lambda: locked.repository))
    store, found = later_versions(wiring)
    assert {later.name for later in found} == {
        name for kind, name in changed.items() if kind not in ("probe", "others")
    }
    assert len(found) == 11
    assert all(store.undo(later) for later in found)
    assert later_versions(wiring)[1] == ()


def test_a_pack_is_condemned_once_whoever_did_it_before(
    bucket: VersionedMemory, clock: FakeClock
) -> None:
    """A second version with other bytes would be an alarm that nobody else raised."""
    bucket.lock = None
    vault = new_vault(FirstVersions(bucket, loose=LOOSE))  # type: ignore[arg-type]
    names = [bytes([number]) * 32 for number in range(2)]
    for name in names:
        bucket.put(tombstone(name), b"a check set it aside")
    retiring = RetirePlan((Retiring((names[0],), 0, "dead"),))
    run_retire(vault.repository, retiring, Retired(), level=1)
    now = clock.now()
    doomed = GcPlan(now, 0, 0, 0, 0, condemn=(Doomed(names[1], 0),))
    run_gc(vault.repository, doomed, Collected())
    assert [len(bucket.kept[tombstone(name)]) for name in names] == [1, 1]


def test_whoever_may_not_delete_can_not_undo(locked: Vault, bucket: VersionedMemory) -> None:
    bucket.put(CONFIG, b"")
    bucket.may_delete = False
    (later,) = locked.store.later(CONFIG)  # type: ignore[attr-defined]
    assert not locked.store.undo(later)  # type: ignore[attr-defined]


def test_where_everything_is_there_no_damage_is_told(
    locked: Vault, bucket: VersionedMemory, clock: FakeClock
) -> None:
    assert locks(locked, points(locked), clock.now()).damage is None


def test_what_was_collected_since_the_plan_needs_no_lock(
    locked: Vault, bucket: VersionedMemory, clock: FakeClock
) -> None:
    clock.sleep(16 * 86400)
    plan = locks(locked, points(locked), clock.now())
    clock.sleep(15 * 86400)
    locked.store.delete(plan.ending[-1])
    assert lengthen(locked, plan) == plan.objects - 1
