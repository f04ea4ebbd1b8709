"""A point that is written again: the same content, none of the banned packs, whatever happens."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from drvm.chunker.blocks import BLOCK_BYTES, LEAF_BYTES
from drvm.core.errors import (
    DamageFound,
    PacksCondemned,
    RepositoryError,
    StoreUnreachable,
    UnknownPoint,
)
from drvm.repository import pack
from drvm.repository.layout import CONDEMNED, FINALS, PACKS, POINTS, pack_object, parse_point
from drvm.repository.manifest import Disk
from drvm.repository.points import ATTEMPTS, Point
from drvm.store.memory import MemoryStore
from drvm.upkeep.anew import I64, Rows
from drvm.upkeep.rewrite import rewrite_point
from tests.unit.repository.conftest import Vault, new_vault
from tests.unit.repository.faults import FaultyStore
from tests.unit.repository.test_round_trip import noise

NVRAM = b"variables" * 100


@pytest.fixture(autouse=True)
def small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a frame or two, so that a small disk needs many."""
    monkeypatch.setattr(pack, "PACK_MAX_BYTES", pack._TABLES_RESERVE_BYTES + 150_000)


def blocks(*seeds: int) -> bytes:
    """A block per seed, of zeroes for 0."""
    return b"".join(noise(BLOCK_BYTES, seed) if seed else bytes(BLOCK_BYTES) for seed in seeds)


FIRST = blocks(*range(1, 101))
SECOND = blocks(*range(1, 40), *range(201, 211), *range(50, 70), 0, 0, *range(72, 101)) + b"end"


@pytest.fixture
def vault() -> Vault:
    """Two points of one machine; the second shares most of the first."""
    vault = new_vault(FaultyStore())
    first = vault.save([FIRST, blocks(7, 8)], nvram=NVRAM)
    vault.save([SECOND, blocks(7, 8)], first, nvram=NVRAM)
    return vault


def points(vault: Vault) -> tuple[Point, ...]:
    return vault.repository.points().points


def need(vault: Vault, point: Point) -> frozenset[bytes]:
    return vault.repository.need(point.manifest)


def kinds(vault: Vault, point: Point) -> tuple[list[bytes], list[bytes]]:
    """The data packs and the metadata packs that a point needs."""
    named = sorted(need(vault, point))
    data = [name for name in named if vault.repository.packs.open(name).footer.kind == "data"]
    return data, [name for name in named if name not in data]


def again(vault: Vault, point: Point, banned: frozenset[bytes], **options: object) -> Point:
    return rewrite_point(vault.repository, point, banned, level=1, **options)  # type: ignore[arg-type]


def generations(vault: Vault, point: Point) -> set[str]:
    named = [parse_point(name) for name in vault.store.objects if name.startswith(POINTS)]
    return {parsed[2] for parsed in named if parsed is not None and parsed[1] == point.id}


def end_old(vault: Vault, old: Point) -> None:
    vault.store.delete(f"{POINTS}{old.manifest.vm_uuid}/{old.id}.{old.generation}")


def collect(vault: Vault) -> None:
    """Delete every pack that no manifest needs, as a collector in the end does."""
    kept = frozenset().union(*(need(vault, point) for point in points(vault)))
    for name in list(vault.store.objects):
        if name.startswith(PACKS) and bytes.fromhex(name.removeprefix(PACKS)) not in kept:
            vault.store.delete(name)


@pytest.mark.parametrize("which", ["one", "half", "all"])
@pytest.mark.parametrize("kind", ["data", "metadata"])
def test_a_rewritten_point_needs_no_banned_pack_and_reads_the_same(vault, kind, which):
    old = points(vault)[1]
    choice = kinds(vault, old)[kind == "metadata"]
    banned = frozenset({"one": choice[:1], "half": choice[::2], "all": choice}[which])
    new = again(vault, old, banned)
    assert not need(vault, new) & banned
    assert generations(vault, old) == {old.generation, new.generation}
    end_old(vault, old)
    collect(vault)
    fresh = vault.reopen()
    (first, second) = points(fresh)
    assert second.generation == new.generation
    assert fresh.load(first) == [FIRST, blocks(7, 8)]
    assert fresh.load(second) == [SECOND, blocks(7, 8)]
    assert fresh.repository.blob(second.manifest.nvram) == NVRAM


