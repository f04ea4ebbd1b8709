"""A check finds what a restore would find, says what it costs, and lets the next backup heal."""

import datetime as dt
import functools
import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from drvm.chunker.blocks import BLOCK_BYTES, LEAF_BYTES
from drvm.chunker.runs import Leaf
from drvm.core.clock import SystemClock
from drvm.core.errors import (
    DamageFound,
    PacksCondemned,
    StoreRefused,
    UsageError,
)
from drvm.core.progress import NoProgress
from drvm.repository.checks import (
    CheckRecord,
    Share,
    arc_fields,
    create_record,
    parse_share,
    read_history,
)
from drvm.repository.crypto import MasterKeys, Sealer
from drvm.repository.diskmap import DiskMapWriter, levels, width
from drvm.repository.layout import (
    CHECKS,
    CONDEMNED,
    FANOUT,
    PACKS,
    final_object,
    pack_object,
    point_object,
)
from drvm.repository.manifest import MAX_DISK_BYTES, StoredBlob
from drvm.repository.nodes import Child, Node, encode_node
from drvm.repository.pack import PackBuilder
from drvm.repository.points import Point
from drvm.repository.repository import Repository
from drvm.repository.trust import HostTrust
from drvm.store.memory import MemoryStore
from drvm.upkeep import check_maps
from drvm.upkeep.check import (
    plan_check,
    plan_check_without_key,
    run_check,
    run_check_without_key,
)
from drvm.upkeep.check_maps import Lost, Seen
from tests.checking import Kinds, brute_force, check, told
from tests.unit.repository.conftest import PASSPHRASE, VM, Vault
from tests.unit.repository.test_damage import without_index_objects
from tests.unit.repository.test_round_trip import SMALL, noise

NOW = SystemClock().now()


def changed(content: bytes, block: int, seed: int) -> bytes:
    at = block * BLOCK_BYTES
    return content[:at] + noise(BLOCK_BYTES, seed) + content[at + BLOCK_BYTES :]


def test_a_repository_without_damage_is_without_damage(vault):
    far = noise(SMALL, 1) + bytes(LEAF_BYTES) + noise(SMALL, 2)
    old = vault.save([far, b"text" * 5000])
    vault.save([changed(far, 3, 7), b"text" * 5000], old)
    result = check(vault.reopen().repository)
    assert (result.damaged, result.warned) == (False, False)
    assert result.read_packs == result.packs and result.leaves == 4
    assert result.never_read == 0


def flipped(store: MemoryStore, name: str, at: int = 20) -> None:
    whole = store.get(name)
    store.put(name, whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])


def tombstones(vault: Vault) -> set[str]:
    return {name.removeprefix(CONDEMNED) for name in vault.store.objects if CONDEMNED in name}


@pytest.mark.parametrize("kind", ["data", "meta"])
@pytest.mark.parametrize("damage", ["flipped", "missing"])
def test_the_next_backup_heals_and_a_check_says_what_is_still_hit(vault, kind, damage):
    disk = noise(2 * SMALL, 1)
    old = vault.save([disk])
    (name,) = Kinds(vault.repository).names(kind)
    flipped(vault.store, name) if damage == "flipped" else vault.store.delete(name)
    again = vault.reopen()
    result = check(again.repository)
    assert set(told(result)) == {old.id}
    assert tombstones(vault) == ({name[6:]} if damage == "flipped" else set())
    try:
        new = again.save([changed(disk, 1, 5)], old)
    except PacksCondemned as error:  # as Backup does
        new = again.save([changed(disk, 1, 5)], old, banned=error.packs)
    assert again.reopen().load(new) == [changed(disk, 1, 5)]
    for share in (None, "1/1"):
        assert set(told(check(again.reopen().repository, share))) == {old.id}


