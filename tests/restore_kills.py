"""The kill harness of restores: SIGKILL at every step of a form, and at times spread over it.

``python -m tests.restore_kills [--form NAME ...]``, as root, prints its table. A first run tells
the steps and how long it takes. After each kill: nothing that drvm started runs on, no machine is
defined whose disks are not whole, and what is left is removed by ``drvm doctor --fix`` or by the
same command again, which works.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from drvm.cli.invocation import Invocation
from drvm.core.clock import SystemClock
from drvm.core.process import Processes, SystemProcesses
from drvm.lab import guest as lab
from tests.appliance import Appliance, make_appliance
from tests.guests import Guest, MakeGuest, command_guests, unique_name
from tests.second_host import SecondHost, second_host

TIMES = 10
_END_S = 60.0
_LIMIT_S = 300.0
_LOOK = "cat /proc/sys/kernel/random/boot_id /run/only-in-memory"
_clock = SystemClock()


@dataclass
class Row:
    """What became of a kill: at a step, or so many seconds after the start."""

    form: str
    at: str
    reached: bool = True
    slowest_s: float = 0.0
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Form:
    """``words``: of the command, each time anew. ``ready``: what it prints when it serves; else it
    ends by itself. ``after``: looks at what a kill has left, puts all back as it was before, and
    tells what is wrong. ``last``: after all of them, with the command run to its end."""

    name: str
    words: Callable[[], tuple[str, ...]]
    after: Callable[[], list[str]]
    last: Callable[[], None]
    ready: bytes = b""


@dataclass(frozen=True)
class Harness:
    """``temporary``: where drvm's commands make what they need for a while."""

    appliance: Appliance
    temporary: Path

    def run(self, form: Form, tell: Callable[[Row], None] = lambda _: None) -> list[Row]:
        steps = self._steps(form)
        form.after()
        points: list[tuple[str, float | None]] = [(step, None) for step in steps]
        if len(steps) < TIMES:
            whole_s = self._whole_s(form)
            form.after()
            times = [whole_s * (n + 0.5) / TIMES for n in range(TIMES)]
            points += [(f"{time_s:.2f} s", time_s) for time_s in times]
        rows = []
        for at, time_s in points:
            row = Row(form.name, at)
            row.reached = self._killed(form, at, time_s)
            row.slowest_s, left = _runs_on(self.temporary)
            row.problems += [*left, *form.after()]
            if not row.reached and time_s is None:
                row.problems.append("the step was not reached")
            tell(row)
            rows.append(row)
        form.last()
        return rows

    def _steps(self, form: Form) -> list[str]:
        passed: dict[str, None] = {}
        if not form.ready:
            with mock.patch.object(Invocation, "trace", lambda _, step: passed.setdefault(step)):
                self.appliance.drvm(*form.words(), expect=None)
        return list(passed)

    def _whole_s(self, form: Form) -> float:
        """How long it takes in a process of its own; half as long again where it serves."""
        begun_s = _clock.monotonic_s()
        with self._process(form.words(), stdout=subprocess.PIPE) as drvm:
            assert drvm.stdout is not None
            if not form.ready:
                drvm.stdout.read()
                return _clock.monotonic_s() - begun_s
            _until(form.ready, drvm)
            taken_s = _clock.monotonic_s() - begun_s
            drvm.terminate()
            drvm.wait(_LIMIT_S)
        return taken_s * 1.5

    def _killed(self, form: Form, step: str, time_s: float | None) -> bool:
        with tempfile.TemporaryFile() as log:
            killer = ["tests.killed_command", step] if time_s is None else ["drvm"]
            with self._process(form.words(), module=killer, stdout=log, stderr=log) as drvm:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    drvm.wait(_LIMIT_S if time_s is None else time_s)
                drvm.kill()
            return drvm.returncode == -signal.SIGKILL

    def _process(
        self, words: tuple[str, ...], module: list[str] | None = None, **more: object
    ) -> subprocess.Popen[bytes]:
        argv = [sys.executable, "-m", *(module or ["drvm"]), *self.appliance.words(*words)]
        env = dict(self.appliance.env)
        return subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, **more)  # type: ignore[call-overload,no-any-return]


