from __future__ import annotations

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drvm.core.clock import SystemClock
from drvm.core.errors import CaptureError
from drvm.core.pace import Pace
from drvm.core.process import SystemProcesses
from drvm.core.units import MIB
from drvm.host.images import ImageTool
from drvm.snapshot.checkpoints import Image
from drvm.snapshot.parts import readable
from drvm.snapshot.reading import Reading
from tests.fakes.clock import FakeClock
from tests.reading import read

READS = st.lists(st.tuples(st.integers(1, MIB), st.floats(0, 3)), max_size=50)


@given(st.integers(1, 50), READS)
def test_the_pace_holds_over_every_stretch_and_idle_time_is_not_saved_up(
    mib_per_s: int, reads: list[tuple[int, float]]
) -> None:
    clock = FakeClock()
    pace = Pace(mib_per_s, clock)
    begun: list[tuple[float, int]] = []
    for length, idle_s in reads:
        clock.sleep(idle_s)
        pace.wait(length)
        begun.append((clock.monotonic_s(), length))
    for first, (start_s, _) in enumerate(begun):
        read_bytes = 0
        for now_s, length in begun[first:]:
            assert read_bytes <= (now_s - start_s) * mib_per_s * MIB + 1
            read_bytes += length


@given(st.integers(1, 50), READS)
def test_nobody_waits_longer_than_the_pace_asks_for(
    mib_per_s: int, reads: list[tuple[int, float]]
) -> None:
    clock = FakeClock()
    pace = Pace(mib_per_s, clock)
    for length, _ in reads:
        pace.wait(length)
    assert clock.passed_s <= sum(length for length, _ in reads) / (mib_per_s * MIB) + 1e-6


def test_without_a_limit_nobody_waits() -> None:
    clock = FakeClock()
    Pace(0, clock).wait(1 << 40)
    assert clock.passed_s == 0


class SharedClock(FakeClock):
    """Stands still, and keeps how long each thread was told to sleep."""

    def __init__(self) -> None:
        super().__init__()
        self.sleeps: list[float] = []
        self._lock = threading.Lock()

    def sleep(self, seconds: float) -> None:
        with self._lock:
            self.sleeps.append(seconds)


def test_all_threads_share_one_pace() -> None:
    clock = SharedClock()
    pace = Pace(10, clock)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(pace.wait, [MIB] * 20))
    assert sorted(clock.sleeps) == pytest.approx([number / 10 for number in range(1, 20)])


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_every_read_of_a_frozen_disk_keeps_the_pace_and_is_believed_only_while_it_is_frozen(
    image_format: str, tmp_path: Path
) -> None:
    path, processes = tmp_path / "disk", SystemProcesses()
    argv = ["qemu-img", "create", "-q", "-f", image_format, str(path), "4M"]
    processes.run(argv, timeout_s=30)
    images = [Image("vda", ImageTool(processes).chain(path, image_format))]
    clock = FakeClock()
    given_up = threading.Event()

    def still_frozen() -> None:
        if given_up.is_set():
            raise CaptureError("given up")

    with contextlib.ExitStack() as stack:
        reading = Reading(Pace(2, clock), still_frozen)
        (disk,) = readable(images, processes, SystemClock(), stack, reading)
        assert sum(extent.length for extent in disk.extents()) == 4 * MIB
        with contextlib.closing(disk.open()) as reader:
            for offset in range(0, 4 * MIB, MIB):
                assert read(reader, offset, MIB) == bytes(MIB)
            assert clock.passed_s == pytest.approx(1.5)
            given_up.set()
            with pytest.raises(CaptureError, match="given up"):
                read(reader, 0, 512)
        with pytest.raises(CaptureError, match="given up"):
            list(disk.extents())