def test_damage_of_a_memory_hits_its_point(vault):
    shown = vault.save([noise(SMALL, 1), noise(SMALL, 2)])
    first = shown.manifest
    memory = replace(first.disks[1], target="memory")
    fields = {"id": "ab" * 8, "disks": first.disks[:1], "memory": memory}
    running = vault.repository.commit(replace(first, **fields))
    vault.repository.end_point(shown)
    (name,) = Kinds(vault.repository).names("data")
    vault.store.delete(name)
    (hit,) = check(vault.reopen().repository).hits
    assert hit.id == running.id
    assert [disk.target for disk in hit.disks] == ["vda", "memory"]


def test_a_dry_run_writes_nothing(vault):
    vault.save([noise(SMALL, 1)])
    (name,) = Kinds(vault.repository).names("data")
    flipped(vault.store, name)
    before = dict(vault.store.objects)
    result = check(vault.reopen().repository, write=False)
    assert result.hits and not result.bad_packs[0].set_aside
    assert vault.store.objects == before


def with_wrong_addresses(vault: Vault, monkeypatch: pytest.MonkeyPatch, disk: bytes) -> Point:
    """A point whose leaf has two blocks changed over, as a bit flipped in memory may do it."""
    put = DiskMapWriter.put

    def swapped(self: DiskMapWriter, index: int, leaf: Leaf, digest: bytes) -> None:
        ordinal = leaf.ordinal.copy()
        ordinal[:2] = ordinal[1], ordinal[0]
        put(self, index, Leaf(leaf.packs, leaf.pack, ordinal), digest)

    with monkeypatch.context() as patch:
        patch.setattr(DiskMapWriter, "put", swapped)
        return vault.save([disk])


def test_wrong_addresses_of_a_parent_are_found_in_all_points_that_share_them(vault, monkeypatch):
    disk = noise(SMALL, 1)
    wrong = with_wrong_addresses(vault, monkeypatch, disk)
    child = vault.save([disk], wrong)
    with pytest.raises(DamageFound):
        vault.load(child)
    fresh = vault.reopen()
    assert not check(fresh.repository, None).hits  # addresses are compared with the data only
    result = check(fresh.repository)
    expected = brute_force(fresh.repository, {p.id: (p, [disk]) for p in (wrong, child)})
    assert told(result) == expected and len(expected) == 2
    assert ["wrong addresses" in pack.reason for pack in result.bad_packs] == [True]
    healed = vault.reopen().save([disk], child)
    assert vault.reopen().load(healed) == [disk]
    for share in (None, "1/1"):
        assert told(check(vault.reopen().repository, share)) == expected


def believing(vault: Vault) -> Vault:
    """Another host, which takes what any stored for what it says."""
    trust = HostTrust("repository")
    return Vault(vault.store, Repository.open(vault.store, PASSPHRASE, trust=trust))


def test_a_table_of_ids_that_lies_hits_whoever_believed_it(vault, monkeypatch):
    """A host uploads a pack whose table claims another block; the next one relies on it."""
    good, claimed = noise(SMALL, 1), changed(noise(SMALL, 1), 2, 5)
    liar = vault.reopen()
    wanted = liar.repository.hasher.ids(claimed).tobytes()
    add = PackBuilder.add

    def lies(
        self: PackBuilder,
        codec: int,
        payload: bytes,
        plain_bytes: int,
        ids: bytes = b"",
        **more: Any,
    ) -> int:
        told = wanted[: len(ids)] if self.kind == "data" and not len(self) else ids
        return add(self, codec, payload, plain_bytes, told, **more)

    with monkeypatch.context() as patch:
        patch.setattr(PackBuilder, "add", lies)
        first = liar.save([good])
    without_index_objects(vault.store)
    victim = believing(vault).save([claimed])
    fresh = vault.reopen()
    result = check(fresh.repository)
    contents = {first.id: (first, [good]), victim.id: (victim, [claimed])}
    assert told(result) == brute_force(fresh.repository, contents)
    assert set(told(result)) == {victim.id}
    assert "table of ids" in result.bad_packs[0].reason
    assert vault.reopen().load(vault.reopen().save([claimed], victim)) == [claimed]
    for share in (None, "1/1"):
        assert set(told(check(vault.reopen().repository, share))) == {victim.id}


