"""Random histories of a real guest's disks: every point is what the disks were at its instant."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from drvm.snapshot.recovery import recover
from drvm.wiring.jobs import BackupOptions
from tests.appliance import make_appliance
from tests.guests import MakeGuest, all_qcow2, with_qcow2
from tests.kills import WAYS, Harness, Way, harness
from tests.proving import proven_point

pytestmark = [pytest.mark.guest, pytest.mark.long]

STEPS = 40


class History:
    """Steps by a seed; the guest's second disk has no file system any more."""

    def __init__(self, kills: Harness, way: Way, seed: int) -> None:
        self.kills = kills
        self.way = way
        self.random = random.Random(seed)
        self.steps = kills.steps(way)
        self.told: list[str] = []

    def go_on(self) -> None:
        kinds = {
            self.write: 6,
            self.zero: 3,
            self.trim: 3,
            self.larger: 1,
            self.killed: 3,
            self.powered_off: 1,
            self.point: 4,
        }
        (step,) = self.random.choices(list(kinds), weights=list(kinds.values()))
        self.told.append(step.__name__)
        step()

    def write(self) -> None:
        self._dd("/dev/urandom")

    def zero(self) -> None:
        self._dd("/dev/zero")

    def trim(self) -> None:
        at, count = self._range()
        self.kills.guest.run(f"blkdiscard -o {at * 4096} -l {count * 4096} /dev/vdb")

    def larger(self) -> None:
        if self.way.options.engine == "pull":
            self.recover()  # QEMU resizes no disk of a backup that is still open
        size = int(self.kills.guest.run("cat /sys/block/vdb/size")) * 512
        self.kills.guest.virsh("blockresize", "vdb", f"{size + (1 << 20)}B")

    def killed(self) -> None:
        step = self.random.choice(self.steps)
        self.told.append(step)
        self.kills.killed_backup(self.way, step, self.random.choice((0.0, 0.05, 0.2)))
        self.kills.guest.wait_until_thawed()
        if self.random.random() < 0.5:
            self.write()
        if self.random.random() < 0.5:
            self.recover()

    def powered_off(self) -> None:
        self.kills.guest.virsh("destroy")
        if self.random.random() < 0.5:
            self.point(replace(self.way.options, memory=False))  # what is off has none
        self.kills.guest.start()
        self.kills.guest.run("umount /data || true")

    def point(self, options: BackupOptions | None = None) -> None:
        kills = self.kills
        proven_point(kills.wiring, kills.guest, kills.scratch, options or self.way.options)

    def recover(self) -> None:
        wiring = self.kills.wiring
        for done in recover(wiring.parts(wiring.host()), self.kills.guest.name):
            assert done.problem == "", self.told

    def _range(self) -> tuple[int, int]:
        return self.random.randrange(60000), self.random.choice((1, 3, 16, 100))

    def _dd(self, source: str) -> None:
        at, count = self._range()
        self.kills.guest.run(
            f"dd if={source} of=/dev/vdb bs=4k seek={at} count={count} oflag=direct"
            f" conv=notrunc,fsync 2>/dev/null"
        )


@pytest.mark.parametrize("qcow2", [True, False], ids=["qcow2", "raw"])
@pytest.mark.parametrize("way", WAYS, ids=[way.name for way in WAYS])
def test_every_point_of_a_random_history_is_right(
    make_guest: MakeGuest, tmp_path_factory: pytest.TempPathFactory, way: Way, qcow2: bool
) -> None:
    directory = tmp_path_factory.mktemp("history")
    appliance = make_appliance(directory, f"file://{directory}/repository", None)
    guest = with_qcow2(make_guest("history", edit=all_qcow2)) if qcow2 else make_guest("history")
    with harness(guest, appliance, seed=0, chained=False) as kills:
        guest.run("umount /data")
        seed = random.randrange(1 << 32)
        history = History(kills, way, seed)
        try:
            for _ in range(STEPS):
                history.go_on()
            history.recover()
            history.point()
        except BaseException as problem:
            problem.add_note(f"seed {seed}: {' '.join(history.told)}")
            raise
