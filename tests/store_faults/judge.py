"""Backups, restores and collections through the proxy, and what must hold after each.

1. What was told to have succeeded has: the point is listed and restores byte for byte; an image
   that was restored is the disk as it was.
2. What failed says so by an error of drvm's own, and leaves no image behind.
3. Whatever happened, the points that were good before still restore, and the next run, without
   any fault, succeeds.
"""

from __future__ import annotations

import datetime as dt
import random
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from drvm.cli.invocation import config_rules
from drvm.config.load import load_config
from drvm.config.settings import resolve
from drvm.core.clock import SystemClock
from drvm.core.errors import DrvmError
from drvm.core.process import SystemProcesses
from drvm.core.progress import NoProgress
from drvm.core.units import KIB
from drvm.lab.services import S3Server
from drvm.repository.points import Point
from drvm.restore.targets.images import PlannedImage
from drvm.snapshot.imagefiles import ImageFile
from drvm.store.base import Store
from drvm.store.s3 import Patience, S3Store
from drvm.upkeep.gc import Collected, GcRules, run_gc
from drvm.wiring.assembly import Wiring
from drvm.wiring.jobs import take_image_point
from drvm.wiring.upkeep import plan_gc_of
from tests.appliance import Appliance, make_appliance
from tests.store_faults.kinds import Kind
from tests.store_faults.proxy import Operation, Proxy, Rule

TASKS = ("backup", "restore", "gc")
VM = "faulty"
DISK_BYTES = 768 * KIB
KEPT_POINTS = 3
AT_ONCE = GcRules(grace=dt.timedelta(0), settled=dt.timedelta(0))
_BLOCK = 4096


class HastyClock(SystemClock):
    """Does not wait between attempts."""

    def sleep(self, seconds: float) -> None:
        time.sleep(min(seconds, 0.002))


class ThroughProxy(Wiring):
    """A wiring whose store is reached at ``endpoint`` by a client of little patience."""

    endpoint = ""
    bucket = ""
    prefix = ""

    def store(self, *, create: bool = False) -> Store:
        patience = Patience(connect_s=5.0, read_s=1.0, attempts=3)
        store = S3Store(
            self.bucket,
            self.prefix,
            endpoint=self.endpoint,
            patience=patience,
            clock=HastyClock(),
            chance=random.Random(0).random,
        )
        self._stack.callback(store.close)
        return store


@dataclass(frozen=True)
class Verdict:
    """``told``: the error that drvm gave, empty where it said that all is well. ``problems``:
    what should not be."""

    task: str
    kind: str
    position: int
    lasting: bool
    struck: int
    told: str
    problems: tuple[str, ...]

    def __str__(self) -> str:
        what = f"{self.task}: {self.kind} at {self.position}{' lasting' if self.lasting else ''}"
        return f"{what} (struck {self.struck}): {self.told or 'ok'}: {'; '.join(self.problems)}"