def test_a_point_that_is_being_committed_is_not_spoken_of(vault):
    point = vault.save([noise(SMALL, 1)])
    vault.store.delete(final_object(point.id, point.generation))
    for now, told_of in ((NOW, 0), (NOW + dt.timedelta(hours=2), 1)):
        finds = plan_check(vault.reopen().repository, None, now).finds
        assert len(finds.unfinished) == told_of


class Flickering(MemoryStore):
    """The first read of each pack comes back wrong."""

    def __init__(self, inner: MemoryStore) -> None:
        super().__init__()
        self.objects = inner.objects
        self.seen: set[str] = set()

    def get(self, name: str, *, offset: int = 0, length: int | None = None) -> bytes:
        data = super().get(name, offset=offset, length=length)
        if not name.startswith(PACKS) or name in self.seen:
            return data
        self.seen.add(name)
        return bytes([data[0] ^ 1]) + data[1:]


@pytest.mark.parametrize("share", [None, "1/1"])
def test_what_reads_well_the_second_time_is_no_damage(vault, share):
    vault.save([noise(SMALL, 1)])
    store = Flickering(vault.store)
    result = check(Repository.open(store, PASSPHRASE), share)
    assert not result.damaged and not tombstones(vault)
    assert result.passing == (2 if share else 0)


def test_a_point_that_is_removed_meanwhile_is_not_hit(vault, monkeypatch):
    kept, gone = vault.save([noise(SMALL, 1)]), vault.save([noise(SMALL, 2)])
    repository = vault.reopen().repository
    plan = plan_check(repository, None, NOW)
    only = repository.need(gone.manifest) - repository.need(kept.manifest)
    repository.end_point(gone)
    for name in only:
        vault.store.delete(pack_object(name))
    repository = vault.reopen().repository
    result = run_check(repository, plan, NoProgress(), SystemClock(), "here", write=True)
    assert not result.damaged


def test_a_point_that_was_written_anew_meanwhile_is_looked_at_as_it_is(vault):
    """As a collector does it: into other packs, in another generation of the same id."""
    old = vault.save([noise(SMALL, 1)])
    plan = plan_check(vault.reopen().repository, None, NOW)
    need = vault.repository.need(old.manifest)
    twin = vault.save([noise(SMALL, 1)], banned=need)
    rewritten = vault.repository.commit(replace(twin.manifest, id=old.id))
    vault.store.delete(point_object(VM, old.id, old.generation))
    for name in need:
        vault.store.delete(pack_object(name))
    assert vault.repository.current(old) == rewritten
    repository = vault.reopen().repository
    result = run_check(repository, plan, NoProgress(), SystemClock(), "here", write=True)
    assert not result.damaged


