"""A guest never stands still because of a backup: not for want of room, not for a store that
hangs, and where it does in spite of all, it goes on again."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest

from drvm.backup.run import Backup, BackupResult
from drvm.core.clock import SystemClock
from drvm.core.errors import CleanupFailed, OutOfSpace
from drvm.core.ids import new_point_id
from drvm.core.process import Processes
from drvm.core.progress import NoProgress
from drvm.core.units import MIB
from drvm.lab import guest as lab
from drvm.repository.repository import Repository
from drvm.snapshot.capture import CaptureRequest, EngineWish
from drvm.snapshot.external import ExternalEngine
from drvm.snapshot.parts import Parts
from drvm.snapshot.recovery import recover
from drvm.snapshot.space import Room
from drvm.store.base import Store
from tests.capturing import assert_back_on_its_disks, capture, digest, make_parts, with_trace
from tests.guests import Guest, MakeGuest, unique_name
from tests.small import HangingStore, fill, small_file_system

pytestmark = pytest.mark.guest

LIMIT_S = 60.0
SIZE_BYTES = 112 * MIB
_clock = SystemClock()

WRITER = """
n=0; rm -f /tmp/stop; while [ ! -e /tmp/stop ]; do n=$((n+1))
dd if=/dev/zero of=/data/pace bs=4k count=16 conv=notrunc,fsync 2>/dev/null; echo $n > /tmp/count
done"""


@pytest.fixture(scope="module")
def small(libvirt_uri: str) -> Iterator[Path]:
    with small_file_system(lab.IMAGES / unique_name("small"), SIZE_BYTES) as directory:
        yield directory


@pytest.fixture(scope="module")
def guest(small: Path, make_module_guest: MakeGuest, processes: Processes) -> Guest:
    """Its data disk, raw and thin, lies on a file system that it can fill."""
    data = small / "data.raw"

    def on_small(xml: str) -> str:
        (old,) = re.findall(r"[\"'](/[^\"']*/data\.raw)[\"']", xml)
        processes.run(["cp", "--sparse=always", old, str(data)], timeout_s=60)
        return xml.replace(old, str(data))

    made = make_module_guest("space", edit=on_small)
    made.disks["vdb"] = data
    return made


@pytest.fixture
def parts(libvirt_uri: str, tmp_path: Path, processes: Processes) -> Parts:
    made = make_parts(libvirt_uri, tmp_path / "state", processes)
    return dataclasses.replace(made, overlay_reserve_bytes=24 * MIB)


@pytest.fixture
def pauses(guest: Guest, processes: Processes, tmp_path: Path) -> Iterator[Callable[[], str]]:
    """What libvirt says of I/O errors of the guest, since the test began."""
    log = tmp_path / "events"
    argv = ["virsh", "-c", lab.URI, "event", "--domain", guest.name, "--event", "io-error"]
    child = processes.spawn([*argv, "--loop", "--timeout", "300"], log=log)
    try:
        _clock.sleep(0.5)
        yield lambda: log.read_text()
    finally:
        child.stop()


def wait_until(done: Callable[[], object], what: str) -> None:
    deadline_s = _clock.monotonic_s() + LIMIT_S
    while not done():
        assert _clock.monotonic_s() < deadline_s, what
        _clock.sleep(0.05)


def pace(guest: Guest) -> float:
    """Writes per second that the guest gets done."""
    start_s, first = _clock.monotonic_s(), int(guest.run("cat /tmp/count"))
    _clock.sleep(1.0)
    last = int(guest.run("cat /tmp/count"))
    return (last - first) / (_clock.monotonic_s() - start_s)


class InThread:
    """A backup into a store of the test's, by a thread of its own."""

    def __init__(self, parts: Parts, guest: Guest, store: HangingStore, cache: Path) -> None:
        self.repository = Repository.create(cast(Store, store), b"passphrase", cache)
        self.uuid = guest.virsh("domuuid").strip()
        self.steps: list[str] = []
        self.results: list[BackupResult] = []
        self._parts = with_trace(parts, self.steps.append)
        self.thread = threading.Thread(target=self._run, args=(guest.name,))

    def _run(self, vm: str) -> None:
        backup = Backup(
            self.repository,
            writer="test",
            level=1,
            clock=_clock,
            progress=NoProgress(),
            trace=self.steps.append,
        )
        request = CaptureRequest(vm=vm, point_id=new_point_id(), commit_bandwidth_mib_s=1)
        self.results.append(backup.run(ExternalEngine(self._parts), request, self.uuid))


def assert_nothing_left(guest: Guest, parts: Parts, small: Path) -> None:
    assert_back_on_its_disks(guest, parts)
    assert sorted(path.name for path in small.iterdir()) == ["data.raw"]
    assert guest.virsh("domstate").strip() == "running"