# -- what runs on ---------------------------------------------------------------------------------
def _runs_on(place: Path) -> tuple[float, list[str]]:
    """How long it took until nothing that was started with a file below ``place`` ran any more, or
    what still does."""
    begun_s = _clock.monotonic_s()
    while found := _with_word(os.fsencode(place)):
        taken_s = _clock.monotonic_s() - begun_s
        if taken_s > _END_S:
            return taken_s, [f"{name} runs on" for name in found]
        _clock.sleep(0.05)
    return _clock.monotonic_s() - begun_s, []


def _with_word(word: bytes) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if word in (process / "cmdline").read_bytes():
                found.append((process / "comm").read_text().strip())
    return found


# -- the forms ------------------------------------------------------------------------------------
def _old(directory: Path) -> None:
    """What lies there is of hours ago."""
    for path in directory.iterdir():
        os.utime(path, (1, 1))


def _listed(guest: Guest, *options: str) -> list[str]:
    argv = ["virsh", "-q", "-c", guest.uri, "list", "--name", *options]
    return guest.processes.run(argv, timeout_s=60).stdout.decode().split()


def _whole(processes: Processes, images: Path, xml: str, disks: dict[str, Path]) -> list[str]:
    """What a machine's definition names is there, with the content of ``disks``."""
    problems = []
    for target, (ending, reference) in zip(
        ("vda", "vdb"), (("qcow2", disks["vda"]), ("raw", disks["vdb"])), strict=True
    ):
        named = [p for p in images.iterdir() if p.name in xml and f"-{target}" in p.name]
        if len(named) != 1:
            problems.append(f"{target} of a machine that is defined is not there")
            continue
        argv = ["qemu-img", "compare", "-U", "-q", "-f", ending, "-F", "raw"]
        if processes.run([*argv, str(named[0]), str(reference)], timeout_s=120).stderr:
            problems.append(f"{target} of a machine that is defined is not whole")
    return problems


def remote(
    guest: Guest, point: str, second: SecondHost, appliance: Appliance, disks: dict[str, Path]
) -> Form:
    """Onto another host, of a machine with UEFI variables. Every other time the same goes on."""
    name = unique_name("killed")
    times = 0

    def after() -> list[str]:
        nonlocal times
        times += 1
        problems = []
        listed = second.virsh("list", "--all", "--name").split()
        defined = name in listed
        if not defined and times % 2:
            appliance.drvm("clone", point, name, "--to", second.uri)
            defined = True
        if defined:
            xml = second.virsh("dumpxml", name)
            problems += _whole(guest.processes, second.images, xml, disks)
            if not list(second.images.glob(f"{name}-nvram-*.fd")):
                problems.append("its UEFI variables are not there")
        appliance.drvm("doctor", "--fix", expect=None)
        left = [path.name for path in second.images.iterdir()]
        if len(left) != (3 if defined else 0):
            problems.append(f"left: {left}")
        if defined:
            second.virsh("undefine", name, "--nvram")
        for path in second.images.iterdir():
            path.unlink()
        return problems

    return Form("remote", lambda: ("clone", point, name, "--to", second.uri), after, lambda: None)


def running(
    guest: Guest, point: str, pool: tuple[str, Path], appliance: Appliance, before: str
) -> Form:
    """With its memory; the machine itself is gone. ``pool``: its name and directory."""
    pool_name, images = pool
    words = ("restore", point, "--pool", pool_name, "--running")

    def clear() -> list[str]:
        problems = []
        if guest.name in _listed(guest):
            guest.virsh("destroy")
        if guest.name in _listed(guest, "--all"):
            xml = guest.virsh("dumpxml")
            named = [path for path in images.iterdir() if str(path) in xml]
            if len(named) != 2:
                problems.append("a machine is defined that lacks disks")
            guest.virsh("undefine", "--nvram")
        return problems

    def after() -> list[str]:
        problems = clear()
        appliance.drvm("doctor", "--fix", expect=None)
        if left := [path.name for path in images.iterdir() if path.name.startswith(".")]:
            problems.append(f"left: {left}")
        for path in images.iterdir():
            path.unlink()
        return problems

    def last() -> None:
        appliance.drvm(*words)
        assert guest.run(_LOOK) == before
        clear()

    return Form("running", lambda: words, after, last)


