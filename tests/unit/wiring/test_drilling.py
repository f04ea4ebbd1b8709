"""What goes wrong in one of several drills is that drill's own."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from drvm.core.clock import SystemClock
from drvm.core.errors import DrvmError, HostError, StoreUnreachable
from drvm.core.progress import NoProgress, Progress
from drvm.wiring import drilling
from drvm.wiring.drilling import Carried, carry_out_all
from tests.unit.report.results import make_drill


class Wirings:
    """Stands for ``Wiring``. ``kept``: what its repository has of drills; ``points``: the ids of
    the points that are there."""

    def __init__(self) -> None:
        self.kept: list[str] = []
        self.full: BaseException | None = None
        self.points = {"9f86d081884c7d65"}

    def another(self) -> Wirings:
        return self

    def __enter__(self) -> Wirings:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def passphrase(self) -> bytes:
        return b""

    def repository(self) -> Any:
        listing = SimpleNamespace(points=[SimpleNamespace(id=name) for name in self.points])
        return SimpleNamespace(
            drills=SimpleNamespace(put=self.put), points=lambda _vm_uuid: listing
        )

    def put(self, vm_uuid: str, _drill_id: str, _record: bytes) -> None:
        if self.full is not None and vm_uuid == "1":
            raise self.full
        self.kept.append(vm_uuid)


def carried(
    monkeypatch: pytest.MonkeyPatch,
    work: Callable[[str, Progress], Any],
    count: int,
    parallel: int,
    wirings: Any = None,
    progress: Progress | None = None,
) -> list[Carried]:
    monkeypatch.setattr(
        drilling, "_drilled", lambda _wiring, plan, progress, _trace: work(plan.vm, progress)
    )
    plans: Any = [SimpleNamespace(vm=str(number)) for number in range(count)]
    told = progress or NoProgress()
    return carry_out_all(wirings or Wirings(), plans, told, parallel=parallel)


def passed(vm: str, _progress: Progress | None = None) -> Any:
    return (make_drill(vm=vm, vm_uuid=vm),)


def names(done: list[Carried]) -> list[list[str]]:
    return [[result.vm for result in one.results] for one in done]


@pytest.mark.parametrize("parallel", [1, 3])
@pytest.mark.parametrize(
    "error", [HostError("no"), OSError(errno.ENOSPC, "No space left on device", "/run/drvm")]
)
def test_an_error_ends_its_drill_alone_and_the_order_stays(
    monkeypatch: pytest.MonkeyPatch, parallel: int, error: Exception
) -> None:
    def work(vm: str, _progress: Progress) -> Any:
        if vm == "1":
            raise error
        return passed(vm)

    wirings = Wirings()
    done = carried(monkeypatch, work, 4, parallel, wirings)
    assert names(done) == [["0"], [], ["2"], ["3"]]
    assert [one.error is not None for one in done] == [False, True, False, False]
    assert "1 could not be drilled: no" in str(done[1].error)
    assert sorted(wirings.kept) == ["0", "2", "3"]


@pytest.mark.parametrize("parallel", [1, 3])
@pytest.mark.parametrize("error", [StoreUnreachable("away"), OSError(errno.ENOSPC, "full")])
def test_a_result_that_can_not_be_kept_is_told_all_the_same(
    monkeypatch: pytest.MonkeyPatch, parallel: int, error: Exception
) -> None:
    wirings = Wirings()
    wirings.full = error
    done = carried(monkeypatch, passed, 3, parallel, wirings)
    assert names(done) == [["0"], ["1"], ["2"]]
    assert [one.error is not None for one in done] == [False, True, False]
    assert "the drill of 1 passed, and its result could not be kept" in str(done[1].error)
    assert sorted(wirings.kept) == ["0", "2"]


def test_a_point_that_was_removed_while_it_was_drilled_is_no_drill_that_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def work(vm: str, _progress: Progress) -> Any:
        gone = {"point": "1111111111111111"}
        return (
            make_drill(vm=vm, vm_uuid=vm, passed=False, failure="pack 12 is gone", **gone),
            make_drill(vm="b", vm_uuid="b", passed=False, ran=False, failure="not run", **gone),
        )

    wirings = Wirings()
    (done,) = carried(monkeypatch, work, 1, 1, wirings)
    assert (done.results, wirings.kept) == ((), [])
    assert "was removed while it was drilled, so nothing is proven" in str(done.error)


@pytest.mark.parametrize(
    "changes",
    [
        {"failure": "pack 12 is gone"},  # the point is there
        {"point": "1111111111111111"},  # a check failed: of what was there
        {"point": "1111111111111111", "passed": True},
    ],
)
def test_all_else_that_a_drill_found_is_kept(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    def work(vm: str, _progress: Progress) -> Any:
        return (make_drill(vm=vm, vm_uuid=vm, **({"passed": False} | changes)),)

    wirings = Wirings()
    (done,) = carried(monkeypatch, work, 1, 1, wirings)
    assert (names([done]), wirings.kept, done.error) == ([["0"]], ["0"], None)


@pytest.mark.parametrize("count", [1, 2])
def test_several_drills_one_after_the_other_are_told_by_name(
    monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    titles: list[str] = []

    class Told(NoProgress):
        def stage(self, title: str, total_bytes: int | None = None) -> None:
            titles.append(title)

    def work(vm: str, progress: Progress) -> Any:
        progress.stage("restoring vda", 5)
        return passed(vm)

    carried(monkeypatch, work, count, 1, progress=Told())
    alone, named = ["restoring vda"], ["0: restoring vda", "1: restoring vda"]
    assert titles == (alone if count == 1 else named)


def test_where_the_store_does_not_tell_whether_the_point_is_there_the_drill_has_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Away(Wirings):
        def repository(self) -> Any:
            raise StoreUnreachable("away")

    def work(vm: str, _progress: Progress) -> Any:
        return (make_drill(vm=vm, passed=False, failure="the store is away"),)

    (done,) = carried(monkeypatch, work, 1, 1, Away())
    assert names([done]) == [["0"]]
    assert isinstance(done.error, DrvmError)


def test_so_many_drills_run_at_once_as_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    both = threading.Barrier(2, timeout=30)

    def work(vm: str, _progress: Progress) -> Any:
        both.wait()
        return passed(vm)

    assert len(carried(monkeypatch, work, 4, 2)) == 4


def test_an_interrupt_ends_all_drills_when_each_has_taken_down_what_it_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken_down: list[str] = []
    begun = threading.Event()

    def work(vm: str, progress: Progress) -> Any:
        if vm == "0":
            assert begun.wait(30)
            raise KeyboardInterrupt  # as it would come to whoever waits for the first
        try:
            for _ in range(10_000):
                begun.set()
                progress.advance(0)
                SystemClock().sleep(0.01)
        finally:
            taken_down.append(vm)
        return passed(vm)

    with pytest.raises(KeyboardInterrupt):
        carried(monkeypatch, work, 2, 2)
    assert taken_down == ["1"]
