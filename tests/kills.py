"""The kill harness: SIGKILL at every step of a backup, beside a guest that writes all the time.

``python -m tests.kills [--times N] [--way NAME ...]``, as root, prints its table. For each way of
taking a point a first backup tells the steps; then a backup is killed at each of them, N times:
once right there, then up to 0.2 s later. After each kill, as at the next start: recovery, and a
look at the guest, its disks and the repository that is not drvm's own.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import re
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from drvm.core.clock import SystemClock
from drvm.core.process import SystemProcesses
from drvm.core.progress import NoProgress, Trace
from drvm.core.units import format_seconds
from drvm.repository.repository import Repository
from drvm.snapshot.recovery import Recovered, recover
from drvm.wiring.assembly import Wiring
from drvm.wiring.jobs import BackupOptions, take_point
from tests import chain
from tests.appliance import Appliance, make_appliance
from tests.capturing import assert_sound_file_system, file_in_raw
from tests.guests import Guest, command_guests
from tests.killing import ENDED, KILLED, end_at
from tests.proving import proven_point

LIMIT_S = 60.0
"""From the next start until nothing is left."""

CHAINS = {"vda": "/root/chain", "vdb": "/chain"}
"""The records' files on each disk."""

_LATEST_S = 0.2
_clock = SystemClock()


@dataclass(frozen=True)
class Way:
    """One way of taking points. ``stands``: the guest stays on an overlay between them."""

    name: str
    options: BackupOptions
    stands: bool = False


WAYS = (
    Way("external", BackupOptions()),
    Way("pull", BackupOptions(engine="pull")),
    Way("standing-overlay", BackupOptions(changed_blocks="standing-overlay"), stands=True),
    Way("memory", BackupOptions(memory=True)),
)


@dataclass
class Row:
    """What became of the kills at one step."""

    way: str
    step: str
    kills: int = 0
    problems: list[str] = field(default_factory=list)
    slowest_s: float = 0.0


class Forked(Wiring):
    """For a child: libvirt connections of its own, and the repository that the parent opened."""

    def __init__(self, parent: Wiring) -> None:
        super().__init__(
            parent.settings,
            clock=parent.clock,
            processes=parent.processes,
            passphrase=bytes,
        )
        self._opened = parent.repository()

    def repository(self) -> Repository:
        return self._opened


@dataclass
class Harness:
    """One guest, one repository in a directory."""

    guest: Guest
    wiring: Wiring
    scratch: Path
    random: random.Random
    acknowledged: chain.Follower

    def run(
        self,
        way: Way,
        times: int,
        tell: Callable[[Row], None] = lambda row: None,
        *,
        but: Collection[str] = (),
    ) -> list[Row]:
        """Every step ``but`` some, ``times`` times, and after each the next point, which is
        proven to be right (with one kill each, only after the last)."""
        self.steps(way)  # the first backup after another way folds that one's overlays
        rows = [Row(way.name, step) for step in self.steps(way) if step not in but]
        for row in rows:
            for number in range(times):
                self.kill(way, row, self.random.uniform(0, _LATEST_S) if number else 0.0)
                if times > 1:
                    self.prove(way)
            tell(row)
        self.prove(way)
        self.acknowledged.follow()
        return rows

    def prove(self, way: Way) -> None:
        """The point is consistent, and the chains on its disks are whole and of one instant."""
        texts: dict[str, str] = {}

        def look(target: str, raw: Path) -> None:
            assert_sound_file_system(raw)
            texts[target] = file_in_raw(raw, CHAINS[target]).decode()

        options = replace(way.options, memory=False)  # with it, disks alone are as of a power cut
        made = proven_point(self.wiring, self.guest, self.scratch, options, look)
        assert made.consistency == "filesystem", made.warnings
        chain.assert_one_instant(chain.verify([texts[target] for target in CHAINS]))

    def steps(self, way: Way) -> list[str]:
        """The names that a backup passes, in their order."""
        passed: dict[str, None] = {}
        take_point(
            self.wiring,
            self.guest.name,
            way.options,
            NoProgress(),
            lambda step: passed.setdefault(step),
        )
        return list(passed)

    def kill(self, way: Way, row: Row, delay_s: float) -> None:
        points = self._good_points()
        ended = self.killed_backup(way, row.step, delay_s)
        row.kills += 1
        start_s = _clock.monotonic_s()
        problems = [done.problem for done in self._next_start() if done.problem]
        taken_s = _clock.monotonic_s() - start_s
        row.slowest_s = max(row.slowest_s, taken_s)
        if taken_s > LIMIT_S:
            problems.append(f"recovery took {taken_s:.0f} s")
        if not ended:
            problems.append("the step was not reached")
        problems += leftovers(self.guest, self.wiring, way)
        if len(self._good_points() - points) > 1:
            problems.append("more points than backups")
        try:
            self.acknowledged.follow()
        except AssertionError as lost:
            problems.append(f"records lost: {lost}")
        row.problems += [f"{problem} (after {delay_s:.3f} s)" for problem in problems]

    def _next_start(self) -> list[Recovered]:
        with Forked(self.wiring) as wiring:
            return recover(wiring.parts(wiring.host()), self.guest.name)

    def _good_points(self) -> set[str]:
        listing = self.wiring.repository().points()
        assert listing.problems == (), listing.problems
        return {point.id for point in listing.points}

    def killed_backup(self, way: Way, step: str, delay_s: float) -> bool:
        """Whether the child was killed, or, after a delay, had come to its end."""

        def work(trace: Trace) -> None:
            with Forked(self.wiring) as wiring:
                take_point(wiring, self.guest.name, way.options, NoProgress(), trace)

        code = end_at(step, work, delay_s)
        return code in KILLED or (code == ENDED and delay_s > 0)