def test_without_a_key_packs_are_compared_with_their_own_checksums(vault):
    vault.save([noise(SMALL, 1)])
    names = Kinds(vault.repository).names("data")
    plan = plan_check_without_key(vault.store, None, NOW)
    result = run_check_without_key(vault.store, plan, NoProgress(), set_aside=True)
    assert not result.damaged and result.read_packs == 2
    flipped(vault.store, names[0])
    for set_aside in (False, True):
        plan = plan_check_without_key(vault.store, None, NOW)
        result = run_check_without_key(vault.store, plan, NoProgress(), set_aside=set_aside)
        assert [pack.name.hex() for pack in result.bad_packs] == [names[0][6:]]
        assert bool(tombstones(vault)) == set_aside


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 7), st.lists(st.integers(0, 3), min_size=7, max_size=7))
def test_every_byte_is_read_within_as_many_runs_as_there_are_shares(parts, arrivals):
    """Whatever comes in between, in runs of many hosts."""
    share = Share(percent=float(-(-10_000 // parts) / 100))
    store, sealer = MemoryStore(), Sealer(MasterKeys.generate(), "00" * 16)
    there = {noise(32, seed) for seed in range(50)}
    read: dict[bytes, int] = {}
    for run in range(3 * parts):
        arc = share.arc(read_history(store, sealer).last_end)
        for name in there:
            if name in arc:
                read[name] = run
        record = CheckRecord(
            **arc_fields(arc),
            rotates=True,
            seconds=0,
            packs=0,
            read_bytes=0,
            damaged=0,
            created="",
            host="",
        )
        create_record(store, sealer, record)
        there |= {noise(32, 1000 * run + n) for n in range(arrivals[run % 7])}
        if run >= parts:
            old = {name for name in there if name in read}
            assert all(read[name] > run - parts - 1 for name in old)
    assert {noise(32, seed) for seed in range(50)} <= read.keys()


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_the_parts_of_a_whole_overlap_nowhere_and_leave_nothing_out(parts):
    names = [noise(32, seed) for seed in range(200)] + [bytes(32), b"\xff" * 32]
    arcs = [parse_share(f"{part}/{parts}").arc(123) for part in range(1, parts + 1)]
    assert all(sum(name in arc for arc in arcs) == 1 for name in names)


@pytest.mark.parametrize("text", ["0/3", "4/3", "1/0", "0%", "101%", "x", "1/99999", "", "-1%"])
def test_what_is_no_share_is_a_mistake(text):
    with pytest.raises(UsageError):
        parse_share(text)


def test_runs_go_on_where_the_last_one_ended_and_say_when_all_was_read(vault):
    for seed in range(6):
        vault.save([noise(SMALL, seed)])
    read, never = [], []
    for _ in range(4):
        result = check(vault.reopen().repository, "25%")
        read.append(result.read_packs)
        never.append(result.never_read)
    assert sum(read) == result.packs and never[-1] == 0 and never[0] == result.packs - read[0]
    assert result.oldest_read is not None
    assert len([name for name in vault.store.objects if name.startswith(CHECKS)]) == 4


def test_a_store_that_takes_nothing_is_told_and_checked_all_the_same(vault, monkeypatch):
    point = vault.save([noise(SMALL, 1)])
    (name,) = Kinds(vault.repository).names("data")
    flipped(vault.store, name)
    repository = vault.reopen().repository

    def refuses(name: str, data: bytes) -> None:
        raise StoreRefused("no writes here")

    monkeypatch.setattr(vault.store, "put_if_absent", refuses)
    result = check(repository)
    assert set(told(result)) == {point.id} and not result.bad_packs[0].set_aside
    assert result.not_set_aside == result.not_recorded == "no writes here"


def test_numbers_that_were_seen_are_known_however_many_there_are():
    seen = Seen()
    numbers = np.random.default_rng(1).integers(0, 1 << 63, 200_000).tolist()
    for number in numbers:
        seen.add(number)
    assert all(number in seen for number in numbers[::97])
    assert not any(number + 1 in seen for number in numbers[::97])


def test_the_largest_map_that_names_one_lost_leaf_everywhere_is_looked_at_in_bounded_work(vault):
    """By whoever holds a key: each node is read once, and neighbours are told as one range."""
    point = vault.save([noise(SMALL, 1)])
    (data,) = Kinds(vault.repository).names("data")
    disk_map = vault.repository.disk_map(point.manifest.disks[0])
    leaf = disk_map.leaf_child(0)
    size = MAX_DISK_BYTES
    with vault.repository.session(level=1) as session:
        child = leaf
        for level in range(1, levels(size // LEAF_BYTES) + 1):
            count = min(FANOUT, width(size // LEAF_BYTES, level - 1))
            node = Node(level, count, dict.fromkeys(range(count), child))
            child = Child(session._blob_writer.add_node(functools.partial(encode_node, node)))
        written = session.finish()
        root = StoredBlob.of(session._blob_writer.ref(child.ref))
    assert not written.blobs
    disk = replace(point.manifest.disks[0], size_bytes=size, root=root)
    hostile = replace(point.manifest, id="ab" * 8, disks=(disk,))
    vault.repository.commit(hostile)
    vault.store.delete(data)
    hits = {hit.id: hit for hit in check(vault.reopen().repository, None).hits}
    assert hits.keys() == {point.id, "ab" * 8}
    assert hits["ab" * 8].disks[0].ranges


@settings(deadline=None, max_examples=200)
@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=12), max_size=8), st.integers(1, 6))
def test_what_is_lost_adds_up_and_the_first_spans_are_kept(leaves, kept):
    whole, flags = Lost(), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(check_maps, "SPANS_KEPT", kept)
        for leaf in leaves:
            part = Lost()
            for start, length in spans_of(leaf):
                part.add(start, length)
            whole.behind(part, len(flags))
            flags += leaf
    expected = spans_of(flags)
    assert (whole.blocks, whole.count) == (sum(flags), len(expected))
    told = list(zip(whole.spans[0::2], whole.spans[1::2], strict=True))
    assert len(told) <= kept
    if len(told) == len(expected):
        assert told == expected
    else:  # the last one that is kept may go on
        assert told[:-1] == expected[: len(told) - 1] and len(told) == kept


def spans_of(flags: list[bool]) -> list[tuple[int, int]]:
    spans, start = [], 0
    for lost, group in itertools.groupby(flags):
        length = len(list(group))
        if lost:
            spans.append((start, length))
        start += length
    return spans


class Ended(BaseException):
    """Stands for SIGKILL."""


@pytest.mark.parametrize("step", ["pack-set-aside", "check-recorded"])
def test_a_check_that_ends_anywhere_is_made_good_by_the_next_one(vault, step):
    point = vault.save([noise(SMALL, 1)])
    for kind in ("data", "meta"):
        flipped(vault.store, Kinds(vault.repository).names(kind)[0])

    def end(now: str) -> None:
        if now == step:
            raise Ended

    repository = vault.reopen().repository
    plan = plan_check(repository, Share(percent=100), NOW)
    clock = SystemClock()
    with pytest.raises(Ended):
        run_check(repository, plan, NoProgress(), clock, "here", write=True, trace=end)
    result = check(vault.reopen().repository)
    assert set(told(result)) == {point.id} and len(tombstones(vault)) == 2
    records = [name for name in vault.store.objects if name.startswith(CHECKS)]
    assert len(records) == (1 if step == "pack-set-aside" else 2)


def test_what_was_passed_by_before_a_pack_turned_out_to_be_bad_is_found_all_the_same(vault):
    """Of the first disk a leaf is damaged, which a listing does not read; of the second a node."""
    disks = [noise(SMALL, 1), noise(SMALL, 2)]
    point = vault.save(disks)
    first, second = (vault.repository.disk_map(disk) for disk in point.manifest.disks)
    leaf, node = first.child(0, 0), second.child(1, 0)
    assert leaf.ref.pack == node.ref.pack
    offset = vault.repository.packs.open(leaf.ref.pack).frames.offset
    for blob in (leaf, node):
        flipped(vault.store, pack_object(blob.ref.pack), int(offset[blob.ref.number]) + 3)
    lost = told(check(vault.reopen().repository, None))
    assert lost == brute_force(vault.reopen().repository, {point.id: (point, disks)})
    assert lost[point.id].keys() == {"vda", "vdb"}


def test_an_address_at_which_there_is_no_block_is_found(vault, monkeypatch):
    put = DiskMapWriter.put

    def astray(self: DiskMapWriter, index: int, leaf: Leaf, digest: bytes) -> None:
        ordinal = leaf.ordinal.copy()
        ordinal[0] = 45  # the second frame has eight blocks
        put(self, index, Leaf(leaf.packs, leaf.pack, ordinal), digest)

    with monkeypatch.context() as patch:
        patch.setattr(DiskMapWriter, "put", astray)
        point = vault.save([noise(SMALL, 1)])
    result = check(vault.reopen().repository)
    expected = brute_force(vault.reopen().repository, {point.id: (point, [noise(SMALL, 1)])})
    assert told(result) == expected and expected
    assert "wrong addresses" in result.bad_packs[0].reason