def test_the_manifest_says_the_same_but_for_where_things_lie(vault):
    old = points(vault)[1]
    new = again(vault, old, need(vault, old))
    for name in old.manifest.__struct_fields__:
        if name not in ("disks", "definition", "nvram"):
            assert getattr(new.manifest, name) == getattr(old.manifest, name)
    for before, after in zip(old.manifest.disks, new.manifest.disks, strict=True):
        assert before.root != after.root
        assert (before.new_bytes, before.stored_bytes) == (after.new_bytes, after.stored_bytes)


def test_the_state_of_a_tpm_is_moved_too(vault):
    first = points(vault)[0].manifest
    old = vault.repository.commit(replace(first, id="ab" * 8, tpm={"tpm2-00.permall": first.nvram}))
    new = again(vault, old, frozenset({first.nvram.ref().pack}))
    assert new.manifest.tpm != old.manifest.tpm
    assert vault.reopen().repository.tpm_state(new.manifest) == {"tpm2-00.permall": NVRAM}


def test_the_memory_is_moved_as_disks_are(vault):
    first = points(vault)[0].manifest
    memory = replace(first.disks[1], target="memory")
    fields = {"id": "ab" * 8, "disks": first.disks[:1], "memory": memory}
    old = vault.repository.commit(replace(first, **fields))
    new = again(vault, old, need(vault, old))
    assert not need(vault, new) & need(vault, old)
    end_old(vault, old)
    collect(vault)
    fresh = vault.reopen()
    (kept,) = (point for point in points(fresh) if point.id == old.id)
    assert kept.manifest.memory.root != memory.root
    shown = dataclasses.replace(kept, manifest=replace(new.manifest, disks=new.manifest.streams))
    assert fresh.load(shown) == [FIRST, blocks(7, 8)]


def test_only_blocks_in_banned_packs_are_read(vault, monkeypatch):
    old = points(vault)[1]
    banned = frozenset(kinds(vault, old)[0][:1])
    fetched: list[bytes] = []
    frames = vault.repository.packs.frames

    def noted(name: bytes, numbers: I64) -> object:
        fetched.append(name)
        return frames(name, numbers)

    monkeypatch.setattr(vault.repository.packs, "frames", noted)
    before = need(vault, old)
    new = again(vault, old, banned)
    assert set(fetched) == banned
    assert len(before - need(vault, new) - banned) <= 1  # of the metadata that went with it


def test_leaves_that_need_no_banned_pack_are_shared(vault):
    content = bytearray(3 * LEAF_BYTES)
    for leaf in range(3):
        content[leaf * LEAF_BYTES : leaf * LEAF_BYTES + len(FIRST)] = noise(len(FIRST), leaf)
    old = vault.save([bytes(content)])
    before = vault.repository.disk_map(old.manifest.disks[0])
    others = {*before.leaf_child(0).packs, *before.leaf_child(2).packs}
    new = again(vault, old, frozenset({min(set(before.leaf_child(1).packs) - others)}))
    after = vault.repository.disk_map(new.manifest.disks[0])
    assert after.leaf_child(0) == before.leaf_child(0)
    assert after.leaf_child(1) != before.leaf_child(1)
    assert after.leaf_child(2) == before.leaf_child(2)
    assert vault.reopen().load(new) == [bytes(content)]


def test_a_pack_that_another_collector_condemns_meanwhile_is_left_too(vault):
    old = points(vault)[1]
    first, second = kinds(vault, old)[0][:2]

    def trace(step: str) -> None:
        if step == "manifest-created":
            vault.store.put(f"{CONDEMNED}{second.hex()}", b"")

    new = again(vault, old, frozenset({first}), trace=trace)
    assert not need(vault, new) & {first, second}
    assert vault.reopen().load(new) == [SECOND, blocks(7, 8)]


def test_packs_that_were_condemned_before_are_left_too(vault):
    old = points(vault)[1]
    first, second = kinds(vault, old)[0][:2]
    vault.store.put(f"{CONDEMNED}{second.hex()}", b"")
    new = again(vault, old, frozenset({first}))
    assert not need(vault, new) & {first, second}


