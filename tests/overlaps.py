"""Backups, copies, rewriting, retention and collectors at once, in processes of their own.

``python -m tests.overlaps [--rounds N] [--seed S]`` prints its seed, and what went wrong. In each
round a few processes work on one repository; some stand still at a step for a while, some are
killed there. The grace is 0, and so is the age below which nothing is deleted: nothing but the
protocol keeps data. After each round every point that says ok must read as it was written, and no
point that its writer was told of may be missing, unless somebody ended it.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from drvm.backup.run import Backup
from drvm.chunker.blocks import BLOCK_BYTES, LEAF_BYTES
from drvm.core.clock import SystemClock
from drvm.core.errors import DrvmError
from drvm.core.process import SystemProcesses
from drvm.core.progress import NoProgress, Trace
from drvm.host.images import ImageTool
from drvm.repository.crypto import MasterKeys
from drvm.repository.index.sparse import DEFAULT_LIMITS
from drvm.repository.keys import Opened
from drvm.repository.layout import CONFIG, FORMAT_VERSION, RepositoryConfig
from drvm.repository.points import Point, end_point
from drvm.repository.reader import write_disk
from drvm.repository.repository import Repository
from drvm.snapshot.capture import CaptureRequest
from drvm.snapshot.imagefiles import ImageFile, ImageFilesEngine, machine_uuid
from drvm.store.base import Store
from drvm.store.directory import DirectoryStore
from drvm.upkeep.copy import plan_copy, run_copy
from drvm.upkeep.gc import Collected, GcRules, plan_gc, run_gc
from drvm.upkeep.retention import Now
from drvm.upkeep.retire import Retired, RetirePlan, Retiring, run_retire
from drvm.upkeep.survey import survey

NO_TIME = dt.timedelta(0)
MACHINES = ("one", "two")
LEAVES = (0, 1, 32)
"""Those that hold data: under two level-1 nodes."""
SIZE_BYTES = 33 * LEAF_BYTES
POOL = 40
MANY = 4
"""More points than these are ended by preference."""
LIMIT_S = 120.0
_clock = SystemClock()

Content = dict[int, int]
"""Number of a block -> the number of its content in the pool; all others are zeroes."""


def block(seed: int) -> bytes:
    return random.Random(seed).randbytes(BLOCK_BYTES)


@dataclass
class Site:
    """One repository, opened without its passphrase."""

    open_store: Callable[[], Store]
    opened: Opened

    @staticmethod
    def make(open_store: Callable[[], Store], number: int) -> Site:
        config = RepositoryConfig(FORMAT_VERSION, f"{number:032x}", ())
        open_store().put(CONFIG, config.encode())
        return Site(open_store, Opened(MasterKeys.generate(), config, "", b""))

    def repository(self, cache: Path | None = None) -> Repository:
        return Repository(self.open_store(), self.opened, cache, DEFAULT_LIMITS)


@dataclass
class Child:
    pid: int
    verb: str
    stopped: bool = False


@dataclass
class Overlaps:
    """``contents``: of each point that was ever begun. ``outcomes``: how the processes ended."""

    directory: Path
    here: Site
    there: Site
    random: random.Random
    contents: dict[str, Content] = field(default_factory=dict)
    outcomes: Counter[str] = field(default_factory=Counter)
    children: list[Child] = field(default_factory=list)
    serial: int = 0
    current: dict[str, Content] = field(default_factory=dict)

    def round(self) -> None:
        verbs = ["backup", self.random.choice(("backup", "gc")), "gc"]
        verbs.append(self.random.choice(("end", "end", "rewrite", "copy", "copy-gc")))
        self.random.shuffle(verbs)
        for verb in verbs:
            self._start(verb)
        self._finish()
        self.check()

    def close(self) -> None:
        for child in self.children:
            os.kill(child.pid, signal.SIGKILL)
            os.waitpid(child.pid, 0)
        self.children = []

    # -- the processes ------------------------------------------------------------------------
    def _start(self, verb: str) -> None:
        """What a child does is decided before it is made, so that a seed tells all but the
        interleaving."""
        self.serial += 1
        work = getattr(self, f"_{verb.replace('-', '_')}")(self.random.getrandbits(32))
        fate = self.random.choices(("end", "kill", "stop"), (5, 2, 3))[0]
        at = self.random.randrange(1, 9)
        pauses = [self.random.choice((0.0, 0.0, 0.001, 0.02)) for _ in range(64)]
        pid = os.fork()
        if pid:
            self.children.append(Child(pid, verb))
            return
        code = 9
        try:
            signal.alarm(int(LIMIT_S))
            os.nice(5)
            work(_following(fate, at, pauses))
            code = 0
        except DrvmError as error:
            self._note("failed", f"{verb}: {type(error).__name__}: {error}")
            code = 1
        except BaseException as error:  # noqa: BLE001 - a child ends here, whatever it was
            self._note("broken", f"{verb}: {type(error).__name__}: {error}")
        finally:
            os._exit(code)

    def _finish(self) -> None:
        """Until all have ended but those that stand still. These go on in this round or, half of
        them, during the next."""
        waited_s = _clock.monotonic_s() + LIMIT_S
        while any(not child.stopped for child in self.children):
            pid, status = os.waitpid(-1, os.WUNTRACED | os.WNOHANG)
            if pid == 0:
                assert _clock.monotonic_s() < waited_s, "a process hangs"
                time.sleep(0.002)
                continue
            self._reaped(pid, status)
        for child in list(self.children):
            if self.random.random() < 0.5:
                child.stopped = False
                os.kill(child.pid, signal.SIGCONT)
        while any(not child.stopped for child in self.children):
            self._reaped(*os.waitpid(-1, os.WUNTRACED))
        for child in self.children:
            if self.random.random() < 0.7:  # goes on beside the next round; the others later
                child.stopped = False
                os.kill(child.pid, signal.SIGCONT)

    def _reaped(self, pid: int, status: int) -> None:
        (child,) = (child for child in self.children if child.pid == pid)
        if os.WIFSTOPPED(status):
            child.stopped = True
            self.outcomes[f"{child.verb} stood still"] += 1
            return
        self.children.remove(child)
        code = os.waitstatus_to_exitcode(status)
        words = {0: "ended", 1: "failed", -signal.SIGKILL: "was killed"}
        assert code in words, f"{child.verb} ended with {code}: {self._notes('broken')}"
        self.outcomes[f"{child.verb} {words[code]}"] += 1

    # -- what they do: decided here, done in the child ----------------------------------------
    def _backup(self, seed: int) -> Callable[[Trace], None]:
        vm = self.random.choice(MACHINES)
        content = self._changed(self.current.get(vm, {}))
        self.current[vm] = content
        image = self.directory / f"image-{self.serial}.raw"
        point_id = f"{self.random.getrandbits(64):016x}"
        self.contents[point_id] = content
        with image.open("wb") as stream:
            for number, what in content.items():
                stream.seek(number * BLOCK_BYTES)
                stream.write(block(what))
            stream.truncate(SIZE_BYTES)

        def work(trace: Trace) -> None:
            engine = ImageFilesEngine(
                ImageTool(SystemProcesses()), SystemProcesses(), _clock, [ImageFile(image)]
            )
            backup = Backup(
                self.here.repository(self.directory / f"cache-{seed % 2}"),
                writer="here",
                level=1,
                clock=_clock,
                progress=NoProgress(),
                trace=trace,
            )
            backup.run(engine, CaptureRequest(vm=vm, point_id=point_id), machine_uuid(vm))
            self._note("made", point_id)

        return work

    def _gc(self, seed: int) -> Callable[[Trace], None]:
        """Two runs: what the first condemns the second deletes."""

        def work(trace: Trace) -> None:
            for _ in range(2):
                self._collect(self.here, seed, trace)

        return work

    def _copy_gc(self, seed: int) -> Callable[[Trace], None]:
        return lambda trace: self._collect(self.there, seed, trace)

    def _collect(self, site: Site, seed: int, trace: Trace) -> None:
        """Sometimes whatever is pending is given up at once."""
        give_up = dt.timedelta(days=7) if seed % 8 else NO_TIME
        repository = site.repository()
        now = _clock.now()
        plan = plan_gc(
            survey(repository, now, trace), Now(now, now), GcRules(NO_TIME, give_up, NO_TIME)
        )
        assert not plan.refused, plan
        run_gc(repository, plan, Collected(), trace)

    def _end(self, seed: int) -> Callable[[Trace], None]:
        def work(trace: Trace) -> None:
            repository = self.here.repository()
            points = repository.points().points
            for point in points[: max(1, len(points) - MANY)]:
                self._note("ended", point.id)
                repository.end_point(point, trace)

        return work

    def _rewrite(self, seed: int) -> Callable[[Trace], None]:
        """Packs are condemned, and the points that need them written anew."""

        def work(trace: Trace) -> None:
            chosen = random.Random(seed)
            repository = self.here.repository()
            points = repository.points().points
            if not points:
                return
            need = sorted(repository.need(chosen.choice(points).manifest))
            banned = frozenset(chosen.sample(need, chosen.randint(1, len(need))))
            concerned = {p.generation for p in points if repository.need(p.manifest) & banned}
            generations = [g for g in repository.generations.listed() if g.generation in concerned]
            plan = RetirePlan((Retiring(tuple(banned), 0, ""),), tuple(generations))
            run_retire(repository, plan, Retired(), level=1, trace=trace)

        return work

    def _copy(self, seed: int) -> Callable[[Trace], None]:
        def work(trace: Trace) -> None:
            source, target = self.here.repository(), self.there.repository()
            plan = plan_copy(source, target, source.points(), lambda point: True)
            run_copy(
                source,
                target,
                plan,
                writer="there",
                level=1,
                clock=_clock,
                progress=NoProgress(),
                trace=trace,
            )
            for point in target.points().points[:-MANY]:
                end_point(target.store, point.manifest.vm_uuid, point.id, trace)

        return work

    def _changed(self, before: Content) -> Content:
        """Some blocks of few contents, so that much is stored already."""
        content = dict(before)
        for _ in range(self.random.randint(1, 30)):
            number = self.random.choice(LEAVES) * (LEAF_BYTES // BLOCK_BYTES)
            content[number + self.random.randrange(40)] = self.random.randrange(POOL)
        for number in self.random.sample(sorted(content), len(content) // 4):
            del content[number]
        return content

    # -- what must hold -----------------------------------------------------------------------
    def check(self) -> None:
        """Others may be at work: what they end meanwhile is no fault."""
        for site in (self.here, self.there):
            repository = site.repository()
            listing = repository.points()
            assert listing.problems == ()
            for point in listing.points:
                assert self._holds(site, point), f"point {point.id} is not what was written"
            if site is self.here:
                told = self._notes("made") - self._notes("ended")
                missing = told - {point.id for point in listing.points}
                missing -= {p.id for p in self.here.repository().points().points}
                assert not missing - self._notes("ended"), f"points {missing} are gone"

    def _holds(self, site: Site, point: Point) -> bool:
        repository = site.repository()
        found: Content = {}
        contents = {block(seed): seed for seed in set(self.contents[point.id].values())}

        def put(offset: int, data: memoryview) -> None:
            for at in range(0, len(data), BLOCK_BYTES):
                number = (offset + at) // BLOCK_BYTES
                found[number] = contents.get(bytes(data[at : at + BLOCK_BYTES]), -1)

        try:
            (disk,) = point.manifest.disks
            write_disk(repository.disk_map(disk), repository.packs, repository.hasher, put)
        except DrvmError:
            now = repository.current(point)
            if now is None:
                return True
            if now.generation == point.generation:
                raise
            return self._holds(site, now)
        return found == self.contents[point.id]

    def failures(self) -> list[str]:
        """Who failed and how: verb and error."""
        path = self.directory / "failed"
        lines = path.read_text().splitlines() if path.exists() else []
        return [" ".join(line.split(": ")[:2]) for line in lines]

    def _note(self, name: str, text: str) -> None:
        """Appended by one write, by any process; kept though it is killed after that."""
        with (self.directory / name).open("ab", buffering=0) as stream:
            stream.write(f"{text}\n".encode())

    def _notes(self, name: str) -> set[str]:
        path = self.directory / name
        return set(path.read_text().splitlines()) if path.exists() else set()


def _following(fate: str, at: int, pauses: list[float]) -> Trace:
    """Dawdles; at its ``at``-th step meets its fate."""
    steps = 0

    def trace(step: str) -> None:
        nonlocal steps
        steps += 1
        if steps == at and fate == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if steps == at and fate == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(pauses[steps % len(pauses)])

    return trace


def run(
    directory: Path, rounds: int, seed: int, stores: tuple[Callable[[], Store], ...] = ()
) -> Counter[str]:
    """Raises ``AssertionError`` with the seed. ``stores``: two empty ones; else directories."""
    if not stores:
        for name in ("here", "there"):
            DirectoryStore.create(directory / name)
        stores = (
            lambda: DirectoryStore(directory / "here"),
            lambda: DirectoryStore(directory / "there"),
        )
    sites = [Site.make(open_store, number) for number, open_store in enumerate(stores, 1)]
    overlaps = Overlaps(directory, *sites, random.Random(seed))
    with contextlib.closing(overlaps):
        for number in range(rounds):
            try:
                overlaps.round()
            except Exception as error:
                raise AssertionError(f"seed {seed}, round {number + 1}: {error}") from error
            for image in directory.glob("image-*.raw"):
                if not overlaps.children:
                    image.unlink()
    for line in overlaps.failures():
        overlaps.outcomes[line] += 1
    return overlaps.outcomes


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m tests.overlaps")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4)))
    options = parser.parse_args(arguments)
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="drvm-overlaps-") as directory:
        outcomes = run(Path(directory), options.rounds, options.seed)
    for name, count in sorted(outcomes.items()):
        print(f"{count:6} {name}")


if __name__ == "__main__":
    main(sys.argv[1:])