class Judge:
    """One machine of image files in a repository of its own below ``prefix``.

    What goes through the proxy keeps its local caches from trial to trial, so that whatever a fault
    left in them would show; the judge looks with caches of its own.
    """

    def __init__(self, directory: Path, server: S3Server, proxy: Proxy, prefix: str, seed: int):
        self._directory = directory
        self._server = server
        self._proxy = proxy
        self._prefix = prefix
        self._random = np.random.default_rng(seed)
        self._image = directory / "disk.raw"
        self._truth: dict[str, bytes] = {}
        self._sizes: dict[str, dict[Operation, int]] = {}
        url = f"s3://{server.bucket}/{prefix}"
        self._appliance = make_appliance(directory / "proxied", url, server)
        own = make_appliance(directory / "own", url, server)
        own.drvm("init")
        self._image.write_bytes(self._random.bytes(DISK_BYTES))
        self._own = self._wiring(own, server.endpoint)
        for _ in range(2):
            self._settle()

    def close(self) -> None:
        self._own.__exit__()

    # -- trials -------------------------------------------------------------------------------
    def requests(self, task: str, kind: Kind) -> int:
        """How many requests of an undisturbed run this kind could strike."""
        if task not in self._sizes:
            with self._proxy.under(None):
                self._run(task)
                self._sizes[task] = dict(self._proxy.counts)
            self._settle()
        return sum(self._sizes[task].get(operation, 0) for operation in kind.operations)

    def trial(self, task: str, kind: Kind, position: int, *, lasting: bool) -> Verdict:
        rule = Rule(kind.react, kind.operations, position, None if lasting else 1)
        told, problems = "", []
        with self._proxy.under(rule):
            try:
                self._run(task)
            except DrvmError as error:
                told = str(error) or "an error without words"
            except AssertionError as error:
                problems.append(str(error))
            except Exception as error:  # noqa: BLE001 - the very thing that must not happen
                problems.append(f"not drvm's own error: {error!r}")
            struck = self._proxy.struck
        if told and not struck:
            problems.append("failed without any fault")
        if task != "restore":
            problems += self._aftermath(again=bool(told) or task == "gc")
        return Verdict(task, kind.name, position, lasting, struck, told, tuple(problems))

    # -- what is tried ------------------------------------------------------------------------
    def _run(self, task: str) -> None:
        with self._wiring(self._appliance, self._proxy.endpoint) as wiring:
            if task == "backup":
                self._change()
                self._backup(wiring)
            elif task == "restore":
                self._restored(wiring, self._latest(wiring))
            else:
                _, plan = plan_gc_of(wiring, AT_ONCE)
                run_gc(wiring.repository(), plan, Collected())

    def _backup(self, wiring: Wiring) -> None:
        content = self._image.read_bytes()
        made = take_image_point(wiring, VM, [ImageFile(self._image)], NoProgress())
        self._truth[made.point.id] = content

    def _restored(self, wiring: Wiring, point: Point) -> None:
        """Restores and compares."""
        target = self._directory / "restored.raw"
        target.unlink(missing_ok=True)
        (disk,) = point.manifest.disks
        try:
            wiring.restorer().restore(PlannedImage(disk, target, "raw"), NoProgress())
        except DrvmError:
            left = [path.name for path in self._directory.glob("*restored.raw*")]
            assert not left, f"a failed restore left {left}"
            raise
        assert target.read_bytes() == self._truth[point.id], f"point {point.id} has wrong bytes"

    # -- what must hold afterwards ------------------------------------------------------------
    def _aftermath(self, *, again: bool) -> list[str]:
        problems: list[str] = []
        try:
            listing = self._own.repository().points()
            problems += listing.problems
            there = {point.id for point in listing.points}
            problems += [f"point {lost} is gone" for lost in sorted(self._truth.keys() - there)]
            for point in listing.points:
                # told as failed, yet good: it must be what the image was
                self._truth.setdefault(point.id, self._image.read_bytes())
                self._restored(self._own, point)
            if again:
                self._settle()
            self._make_room()
        except (DrvmError, AssertionError) as error:
            problems.append(f"afterwards: {error}")
        return problems

    def _settle(self) -> None:
        """A backup without faults succeeds, and restores."""
        self._change()
        self._backup(self._own)
        self._restored(self._own, self._own.repository().points().points[-1])

    def _make_room(self) -> None:
        """The oldest points end: work for collectors."""
        repository = self._own.repository()
        for point in repository.points().points[:-KEPT_POINTS]:
            del self._truth[point.id]
            repository.end_point(point)

    # -- means --------------------------------------------------------------------------------
    def _change(self) -> None:
        """Some new blocks, and some zeroes."""
        with self._image.open("r+b") as stream:
            for content in (*(self._random.bytes(_BLOCK) for _ in range(4)), bytes(_BLOCK)):
                stream.seek(int(self._random.integers(DISK_BYTES // _BLOCK)) * _BLOCK)
                stream.write(content)

    def _latest(self, wiring: Wiring) -> Point:
        points = wiring.repository().points().points
        assert points or self._proxy.struck, "no points without a fault"
        if not points:
            raise DrvmError("no points are listed")
        return points[-1]

    def _wiring(self, appliance: Appliance, endpoint: str) -> Wiring:
        settings = resolve(load_config(appliance.config, config_rules()), dict(appliance.env))
        wiring = ThroughProxy(
            settings,
            clock=SystemClock(),
            processes=SystemProcesses(),
            passphrase=lambda: b"a passphrase of the tests",
        )
        wiring.endpoint, wiring.bucket, wiring.prefix = endpoint, self._server.bucket, self._prefix
        return wiring