def served(point: str, directory: Path, appliance: Appliance) -> Form:
    words, ready = ("serve", point, "--socket", str(directory / "socket")), b"vda"

    def last() -> None:
        argv, env = appliance.argv(*words), dict(appliance.env)
        with subprocess.Popen(argv, env=env, stdout=subprocess.PIPE) as drvm:
            _until(ready, drvm)
            drvm.terminate()
            drvm.wait(_LIMIT_S)
        _swept(directory)

    return Form("serve", lambda: words, list, last, ready)


def _until(ready: bytes, drvm: subprocess.Popen[bytes]) -> None:
    assert drvm.stdout is not None
    while ready not in drvm.stdout.readline():
        assert drvm.poll() is None


def files(point: str, directory: Path, appliance: Appliance) -> Form:
    words = ("files", "cat", point, "/dev/vdb:/hello")

    def last() -> None:
        _old(directory)
        argv, env = appliance.argv(*words), dict(appliance.env)
        done = subprocess.run(argv, env=env, capture_output=True, timeout=_LIMIT_S, check=True)
        assert done.stdout == b"hello\n"
        _swept(directory)

    return Form("files", lambda: words, list, last)


def _swept(directory: Path) -> None:
    left = [path.name for path in directory.glob("drvm-*")]
    assert left == [], left


# -- all of it ------------------------------------------------------------------------------------
NAMES = ("remote", "running", "serve", "files")


@contextlib.contextmanager
def prepared(
    name: str, make: MakeGuest, directory: Path, processes: Processes
) -> Iterator[tuple[Harness, Form]]:
    """A guest, its point, and what the form needs. ``directory`` is the command's TMPDIR too."""
    temporary = directory / "tmp"
    temporary.mkdir()
    with contextlib.ExitStack() as stack:
        guest = make(f"k-{name}", uefi=name == "remote")
        more = ""
        if name == "remote":
            second = stack.enter_context(second_host(processes))
            more = f"hosts:\n  - uri: {guest.uri}\n  - uri: {second.uri}\n"
        made = make_appliance(directory, f"file://{directory}/repository", None, more)
        appliance = Appliance(made.directory, {**made.env, "TMPDIR": str(temporary)})
        appliance.drvm("init")
        guest.run("echo told > /run/only-in-memory; echo hello > /data/hello; sync")
        before = guest.run(_LOOK)
        memory = ("--memory",) if name == "running" else ()
        point = appliance.backup(guest.name, *memory)["id"]
        if name == "remote":
            reference = directory / "reference"
            appliance.drvm("restore", point, "--output", str(reference), "--format", "raw")
            disks = {target: reference / f"{target}.raw" for target in guest.disks}
            form = remote(guest, point, second, appliance, disks)
        elif name == "running":
            guest.remove()
            pool = unique_name("pool")
            images = stack.enter_context(lab.workspace(pool))
            virsh = ["virsh", "-q", "-c", guest.uri]
            create = [*virsh, "pool-create-as", pool, "dir", "--target", str(images)]
            processes.run(create, timeout_s=60)
            stack.callback(processes.run, [*virsh, "pool-destroy", pool], timeout_s=60)
            form = running(guest, point, (pool, images), appliance, before)
        else:
            form = (served if name == "serve" else files)(point, temporary, appliance)
        yield Harness(appliance, temporary), form


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.restore_kills", description=__doc__)
    parser.add_argument("--form", action="append", choices=NAMES)
    asked = parser.parse_args()
    processes = SystemProcesses()
    rows: list[Row] = []
    print(f"{'form':<9} {'killed at':<24} {'gone after':>10}  problems", flush=True)

    def tell(row: Row) -> None:
        words = "; ".join(row.problems) or ("none" if row.reached else "none (it had ended)")
        print(f"{row.form:<9} {row.at:<24} {row.slowest_s:>8.2f} s  {words}", flush=True)

    for name in asked.form or NAMES:
        with contextlib.ExitStack() as stack:
            make = stack.enter_context(command_guests(processes))
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="drvm-kills-")))
            made, form = stack.enter_context(prepared(name, make, place, processes))
            rows += made.run(form, tell)
    bad = sum(len(row.problems) for row in rows)
    print(f"{len(rows)} kills, {bad} problems")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
