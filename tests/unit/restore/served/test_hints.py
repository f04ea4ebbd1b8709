"""What a boot reads is fetched at once for the next; a hint can say what it likes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drvm.chunker.blocks import LEAF_BYTES
from drvm.restore.served.hints import (
    MOST_UNITS,
    UNIT_BYTES,
    Recorder,
    read_hint,
    write_hint,
)
from tests.fakes.clock import FakeClock
from tests.unit.repository.conftest import Vault, cheap_key_derivation, new_vault
from tests.unit.repository.faults import FaultyStore
from tests.unit.restore.served.test_served_disk import CONTENT, Served, settle

assert cheap_key_derivation  # a fixture, for all tests here


@given(st.sets(st.integers(0, MOST_UNITS * 4), max_size=50))
def test_what_was_written_is_read_but_for_what_the_disk_does_not_have(tmp_path_factory, units):
    path = tmp_path_factory.mktemp("hint") / "boots" / "vda"
    write_hint(path, units)
    assert read_hint(path, 1 << 40) == sorted(units)
    assert read_hint(path, 100 * UNIT_BYTES + 1) == sorted(unit for unit in units if unit <= 100)


@given(st.binary(max_size=200), st.booleans())
def test_a_file_that_is_no_hint_is_none_or_names_what_the_disk_has(tmp_path_factory, data, marked):
    path = tmp_path_factory.mktemp("hint") / "vda"
    path.write_bytes(b"drvmboot" * marked + data)
    units = read_hint(path, 10 * UNIT_BYTES)
    assert units == sorted(set(units)) and all(0 <= unit < 10 for unit in units)


def test_a_hint_of_too_much_a_link_and_a_pipe_are_none(tmp_path):
    write_hint(tmp_path / "much", set(range(MOST_UNITS + 1)))
    write_hint(tmp_path / "right", {1, 2})
    (tmp_path / "link").symlink_to(tmp_path / "right")
    Path(tmp_path / "directory").mkdir()
    for name in ("much", "link", "directory", "absent"):
        assert read_hint(tmp_path / name, 1 << 40) == []


def test_the_first_minutes_are_recorded_and_given_away_once():
    clock, saved = FakeClock(), []
    recorder = Recorder(clock, saved.append)
    clock.sleep(1000)
    for at in range(20):
        recorder.seen(at * UNIT_BYTES + 5, UNIT_BYTES)
    assert saved == []
    clock.sleep(1000)
    recorder.seen(500 * UNIT_BYTES, 1)
    recorder.seen(600 * UNIT_BYTES, 1)
    recorder.end()
    assert saved == [set(range(21))]


def test_a_recorder_takes_no_more_than_a_hint_may_name_and_keeps_no_glance():
    saved: list[set[int]] = []
    recorder = Recorder(FakeClock(), saved.append)
    recorder.seen(0, 2 * MOST_UNITS * UNIT_BYTES)
    recorder.end()
    assert saved == [set(range(MOST_UNITS))]
    glance = Recorder(FakeClock(), lambda _: pytest.fail("kept"))
    glance.seen(0, UNIT_BYTES)
    glance.end()


@pytest.fixture
def stored() -> Vault:
    vault = new_vault(FaultyStore())
    vault.save([CONTENT], step=1 << 24)
    vault.store.calls.clear()
    return vault


def test_what_a_hint_names_is_there_before_it_is_asked_for(stored):
    served = Served(stored, around_bytes=0)
    end = LEAF_BYTES + 500_000
    served.disk.prepare([0, end // UNIT_BYTES, end // UNIT_BYTES + 1])
    settle(served.frames)
    served.frames._prepared.shutdown()
    stored.store.calls.clear()
    assert served.read(100, 5000) == CONTENT[100:5100]
    assert served.read(end, 20_000) == CONTENT[end : end + 20_000]
    assert stored.store.calls == []


def test_a_hint_fetches_no_more_than_half_of_what_is_kept(stored):
    served = Served(stored, around_bytes=0, sealed_bytes=400_000)
    served.disk.prepare(range(len(CONTENT) // UNIT_BYTES))
    settle(served.frames)
    served.frames._prepared.shutdown()
    fetched = sum(len(one) for one in served.frames._sealed._values.values())
    assert fetched <= 200_000
