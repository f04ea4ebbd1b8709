from __future__ import annotations

import datetime as dt
import stat
from pathlib import Path

import pytest

from drvm.report.input import StorageSample
from drvm.wiring.growth import MAX_SAMPLES, samples_with

NOW = dt.datetime(2026, 11, 23, 6, 0, tzinfo=dt.UTC)


def sample(days: float, stored: int = 10) -> StorageSample:
    return StorageSample(
        taken=NOW + dt.timedelta(days=days), stored_bytes=stored, protected_bytes=20,
        points_bytes=30, points=2,
    )  # fmt: skip


def test_each_day_keeps_its_last_sample(tmp_path: Path) -> None:
    state = tmp_path / "state"
    for days, stored in ((0, 1), (0.1, 2), (1, 3), (1.2, 4)):
        samples = samples_with(state, "r", sample(days, stored))
    assert [one.stored_bytes for one in samples] == [2, 4]
    assert stat.S_IMODE((state / "storage-r.json").stat().st_mode) == 0o600


def test_what_says_the_same_is_not_written_each_minute(tmp_path: Path) -> None:
    samples_with(tmp_path, "r", sample(0))
    before = (tmp_path / "storage-r.json").stat().st_ino
    assert samples_with(tmp_path, "r", sample(0.01))[-1] == sample(0.01)
    assert (tmp_path / "storage-r.json").stat().st_ino == before


@pytest.mark.parametrize("data", [b"", b"{", b"[1]", b'[{"taken": "2026-11-23T06:00:00"}]'])
def test_a_damaged_file_begins_anew(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "storage-r.json").write_bytes(data)
    assert samples_with(tmp_path, "r", sample(0)) == (sample(0),)
    assert len(samples_with(tmp_path, "r", sample(1))) == 2


def test_a_clock_that_was_set_back_for_a_while_costs_no_history(tmp_path: Path) -> None:
    for day in range(20):
        samples_with(tmp_path, "r", sample(day, day))
    long_ago = sample(-20_000)
    assert samples_with(tmp_path, "r", long_ago) == (long_ago,)
    assert samples_with(tmp_path, "r", long_ago) == (long_ago,)
    samples = samples_with(tmp_path, "r", sample(20, 20))
    assert [one.stored_bytes for one in samples] == list(range(21))


def test_what_lies_in_the_future_is_left_out_and_the_rest_is_bounded(tmp_path: Path) -> None:
    samples_with(tmp_path, "r", sample(500))
    assert samples_with(tmp_path, "r", sample(-1)) == (sample(-1),)
    for day in range(MAX_SAMPLES + 5):
        samples = samples_with(tmp_path, "r", sample(day, day))
    assert len(samples) == MAX_SAMPLES and samples[-1].stored_bytes == MAX_SAMPLES + 4


def test_a_place_that_can_t_be_written_costs_only_the_history(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    assert samples_with(blocked / "state", "r", sample(0)) == (sample(0),)
