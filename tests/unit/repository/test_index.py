"""The index finds what was added and not forgotten, and nothing else."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from drvm.chunker.blocks import ids_from_bytes
from drvm.repository.index import UNKNOWN, ExactIndex, SortedIds

PACKS = [bytes([n]) * 32 for n in range(4)]
NUMBERS = st.integers(0, 30)


def block_id(number: int) -> bytes:
    """All differ in both halves; 0 is the block of zeroes."""
    return number.to_bytes(8, "big") + (number * 7).to_bytes(8, "little")


def ids(numbers: list[int]) -> np.ndarray:
    return ids_from_bytes(b"".join(map(block_id, numbers)))


steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.sampled_from(PACKS), st.lists(NUMBERS, max_size=8)),
        st.tuples(st.just("forget"), st.sampled_from(PACKS), st.just([])),
        st.tuples(st.just("look"), st.just(b""), st.lists(NUMBERS, max_size=8)),
    ),
    max_size=12,
)


@settings(deadline=None)
@given(steps)
def test_look_ups_say_what_a_dictionary_says(steps):
    index, model = ExactIndex(), {}
    for verb, pack, numbers in [*steps, ("look", b"", list(range(31)))]:
        if verb == "add":
            ordinals = [3 * place for place in range(len(numbers))]
            index.add(pack, ids(numbers), np.array(ordinals, dtype=np.int64))
            model[pack] = dict(zip(ordinals, numbers, strict=True))
        elif verb == "forget":
            index.forget([pack])
            model.pop(pack, None)
        else:
            found = index.lookup(ids(numbers))
            for number, at, ordinal in zip(numbers, found.pack, found.ordinal, strict=True):
                stored = any(number in table.values() for table in model.values())
                assert (at != UNKNOWN) == (stored and number != 0)
                if at != UNKNOWN:
                    assert model[index.pack_name(at)][ordinal] == number
    assert index.known() == set(model)


@given(st.lists(st.integers(1, 30), max_size=8, unique=True), st.lists(st.integers(0, 30)))
def test_ids_by_ordinal_are_all_right_or_not_given(ordinals, wanted):
    index, table = ExactIndex(), sorted(ordinals)
    index.add(PACKS[0], ids(table), np.array(table, dtype=np.int64))
    found = index.stored_ids(index.pack_number(PACKS[0]), np.array(wanted, dtype=np.int64))
    if set(wanted) <= set(table) and table:
        assert found.tobytes() == ids(wanted).tobytes()
    else:
        assert found is None


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


def test_of_ids_that_share_a_half_none_is_taken_for_the_other():
    index = ExactIndex()
    twin = block_id(5)[:8] + b"another!"
    index.add(PACKS[0], ids([5]), np.zeros(1, dtype=np.int64))
    assert index.lookup(ids_from_bytes(twin)).pack.tolist() == [UNKNOWN]


def test_an_unknown_pack_gets_a_number_but_no_ids():
    index = ExactIndex()
    number = index.pack_number(PACKS[1])
    assert index.pack_name(number) == PACKS[1]
    assert index.stored_ids(number, np.zeros(1, dtype=np.int64)) is None
    assert index.known() == set()
