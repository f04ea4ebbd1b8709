"""One hostile repository through everything that drvm does with repositories.

What nobody may see: an exception that is not of drvm's tree, a file outside of where it was told to
restore, control characters on the terminal, memory or time without a bound.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import io
import resource
import shutil
import signal
import time
import traceback
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from drvm.cli.output import Flags, Output
from drvm.cli.views import point_fields, show_points
from drvm.core.clock import SystemClock
from drvm.core.errors import DrvmError
from drvm.core.progress import NoProgress
from drvm.report.model import decode_drill
from drvm.repository.checks import parse_share
from drvm.repository.points import Listing, Point
from drvm.repository.repository import Repository
from drvm.restore.machine.definition import DefinitionSpec, rebuild
from drvm.restore.machine.disks import DiskImage
from drvm.restore.plan import read_definition
from drvm.store.memory import MemoryStore
from drvm.upkeep.check import CheckResult, plan_check, run_check
from drvm.upkeep.copy import Copied, plan_copy, run_copy
from drvm.upkeep.gc import GcRules, plan_gc
from drvm.upkeep.prune import plan_prune
from drvm.upkeep.retention import Now, Rules
from drvm.upkeep.survey import survey
from tests.hostile.case import Case
from tests.hostile.forge import HONEST, LIAR, Forge
from tests.hostile.forms import FORMS, Ground
from tests.unit.repository.conftest import PASSPHRASE, Vault
from tests.unit.restore.machines import CLONE, assert_harmless

CPU_S = 30
"""Of a whole trial. Most take a tenth of a second."""
MAX_FILE_BYTES = 1 << 40
MAX_MESSAGE_CHARS = 2000
_SHOWN = frozenset({"\n"})

_T = TypeVar("_T")


class TooLong(BaseException):
    """The CPU time of a trial is up. Nothing may catch it."""


@dataclass
class Trial:
    """``refused``: by which steps, and with what words. ``problems``: what must never be.
    ``forms``: each form of restoring that was tried, with the words by which it was refused."""

    name: str
    refused: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    forms: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    peak_mib: int = 0

    def step(self, name: str, work: Callable[[], _T]) -> _T | None:
        try:
            return work()
        except DrvmError as error:
            self.refused[name] = error.message
            if len(error.message) > MAX_MESSAGE_CHARS:
                self.problems.append(f"{name}: a message of {len(error.message)} characters")
        except AssertionError:
            self.problems.append(f"{name}: {traceback.format_exc(limit=-3)}")
        except Exception:  # noqa: BLE001 - what no user may see
            self.problems.append(f"{name}: {traceback.format_exc(limit=-6)}")
        except TooLong:
            self.problems.append(f"{name}: more than {CPU_S} s: {traceback.format_exc(limit=-6)}")
        return None


def run(name: str, case: Case, forge: Forge, place: Path, content: list[bytes]) -> Trial:
    """``place``: a directory of the trial alone but for what lies there already, which must stay
    as it is. ``content``: the honest disks."""
    trial = Trial(name)
    case.plant(forge)
    target = place / "target"
    target.mkdir()
    before = listing_of(place, target)
    with measured(trial):
        _Steps(trial, case, forge.store, target).all(content)
    if listing_of(place, target) != before:
        trial.problems.append("something outside of the target was touched")
    for path in target.rglob("*"):
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            trial.problems.append(f"{path.name!r} is no plain file")
    shutil.rmtree(target)
    return trial


class _Steps:
    def __init__(self, trial: Trial, case: Case, store: MemoryStore, target: Path) -> None:
        self._trial = trial
        self._case = case
        self._store = store
        self._target = target

    def all(self, content: list[bytes]) -> None:
        trial = self._trial
        repository = trial.step("open", lambda: Repository.open(self._store, PASSPHRASE))
        if (repository is None) != (self._case.expect == "closed"):
            trial.problems.append(f"opened: {repository is not None}, {trial.refused}")
        if repository is None:
            return
        listing = trial.step("points", repository.points)
        if listing is None:
            trial.problems.append(f"the points could not be listed: {trial.refused}")
            return
        trial.step("show", lambda: _show(repository, listing))
        trial.step("newest point", lambda: repository.newest_point(LIAR, _soon()))
        trial.step("refresh", repository.refresh)
        trial.step("small objects", lambda: _small(repository))
        found = trial.step("check", lambda: _check(repository))
        trial.step("gc", lambda: _gc(repository))
        trial.step("prune", lambda: _prune(repository, listing))
        self._restored(repository, listing)
        liars = any(point.manifest.vm_uuid == LIAR for point in listing.points)
        copied = trial.step("copy", lambda: _copy(repository, listing)) if liars else None
        self._judged(listing, found, copied)
        (honest,) = (p for p in listing.points if p.manifest.vm_uuid == HONEST)
        back = trial.step("honest", lambda: Vault(self._store, repository).load(honest))
        if back != content:
            trial.problems.append(f"the honest point is lost: {trial.refused}")

    def _restored(self, repository: Repository, listing: Listing) -> None:
        for number, point in enumerate(p for p in listing.points if p.manifest.vm_uuid == LIAR):
            self._one(repository, point, self._target / str(number))

    def _one(self, repository: Repository, point: Point, directory: Path) -> None:
        trial = self._trial
        for name in self._case.forms or FORMS:
            form = FORMS[name]
            place = directory / name
            directory.mkdir(exist_ok=True)
            ground = Ground(repository, point.manifest, place, assert_plain)
            trial.step(name, lambda form=form, ground=ground: form(ground))  # type: ignore[misc]
            trial.forms[name] = trial.refused.get(name, "")
            left = [path for path in place.rglob("*") if not path.is_dir()]
            if name in trial.refused and left:
                trial.problems.append(f"{name}: what failed has left {left[:9]}")
        if point.manifest.definition is not None:
            trial.step("define", lambda: _define(repository, point))

    def _judged(self, listing: Listing, found: CheckResult | None, copied: Copied | None) -> None:
        """Whether what must be refused was, by all who should."""
        trial, expect = self._trial, self._case.expect
        listed = any(point.manifest.vm_uuid == LIAR for point in listing.points)
        refused = "folder" in trial.refused or (bool(listing.damaged) and not listed)
        told = f"{trial.refused}, {listing.problems}"[:1000]
        if refused != (expect in ("lost", "refused")):
            trial.problems.append(f"not restored: {refused}, {told}")
        if not refused and ("define" in trial.refused) != (expect == "undefined"):
            trial.problems.append(f"defined: {'define' not in trial.refused}, {told}")
        if found is not None and bool(found.hits) != (expect == "lost"):
            trial.problems.append(f"a check says otherwise: {told}")
        if listed and copied is None and "copy" not in trial.refused:
            trial.problems.append("a copy failed")


def _soon() -> dt.datetime:
    return SystemClock().now() + dt.timedelta(hours=2)


def _show(repository: Repository, listing: Listing) -> None:
    for as_json in (False, True):
        stream = io.StringIO()
        output = Output(stream, Flags(json=as_json), colour=False)
        manifests = [point.manifest for point in listing.points]
        pins = repository.pins()
        if as_json:
            fields = [point_fields(m, pins.get(m.id, ()), own=False) for m in manifests]
            output.document({"points": fields})
        else:
            show_points(output, manifests, pins)
            for problem in listing.problems:
                output.line(problem)
        assert_plain(stream.getvalue())


def assert_plain(text: str) -> None:
    hidden = {c for c in set(text) - _SHOWN if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl")}
    assert not hidden, f"on the terminal: {hidden}"


def _small(repository: Repository) -> None:
    repository.keyring.slots()
    repository.checks.history()
    repository.final_times()
    for info in repository.drills.listed():
        with contextlib.suppress(DrvmError):
            decode_drill(repository.drills.read(info))


def _check(repository: Repository) -> CheckResult:
    plan = plan_check(repository, parse_share("1/1"), _soon())
    return run_check(repository, plan, NoProgress(), SystemClock(), "here", write=False)


def _gc(repository: Repository) -> None:
    now = _soon()
    plan_gc(survey(repository, now), Now(now, now), GcRules())


def _prune(repository: Repository, listing: Listing) -> None:
    now = _soon()
    plan_prune(repository, listing, lambda vm: Rules(last=1), Now(now, now))


def _define(repository: Repository, point: Point) -> None:
    disks = {"vda": DiskImage("/restored/vda.qcow2", "qcow2")} if point.manifest.disks else {}
    spec = DefinitionSpec(CLONE, disks)
    made = rebuild(read_definition(repository, point.manifest), spec)
    assert_harmless(made, spec)
    for line in (*made.dropped, *made.changed):
        assert_plain(line)


def _copy(repository: Repository, listing: Listing) -> Copied:
    """Not of disks that claim more than a file may have here: a copy takes a while for each leaf of
    a disk, zeroes or not, and so some twenty minutes for 4 PiB."""
    second = Repository.create(MemoryStore(), PASSPHRASE)
    plan = plan_copy(repository, second, listing, _is_copied)
    return run_copy(
        repository,
        second,
        plan,
        writer="there",
        level=1,
        clock=SystemClock(),
        progress=NoProgress(),
    )


def _is_copied(point: Point) -> bool:
    sizes = [disk.size_bytes for disk in point.manifest.disks]
    return point.manifest.vm_uuid == LIAR and max(sizes, default=0) <= MAX_FILE_BYTES


# -- bounds ---------------------------------------------------------------------------------------
@contextlib.contextmanager
def measured(trial: Trial) -> Iterator[None]:
    """At most ``CPU_S``; notes what it took."""

    def stop(*_: object) -> None:
        raise TooLong

    started, (_, hard) = time.process_time(), resource.getrlimit(resource.RLIMIT_CPU)
    signal.signal(signal.SIGXCPU, stop)
    resource.setrlimit(resource.RLIMIT_CPU, (int(started) + CPU_S, hard))
    Path("/proc/self/clear_refs").write_text("5")  # the peak of the resident set begins anew
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_CPU, (hard, hard))
        trial.seconds = round(time.process_time() - started, 3)
        trial.peak_mib = status_kib("VmHWM") // 1024


def status_kib(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def listing_of(place: Path, but: Path) -> dict[str, tuple[int, int, int]]:
    """Name -> (kind and rights, size, when it was changed) of all that lies around."""
    found = {}
    for path in sorted(place.rglob("*")):
        if path != but and but not in path.parents:
            status = path.lstat()
            size = 0 if path.is_dir() else status.st_size
            moment = 0 if path.is_dir() else status.st_mtime_ns
            found[str(path.relative_to(place))] = (status.st_mode, size, moment)
    return found