def test_packs_condemned_without_end_end_it_loudly_and_the_point_stays(vault):
    old = points(vault)[1]

    def trace(step: str) -> None:
        if step == "manifest-created":
            for name in list(vault.store.objects):
                if name.startswith(PACKS):
                    vault.store.put(CONDEMNED + name.removeprefix(PACKS), b"")

    steps: list[str] = []
    with pytest.raises(PacksCondemned):
        again(vault, old, frozenset(), trace=lambda step: (steps.append(step), trace(step)))
    assert steps.count("final-aborted") == ATTEMPTS
    assert points(vault)[1].generation == old.generation


def test_a_point_that_is_removed_meanwhile_does_not_come_back(vault):
    old = points(vault)[1]
    finals = [name for name in vault.store.objects if name.startswith(FINALS)]

    def trace(step: str) -> None:
        if step == "data-stored":
            vault.repository.end_point(old)

    with pytest.raises(UnknownPoint):
        again(vault, old, frozenset(kinds(vault, old)[0]), trace=trace)
    assert len(points(vault)) == 1
    assert [name for name in vault.store.objects if name.startswith(FINALS)] == finals


class Killed(BaseException):
    pass


def steps_of(vault: Vault, old: Point) -> list[str]:
    steps: list[str] = []
    again(vault, old, frozenset(kinds(vault, old)[0][:2]), trace=steps.append)
    return steps


@pytest.mark.parametrize(
    "step",
    ["written vda", "written vdb", "data-stored", "index-shared", "manifest-created",
     "condemned-listed", "packs-checked", "final-created"],
)  # fmt: skip
def test_killed_at_any_step_the_point_is_good_and_the_next_try_succeeds(vault, step):
    old = points(vault)[1]
    banned = frozenset(kinds(vault, old)[0][:2])

    def trace(reached: str) -> None:
        if reached == step:
            raise Killed

    with pytest.raises(Killed):
        again(vault, old, banned, trace=trace)
    survivor = vault.reopen()
    assert survivor.load(points(survivor)[1]) == [SECOND, blocks(7, 8)]
    new = again(survivor, points(survivor)[1], banned)
    assert not need(survivor, new) & banned
    assert survivor.reopen().load(new) == [SECOND, blocks(7, 8)]


def test_the_steps_above_are_all_there_are(vault):
    assert steps_of(vault, points(vault)[1]) == [
        "written vda", "written vdb", "data-stored", "index-shared", "manifest-created",
        "condemned-listed", "packs-checked", "final-created",
    ]  # fmt: skip


@pytest.mark.parametrize("verb", ["put", "get", "list", "create"])
def test_a_store_that_fails_leaves_the_point_as_it_was(vault, verb):
    old = points(vault)[1]
    banned = frozenset(kinds(vault, old)[0][:2])

    def away(called: str, name: str) -> None:
        if called == verb:
            raise StoreUnreachable("no answer")

    vault.store.before = away
    with pytest.raises((StoreUnreachable, DamageFound)):
        again(vault, old, banned)
    vault.store.before = lambda verb, name: None
    assert points(vault)[1].generation == old.generation
    assert vault.reopen().load(old) == [SECOND, blocks(7, 8)]


class Elsewhere:
    """The blocks of a disk's bytes, whatever they are."""

    def __init__(self, content: bytes) -> None:
        whole = content + bytes(-len(content) % BLOCK_BYTES)
        self._rows = np.frombuffer(whole, dtype=np.uint8).reshape(-1, BLOCK_BYTES)

    def read(self, index: int, places: I64) -> Rows:
        return self._rows[places]


def twin(content: dict[str, bytes]) -> Callable[[Disk], Elsewhere]:
    return lambda disk: Elsewhere(content[disk.target])


def test_blocks_of_lost_packs_come_from_elsewhere(vault):
    old = points(vault)[1]
    lost = frozenset(kinds(vault, old)[0][1:3])
    for name in lost:
        vault.store.delete(pack_object(name))
    fresh = vault.reopen()
    new = again(fresh, old, lost, blocks=twin({"vda": SECOND, "vdb": blocks(7, 8)}))
    assert fresh.reopen().load(new) == [SECOND, blocks(7, 8)]