def test_a_store_that_hangs_neither_slows_the_guest_nor_lets_its_writes_run_out_of_room(
    guest: Guest, parts: Parts, small: Path, tmp_path: Path, pauses: Callable[[], str]
) -> None:
    guest.agent("guest-exec", path="/bin/sh", arg=["-c", WRITER])
    wait_until(lambda: guest.run("cat /tmp/count || true").strip(), "the guest does not write")
    before = pace(guest)
    store = HangingStore()
    run = InThread(parts, guest, store, tmp_path / "cache")
    with contextlib.ExitStack() as released:
        released.callback(run.thread.join, LIMIT_S)
        released.enter_context(store.hanging())
        run.thread.start()
        assert store.hung.wait(LIMIT_S)
        assert pace(guest) > before / 3 or pace(guest) > before / 3
        assert guest.virsh("domblklist").count(".overlay") == 2
        guest.run("touch /tmp/stop; dd if=/dev/urandom of=/data/big bs=1M count=48 conv=fsync")
        wait_until(lambda: "journal-removed" in run.steps, f"not given up: {run.steps}")
        assert run.thread.is_alive(), "it was not the backup's own thread that hangs"
        assert_nothing_left(guest, parts, small)
    assert run.steps.count("given-up") == 1
    (result,) = run.results
    assert isinstance(result.cleanup, OutOfSpace), "all was read before: the point is good"
    assert str(small) in str(result.cleanup)
    assert guest.name not in pauses(), "the guest was paused"
    with capture(parts, guest.name):
        pass
    guest.run("rm /data/big; sync; fstrim /data")


@pytest.mark.parametrize("engine", ["external", pytest.param("pull", marks=pytest.mark.long)])
def test_a_guest_that_runs_out_of_room_in_spite_of_all_goes_on_when_the_capture_has_ended(
    guest: Guest,
    parts: Parts,
    small: Path,
    pauses: Callable[[], str],
    monkeypatch: pytest.MonkeyPatch,
    engine: EngineWish,
) -> None:
    """As where a quota or another program leaves less than the file system says."""
    monkeypatch.setattr(Room, "shortage", lambda *_, **__: "")
    guest.run("dd if=/dev/zero of=/data/big bs=1M count=24 conv=fsync")
    filler = fill(small, 8 * MIB)
    again = "dd if=/dev/urandom of=/data/big bs=1M count=24 conv=notrunc,fsync && touch /tmp/done"
    steps: list[str] = []
    try:
        with (
            pytest.raises(OutOfSpace, match=r"could not write to vdb; the guest was paused.*goes"),
            capture(with_trace(parts, steps.append), guest.name, engine=engine) as machine,
        ):
            guest.agent("guest-exec", path="/bin/sh", arg=["-c", f"rm -f /tmp/done; {again}"])
            wait_until(lambda: "resumed" in steps, f"it stands still: {steps}")
            for disk in machine.disks:
                with pytest.raises(OutOfSpace):
                    digest(disk)
    finally:
        filler.unlink()
    assert guest.name in pauses()
    guest.run("while [ ! -e /tmp/done ]; do sleep 0.1; done; rm /data/big; sync; fstrim /data")
    assert_nothing_left(guest, parts, small)


@pytest.mark.long
def test_a_guest_whose_overlay_can_not_be_merged_for_want_of_room_goes_on_when_there_is_some(
    guest: Guest, parts: Parts, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest.run("fstrim /data")
    write = "dd if=/dev/urandom of=/data/big bs=1M count=24 conv=fsync && touch /tmp/done"
    with monkeypatch.context() as blind:
        blind.setattr(Room, "shortage", lambda *_, **__: "")
        with (
            pytest.raises(CleanupFailed, match=r"without effect.*was paused"),
            capture(parts, guest.name),
        ):
            fill(small, 8 * MIB)
            guest.agent("guest-exec", path="/bin/sh", arg=["-c", f"rm -f /tmp/done; {write}"])
            wait_until(lambda: "paused" in guest.virsh("domstate"), "it was not paused")
    (told,) = recover(parts, guest.name)
    assert "without effect" in told.problem
    assert str(small) in told.hint and "make room" in told.hint
    (small / "filler").unlink()
    assert [done.problem for done in recover(parts, guest.name)] == [""]
    guest.run("while [ ! -e /tmp/done ]; do sleep 0.1; done; rm /data/big; sync; fstrim /data")
    assert_nothing_left(guest, parts, small)


def test_without_room_nothing_is_begun(guest: Guest, parts: Parts, small: Path) -> None:
    greedy = dataclasses.replace(parts, overlay_reserve_bytes=SIZE_BYTES)
    with pytest.raises(OutOfSpace, match="in reserve"), capture(greedy, guest.name):
        pytest.fail("captured")
    assert_nothing_left(guest, parts, small)
