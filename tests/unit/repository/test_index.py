"""The index finds what was added and not forgotten, and nothing else; the sparse one less."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drvm.chunker.blocks import Ids, ids_from_bytes
from drvm.core.errors import DamageFound
from drvm.repository.index import UNKNOWN, SortedIds
from drvm.repository.index.hooks import SEGMENT_BLOCKS, is_hook, sorted_names
from drvm.repository.index.levels import Levels
from drvm.repository.index.runs import RunFiles
from drvm.repository.index.sparse import SparseIndex
from drvm.repository.index.tables import IdTables
from tests.exact_index import ExactIndex

PACKS = [bytes([n]) * 32 for n in range(4)]
NUMBERS = st.integers(0, 30)
KEY = bytes(32)
REPOSITORY = bytes(16)


def nothing_to_fetch(name: bytes) -> None:
    raise DamageFound("there is no store")


def sparse_index(directory: Path | None, *, dense: bool, memory_bytes: int = 0) -> SparseIndex:
    """Without a store: what the cache does not have is gone."""
    files = None if directory is None else RunFiles(directory / "index", REPOSITORY)
    levels = Levels(files, memory_bytes, 1 << 20 if dense else 0)
    tables = IdTables(
        None if directory is None else directory / "ids", KEY, nothing_to_fetch, 1 << 40
    )
    return SparseIndex(levels, tables)


@contextmanager
def index_of_kind(kind: str) -> Iterator[ExactIndex | SparseIndex]:
    with tempfile.TemporaryDirectory() as text:
        directory = Path(text) if "files" in kind else None
        yield ExactIndex() if kind == "exact" else sparse_index(directory, dense=True)


def block_id(number: int) -> bytes:
    """All differ in both halves; 0 is the block of zeroes."""
    return number.to_bytes(8, "big") + (number * 7).to_bytes(8, "little")


def ids(numbers: list[int]) -> Ids:
    return ids_from_bytes(b"".join(map(block_id, numbers)))


def noise_ids(count: int, seed: int = 0) -> Ids:
    """As ids are: evenly spread."""
    return np.random.default_rng(seed).integers(1, 1 << 64, (count, 2), dtype=np.uint64)


steps = st.lists(
    st.one_of(
        st.tuples(
            st.just("add"), st.sampled_from(PACKS), st.lists(NUMBERS, max_size=8, unique=True)
        ),
        st.tuples(st.just("forget"), st.sampled_from(PACKS), st.just([])),
        st.tuples(st.just("flush"), st.just(b""), st.just([])),
        st.tuples(st.just("look"), st.just(b""), st.lists(NUMBERS, max_size=8)),
    ),
    max_size=12,
)


@settings(deadline=None, max_examples=60)
@given(steps)
@pytest.mark.parametrize("kind", ["exact", "dense", "dense in files"])
def test_look_ups_say_what_a_dictionary_says(kind, steps):
    with index_of_kind(kind) as index:
        model: dict[bytes, dict[int, int]] = {}
        for verb, pack, numbers in [*steps, ("look", b"", list(range(31)))]:
            if verb == "add":
                if pack in model or 0 in numbers:
                    continue  # names never come twice, and zero blocks are not stored
                ordinals = [3 * place for place in range(len(numbers))]
                index.add(pack, ids(numbers), np.array(ordinals, dtype=np.int64))
                model[pack] = dict(zip(ordinals, numbers, strict=True))
            elif verb == "forget":
                index.forget([pack])
                model[pack] = {}
            elif verb == "flush" and isinstance(index, SparseIndex):
                index.flush()
            else:
                found = index.lookup(ids(numbers))
                for number, at, ordinal in zip(numbers, found.pack, found.ordinal, strict=True):
                    stored = any(number in table.values() for table in model.values())
                    assert (at != UNKNOWN) == stored
                    if at != UNKNOWN:
                        assert model[index.pack_name(at)][ordinal] == number
        assert {name for name in index.known() if model[name]} == {n for n in model if model[n]}


@settings(deadline=None)
@given(st.lists(st.integers(1, 30), max_size=8, unique=True), st.lists(st.integers(0, 30)))
@pytest.mark.parametrize("kind", ["exact", "dense", "dense in files"])
def test_ids_by_ordinal_are_all_right_or_not_given(kind, ordinals, wanted):
    with index_of_kind(kind) as index:
        table = sorted(ordinals)
        index.add(PACKS[0], ids(table), np.array(table, dtype=np.int64))
        number = index.pack_number(PACKS[0])
        found = index.stored_ids(number, np.array(wanted, dtype=np.int64))
        if set(wanted) <= set(table) and table:
            assert found.tobytes() == ids(wanted).tobytes()
        else:
            assert found is None or not wanted
        index.forget([PACKS[0]])
        assert index.stored_ids(number, np.array([0], dtype=np.int64)) is None


class Packs:
    """Packs of random ids, told to a sparse and to an exact index."""

    def __init__(self, index: SparseIndex, lengths: list[int], seed: int) -> None:
        self.index, self.exact = index, ExactIndex()
        self.ids = []
        for number, length in enumerate(lengths):
            name = random.Random(seed + number).randbytes(32)
            table = noise_ids(length, seed + number)
            ordinals = np.arange(length, dtype=np.int64)
            self.ids.append(table)
            for one in (self.index, self.exact):
                one.add(name, table, ordinals)

    def check(self, wanted: Ids) -> np.ndarray:
        """Whatever is found is where the exact index has it. Returns what is found."""
        found, model = self.index.lookup(wanted), self.exact.lookup(wanted)
        for number in np.flatnonzero(found.pack != UNKNOWN).tolist():
            name = self.index.pack_name(found.pack[number])
            assert name == self.exact.pack_name(model.pack[number])
            assert found.ordinal[number] == model.ordinal[number]
        return found.pack != UNKNOWN


runs_read = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 3000), st.integers(1, 1500)), max_size=6
)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 1 << 20), runs_read, st.booleans(), st.integers(64, 4096))
def test_what_the_sparse_index_finds_is_right_and_runs_around_a_hooks_segment_are_found(
    seed, runs, in_files, batch
):
    """Runs of blocks in the order in which they were stored, with strange ones between."""
    with tempfile.TemporaryDirectory() as text:
        index = sparse_index(Path(text) if in_files else None, dense=False)
        packs = Packs(index, [3000, 700, 256, 20], seed)
        index.flush()
        parts, sure = [], []
        for number, first, length in runs:
            run = packs.ids[number][first : first + length]
            parts += [run, noise_ids(3, seed + 99)]
            hooks = np.flatnonzero(is_hook(run[:, 0]))
            sure += [np.full(len(run), bool(len(hooks))), np.zeros(3, dtype=bool)]
        wanted = np.concatenate(parts) if parts else noise_ids(5, seed + 99)
        must = np.concatenate(sure) if sure else np.zeros(5, dtype=bool)
        if len(wanted) <= batch:  # one batch: then the whole run is found
            found = packs.check(wanted)
            assert found[must].all()
        for start in range(0, len(wanted), batch):
            packs.check(wanted[start : start + batch])


def test_a_run_that_goes_on_over_batches_is_found_without_hooks_in_each():
    index = sparse_index(None, dense=False)
    packs = Packs(index, [20_000], 5)
    found = [packs.check(packs.ids[0][at : at + 8]) for at in range(0, 20_000, 8)]
    assert np.concatenate(found)[64:].all()


def test_a_young_pack_is_found_block_by_block_and_an_old_one_by_its_hooks(tmp_path):
    index = sparse_index(tmp_path, dense=True)
    levels = index._levels
    levels.dense_hooks = 5000
    packs = Packs(index, [4000, 4000], 1)
    index.flush()
    shuffled = np.random.default_rng(0).permutation(np.concatenate(packs.ids))
    assert 0 < packs.check(shuffled[:100]).sum() < 100  # both in one run, too large to be dense
    young = Packs(index, [1000], 77)
    assert young.check(young.ids[0][::-97]).all()


def test_in_the_order_of_a_re_read_disk_little_is_missed_of_many_small_packs():
    """Where one pack follows another, some blocks have no hook in their batch."""
    index = sparse_index(None, dense=False)
    packs = Packs(index, [400] * 40, 3)
    everything = np.concatenate(packs.ids)
    found = [packs.check(everything[at : at + 1024]) for at in range(0, len(everything), 1024)]
    assert np.concatenate(found).mean() > 0.97


def test_a_forgotten_pack_is_found_again_when_a_listing_shows_it(tmp_path):
    index = sparse_index(tmp_path, dense=False)
    packs = Packs(index, [1000], 0)
    (name,) = index.known()
    index.forget([name])
    assert not packs.check(packs.ids[0]).any()
    assert index.sync(sorted_names(name), frozenset()) == []
    assert packs.check(packs.ids[0]).all()
    assert index.sync(sorted_names(name), frozenset([name])) == []
    assert not packs.check(packs.ids[0]).any()
    assert index.sync(sorted_names(b""), frozenset()) == []
    assert not packs.check(packs.ids[0]).any()


def test_blocks_of_a_pack_beyond_the_segments_that_hooks_can_name_are_found_by_their_neighbours():
    index = sparse_index(None, dense=False)
    table = noise_ids(70_000, 4)
    ordinals = np.arange(70_000) + 5
    index.add(PACKS[1], table, ordinals)
    found = index.lookup(table[65_000:67_000])
    assert (found.ordinal == ordinals[65_000:67_000]).all()
    assert (index.lookup(table[69_000:]).pack == UNKNOWN).all()


def test_ids_that_come_twice_in_a_batch_are_both_found():
    index = sparse_index(None, dense=False)
    packs = Packs(index, [SEGMENT_BLOCKS], 8)
    doubled = np.repeat(packs.ids[0], 3, axis=0)
    assert packs.check(doubled).all()


@settings(deadline=None)
@given(st.lists(st.sets(st.integers(1, 300), max_size=30), max_size=12))
def test_sorted_ids_find_what_was_added_in_any_batches(batches):
    found, model = SortedIds(), {}
    for batch in batches:
        fresh = sorted(batch - model.keys())
        numbers = [len(model) + at for at in range(len(fresh))]
        found.add(ids(fresh), np.array(numbers, dtype=np.int64))
        model |= dict(zip(fresh, numbers, strict=True))
    wanted = list(range(301))
    assert found.find(ids(wanted)).tolist() == [model.get(number, UNKNOWN) for number in wanted]


def test_sorted_ids_keep_few_runs_however_often_they_grow():
    found = SortedIds()
    for number in range(1000):
        found.add(ids([number + 1]), np.array([number], dtype=np.int64))
    assert len(found._runs) <= 11


@pytest.mark.parametrize("kind", ["exact", "dense"])
def test_of_ids_that_share_a_half_none_is_taken_for_the_other(kind):
    with index_of_kind(kind) as index:
        twin = block_id(5)[:8] + b"another!"
        index.add(PACKS[0], ids([5]), np.zeros(1, dtype=np.int64))
        assert index.lookup(ids_from_bytes(twin)).pack.tolist() == [UNKNOWN]
        both = index.lookup(ids_from_bytes(twin + block_id(5) + twin)).pack
        assert both[0] == both[2] == UNKNOWN


@pytest.mark.parametrize("kind", ["exact", "dense"])
def test_an_unknown_pack_gets_a_number_but_no_ids(kind):
    with index_of_kind(kind) as index:
        number = index.pack_number(PACKS[1])
        assert index.pack_name(number) == PACKS[1]
        assert index.stored_ids(number, np.zeros(1, dtype=np.int64)) is None
        assert index.known() == set()