def test_blocks_that_are_not_the_points_own_are_refused(vault):
    old = points(vault)[1]
    lost = frozenset(kinds(vault, old)[0][1:3])
    with pytest.raises(DamageFound):
        again(vault, old, lost, blocks=twin({"vda": noise(len(SECOND), 9), "vdb": blocks(7, 8)}))
    assert generations(vault, old) == {old.generation}


def test_a_damaged_definition_comes_from_elsewhere(vault):
    old = points(vault)[1]
    definition = old.manifest.definition.ref().pack
    new = again(vault, old, frozenset({definition}), blob=lambda blob: b"<other/>")
    assert vault.repository.blob(new.manifest.definition) == b"<other/>"


def test_an_address_that_names_another_block_is_damage_not_a_new_truth(vault, monkeypatch):
    """A leaf whose digest is right, but which names a wrong block outside of the banned packs."""
    old = points(vault)[1]
    data, _ = kinds(vault, old)
    ids = vault.repository.tables.at

    def lies(name: bytes, ordinals: I64) -> object:
        found = ids(name, ordinals)
        return found if name != data[1] or found is None else found[::-1]

    monkeypatch.setattr(vault.repository.tables, "at", lies)
    with pytest.raises(DamageFound):
        again(vault, old, frozenset(data[:1]))
    assert generations(vault, old) == {old.generation}


def test_what_would_still_need_a_banned_pack_is_not_committed(vault, monkeypatch):
    old = points(vault)[1]
    needed = vault.repository.need(old.manifest)
    monkeypatch.setattr(vault.repository, "need", lambda manifest: needed)
    with pytest.raises(RepositoryError, match="must not need"):
        again(vault, old, frozenset(kinds(vault, old)[0][:1]))
    assert generations(vault, old) == {old.generation}


def test_what_would_be_another_disk_is_not_committed(vault, monkeypatch):
    """Whatever mistake of ours made it so."""
    old = points(vault)[1]
    other = points(vault)[0].manifest.disks[0]
    banned = frozenset(kinds(vault, old)[0][:1])
    disk_map = vault.repository.disk_map
    ours = old.manifest.disks
    monkeypatch.setattr(
        vault.repository, "disk_map", lambda disk: disk_map(disk if disk in ours else other)
    )
    monkeypatch.setattr(vault.repository, "need", lambda manifest: frozenset())
    with pytest.raises(DamageFound, match="became another"):
        again(vault, old, banned)
    assert generations(vault, old) == {old.generation}


def test_ids_that_can_not_be_had_are_damage(vault, monkeypatch):
    old = points(vault)[1]
    monkeypatch.setattr(vault.repository.tables, "at", lambda name, ordinals: None)
    with pytest.raises(DamageFound, match="id tables"):
        again(vault, old, frozenset(kinds(vault, old)[0][:1]))
    assert generations(vault, old) == {old.generation}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_any_point_of_any_history_can_leave_any_packs(data):
    vault, parent = new_vault(MemoryStore()), None
    histories = []
    seeds = random.Random(data.draw(st.integers(0, 1 << 30)))
    for _ in range(data.draw(st.integers(1, 3))):
        disks = []
        for _ in range(data.draw(st.integers(1, 2))):
            count = data.draw(st.sampled_from([0, 1, 33, 70]))
            numbers = [seeds.choice([0, *range(1, 90)]) for _ in range(count)]
            disks.append(blocks(*numbers) + bytes(data.draw(st.sampled_from([0, 5]))))
        parent = vault.save(disks, parent)
        histories.append((parent, disks))
    chosen, content = histories[data.draw(st.integers(0, len(histories) - 1))]
    named = sorted(need(vault, chosen))
    banned = frozenset(name for name in named if data.draw(st.booleans()))
    new = again(vault, chosen, banned)
    assert not need(vault, new) & banned
    end_old(vault, chosen)
    collect(vault)
    fresh = vault.reopen()
    for point, disks in histories:
        (listed,) = [found for found in points(fresh) if found.id == point.id]
        assert fresh.load(listed) == disks
    assert fresh.load(new) == content