def leftovers(guest: Guest, wiring: Wiring, way: Way) -> list[str]:
    """What is not as it should be between backups, for people; looked at by virsh."""
    problems = []
    running, defined, job, xml, checkpoints = guest.virsh_all(
        "domblklist", "domblklist --inactive", "domjobinfo", "dumpxml", "checkpoint-list --name"
    )
    for which, listing in (("", running), ("--inactive", defined)):
        for target, path in (line.split(maxsplit=1) for line in listing.strip().splitlines()):
            if Path(path.strip()) != guest.disks[target] and not way.stands:
                problems.append(f"{target} {which} is on {path.strip()}")
    for path in guest.directory.iterdir():
        if ".drvm-" in path.name and not (way.stands and str(path) in running):
            problems.append(f"{path.name} is left")
    if not way.stands and list((Path(wiring.settings.state_dir) / "journal").glob("*.json")):
        problems.append("a journal is left")
    if "<mirror" in xml or not re.search(r"Job type:\s+None", job):
        problems.append("a job is left")
    if len(checkpoints.split()) > 2:
        problems.append("more than two checkpoints")
    if guest.agent("guest-fsfreeze-status") != "thawed":
        problems.append("the guest is frozen")
    return problems


@contextlib.contextmanager
def harness(
    guest: Guest, appliance: Appliance, seed: int, *, chained: bool = True
) -> Iterator[Harness]:
    """``chained``: the guest writes hash-chained records all the time."""
    follower = chain.Follower(guest)
    with appliance.wiring() as wiring:
        wiring.create_repository()
        if chained:
            chain.start(guest)
        try:
            yield Harness(guest, wiring, appliance.directory, random.Random(seed), follower)
        finally:
            if chained:
                chain.stop(guest)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.kills", description=__doc__)
    parser.add_argument("--times", type=int, default=5, help="kills at each step")
    parser.add_argument("--way", action="append", choices=[way.name for way in WAYS])
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    asked = parser.parse_args()
    processes = SystemProcesses()
    rows: list[Row] = []
    print(f"seed {asked.seed}")
    print(f"{'way':<18} {'step':<24} {'kills':>5} {'slowest':>8}  problems", flush=True)

    def tell(row: Row) -> None:
        words = "; ".join(row.problems) or "none"
        time = format_seconds(row.slowest_s)
        print(f"{row.way:<18} {row.step:<24} {row.kills:>5} {time:>8}  {words}", flush=True)

    with contextlib.ExitStack() as stack:
        make = stack.enter_context(command_guests(processes))
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="drvm-kills-")))
        appliance = make_appliance(directory, f"file://{directory}/repository", None)
        made = stack.enter_context(harness(make("kills"), appliance, asked.seed))
        for way in WAYS:
            if not asked.way or way.name in asked.way:
                rows += made.run(way, asked.times, tell)
    kills = sum(row.kills for row in rows)
    bad = sum(len(row.problems) for row in rows)
    print(f"{len(rows)} steps, {kills} kills, {made.acknowledged.count} records, {bad} problems")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
