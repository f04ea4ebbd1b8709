"""The cache of ids: whatever happened to its files, what comes out is what the pack has."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drvm.chunker.blocks import Ids
from drvm.core.errors import DamageFound
from drvm.repository.index.tables import IdTables
from tests.unit.repository.faults import within
from tests.unit.repository.test_index import KEY, noise_ids

NAME, OTHER = b"\x01" * 32, b"\x02" * 32
COUNT = 700
TABLES = {name: (noise_ids(COUNT, name[0]), np.arange(COUNT) * 2 + 1) for name in (NAME, OTHER)}


class Source:
    """The store, which counts what is asked of it."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []

    def __call__(self, name: bytes) -> tuple[Ids, np.ndarray] | None:
        self.asked.append(name)
        if name not in TABLES:
            raise DamageFound("there is no such pack")
        return TABLES[name]


def tables(directory: Path | None, limit_bytes: int = 1 << 30) -> tuple[IdTables, Source]:
    source = Source()
    return IdTables(directory, KEY, source, limit_bytes), source


def is_right(found: IdTables, name: bytes = NAME) -> bool:
    ids, ordinals = TABLES[name]
    whole, there = found.whole(name), found.at(name, ordinals)
    assert whole is not None and there is not None
    return np.array_equal(there, ids) and np.array_equal(whole[ordinals], ids)


@pytest.mark.parametrize("in_memory", [True, False])
def test_what_was_put_comes_back_without_asking_the_store(in_memory, tmp_path):
    kept, source = tables(None if in_memory else tmp_path)
    kept.put(NAME, *TABLES[NAME])
    assert is_right(kept)
    assert source.asked == []
    if not in_memory:
        again, source = tables(tmp_path)
        assert is_right(again)
        assert source.asked == []


def test_what_is_not_there_is_fetched_once(tmp_path):
    kept, source = tables(tmp_path)
    assert is_right(kept)
    assert is_right(kept)
    assert source.asked == [NAME]


def test_many_are_fetched_together_and_the_missing_left_out(tmp_path):
    kept, source = tables(tmp_path)
    kept.ensure([NAME, OTHER, b"\x03" * 32])
    assert sorted(source.asked) == [NAME, OTHER, b"\x03" * 32]
    assert is_right(kept)
    assert is_right(kept, OTHER)
    assert kept.segment(b"\x03" * 32, 0) is None
    assert kept.whole(b"\x03" * 32) is None


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(["flip", "cut", "empty", "other", "grown"]), st.integers(0, 1 << 30), st.data()
)
def test_a_file_that_is_not_what_was_written_is_fetched_again(tmp_path_factory, damage, at, data):
    directory = tmp_path_factory.mktemp("ids")
    kept, _ = tables(directory)
    kept.put(NAME, *TABLES[NAME])
    kept.put(OTHER, *TABLES[OTHER])
    path, other = (directory / name.hex()[:2] / name.hex() for name in (NAME, OTHER))
    whole = path.read_bytes()
    at %= len(whole)
    path.write_bytes(
        {
            "flip": whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :],
            "cut": whole[:at],
            "empty": b"",
            "other": other.read_bytes(),
            "grown": whole + b"x",
        }[damage]
    )
    if data.draw(st.booleans()):
        kept, _ = tables(directory)
    assert is_right(kept)
    assert path.read_bytes() == whole or 12 <= at < 32  # the header's zeroes mean nothing


def test_holes_negative_ordinals_and_those_behind_the_end_are_not_there(tmp_path):
    kept, _ = tables(tmp_path)
    for wanted in ([0], [1, 2], [-1], [2 * COUNT + 1], [1 << 40]):
        assert kept.at(NAME, np.array(wanted, dtype=np.int64)) is None
    assert kept.at(NAME, np.array([3, 1, 3], dtype=np.int64)) is not None


def test_the_cache_keeps_within_its_limit_and_what_was_used_last(tmp_path):
    kept, _ = tables(tmp_path)
    names = [bytes([n]) * 32 for n in range(10)]
    for name in names:
        kept.put(name, *TABLES[NAME])
    one = kept.size().size_bytes // 10
    for age, name in enumerate(names):
        os.utime(tmp_path / name.hex()[:2] / name.hex(), (age, age))
    again, source = tables(tmp_path, limit_bytes=3 * one)
    assert again.whole(names[0]) is not None
    again.trim()
    assert again.size().tables == 3
    fresh, source = tables(tmp_path)
    assert fresh.whole(names[0]) is not None
    assert fresh.whole(names[9]) is not None
    assert source.asked == []


@pytest.mark.parametrize("place", ["file", "directory"])
def test_a_cache_that_cannot_be_written_costs_requests_and_nothing_else(place, tmp_path):
    blocked = tmp_path / "ids"
    if place == "file":
        blocked.write_bytes(b"")
    else:
        (blocked / NAME.hex()[:2] / NAME.hex()).mkdir(parents=True)
    kept, _ = tables(blocked)
    assert is_right(kept)
    kept.trim()


def test_the_cache_is_for_its_owner_only(tmp_path):
    kept, _ = tables(tmp_path / "ids")
    kept.put(NAME, *TABLES[NAME])
    path = tmp_path / "ids" / NAME.hex()[:2] / NAME.hex()
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == path.parent.parent.stat().st_mode & 0o777 == 0o700


def test_the_cache_keeps_near_its_limit_while_much_is_put(tmp_path):
    kept, _ = tables(tmp_path)
    kept.put(NAME, *TABLES[NAME])
    limit_bytes = 20 * kept.size().size_bytes
    bounded, _ = tables(tmp_path, limit_bytes)
    for number in range(100):
        bounded.put(number.to_bytes(32, "big"), *TABLES[NAME])
    assert bounded.size().size_bytes <= limit_bytes * 17 // 16


def test_where_nothing_can_be_written_a_segment_does_not_hold_its_table_in_memory(tmp_path):
    (tmp_path / "file").touch()
    kept, _ = tables(tmp_path / "file" / "ids")
    kept.put(NAME, *TABLES[NAME])
    rows = kept.segment(NAME, 0)
    assert rows is not None
    owner = rows if rows.base is None else rows.base
    assert owner.nbytes == rows.nbytes


def test_a_fifo_in_the_place_of_a_table_holds_nobody_up(tmp_path):
    kept, _ = tables(tmp_path)
    kept.put(NAME, *TABLES[NAME])
    (path,) = tmp_path.glob("??/*")
    path.unlink()
    os.mkfifo(path)
    again, source = tables(tmp_path)
    within(10, lambda: again.segment(NAME, 0))
    assert is_right(again)
    assert source.asked == [NAME]
