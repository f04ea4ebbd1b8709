"""Looking keys up in sorted tables: all kernels find the same, and no harm from wrong buffers."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drvm.chunker.kernel import Kernel

MOST = (1 << 64) - 1
words = st.one_of(st.integers(0, MOST), st.integers(0, 9), st.integers(MOST - 9, MOST))


def packed(values) -> bytes:
    return struct.pack(f"={len(values)}Q", *values)


def probed(kernel: Kernel, keys, wanted) -> list[int]:
    """In one row."""
    places = bytearray(8 * len(wanted))
    table = packed(keys)
    hits = kernel.probe(table, len(table), len(keys), None, packed(wanted), places)
    found = list(struct.unpack(f"={len(wanted)}q", places))
    assert hits == sum(place >= 0 for place in found)
    return found


def expected(keys: list[int], wanted: list[int]) -> list[int]:
    return [keys.index(key) if key in keys else -1 for key in wanted]


@given(st.lists(words, max_size=80), st.lists(words, max_size=40), st.data())
def test_the_first_place_of_a_key_is_found_or_none(kernel, keys, wanted, draw):
    if keys:
        wanted += draw.draw(st.lists(st.sampled_from(keys), max_size=20))
    keys.sort()
    assert probed(kernel, keys, wanted) == expected(keys, wanted)


SHAPES = {
    "even": lambda number: number << 50,
    "one far out": lambda number: number if number else MOST,
    "dense at the start": lambda number: number**6,
    "dense at the end": lambda number: MOST - number**6,
    "twins": lambda number: number // 7 << 40,
    "all the same": lambda _: 12345,
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_keys_may_be_spread_in_any_way(kernel, shape):
    keys = sorted(shape(number) for number in range(1000))
    wanted = keys[::3] + [key ^ 1 for key in keys[::3]] + [0, MOST]
    assert probed(kernel, keys, wanted) == expected(keys, wanted)


@given(
    st.lists(st.lists(words, min_size=5, max_size=5), min_size=1, max_size=6),
    st.lists(st.tuples(st.integers(0, 5), words), max_size=40),
    st.integers(0, 13),
)
def test_each_key_is_looked_for_in_its_own_row(kernel, rows, wanted, beside):
    rows = [sorted(row) for row in rows]
    table = b"".join(packed(row) + b"\x01" * beside for row in rows)
    wanted = [(row % len(rows), key) for row, key in wanted]
    wanted += [(row, rows[row][row % 5]) for row in range(len(rows))]
    places = bytearray(8 * len(wanted))
    which = packed([row for row, _ in wanted])
    look_for = packed([key for _, key in wanted])
    kernel.probe(table, 40 + beside, 5, which, look_for, places)
    found = struct.unpack(f"={len(wanted)}q", places)
    assert list(found) == [expected(rows[row], [key])[0] for row, key in wanted]


@given(st.lists(words, max_size=60), st.lists(words, max_size=20))
def test_what_is_found_in_unsorted_keys_is_there(kernel, keys, wanted):
    for place, key in zip(probed(kernel, keys, wanted + keys), wanted + keys, strict=True):
        assert place == -1 or keys[place] == key


def test_no_buffer_needs_an_alignment(kernel):
    room = {n: memoryview(bytearray(3 + 8 * n))[3:] for n in (2, 3, 4)}
    room[4][:], room[2][:] = packed([1, 2, 3, 4]), packed([3, 9])
    places = memoryview(bytearray(19))[3:]
    assert kernel.probe(room[4].toreadonly(), 16, 2, packed([1, 1]), room[2], places) == 1
    assert struct.unpack("=2q", places) == (0, -1)


def test_many_keys_are_found_in_many(kernel):
    keys = np.unique(np.random.default_rng(3).integers(0, MOST, 50_000, dtype=np.uint64))
    wanted = np.concatenate([keys[::2], keys[::2] + np.uint64(1)])
    places = np.empty(len(wanted), dtype=np.int64)
    kernel.probe(keys.data, keys.nbytes, len(keys), None, wanted.data, places.data)
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    assert (places == np.where(keys[at] == wanted, at, -1)).all()


@pytest.mark.parametrize("row_bytes", [0, 8, 16])
def test_an_empty_table_holds_nothing(kernel, row_bytes):
    places = bytearray(8)
    assert kernel.probe(b"", row_bytes, row_bytes // 8, None, bytes(8), places) == 0
    assert struct.unpack("=q", places) == (-1,)
    assert kernel.probe(b"", row_bytes, row_bytes // 8, b"", b"", bytearray()) == 0


RIGHT = {
    "table": packed([1, 2, 3, 4]),
    "row_bytes": 16,
    "row_keys": 2,
    "rows": packed([0, 1]),
    "wanted": packed([1, 4]),
    "places": bytearray(16),
}
WRONG = {
    "half a row": {"row_bytes": 24},
    "more keys than fit": {"row_keys": 3},
    "far more keys than fit": {"row_keys": (1 << 61) + 1},
    "fewer keys than none": {"row_keys": -1},
    "rows of negative length": {"row_bytes": -16},
    "rows without length": {"row_bytes": 0, "row_keys": 0},
    "no table": {"table": b""},
    "rows without keys": {"row_keys": 0},
    "a row behind the table": {"rows": packed([0, 2])},
    "a row before the table": {"rows": struct.pack("=2q", 0, -1)},
    "too few rows": {"rows": packed([0])},
    "half a key": {"wanted": bytes(15)},
    "too few places": {"places": bytearray(8)},
    "too many places": {"places": bytearray(24)},
    "places read-only": {"places": bytes(16)},
    "text": {"table": "x" * 32},
    "nothing": {"wanted": None},
    "with gaps": {"table": memoryview(bytes(64))[::2]},
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_wrong_buffers_are_refused(kernel, wrong):
    assert kernel.probe(*RIGHT.values()) == 2
    with pytest.raises((ValueError, TypeError, BufferError, OverflowError)):
        kernel.probe(*(RIGHT | wrong).values())
