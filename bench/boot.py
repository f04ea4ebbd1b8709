"""How soon does a machine that is booted from its point answer, and how fast are its disks pulled?

``python -m bench.boot [--repeat N] [--mib N] [--json FILE]``, as root. The guest is the lab's, its
data disk holds N MiB of random data, the store is SeaweedFS on loopback, once as it is and once
with 20 ms added to each request. Compared with ``virsh start`` of the same machine on its own
disks, by turns; "boot" is everything from the start of the command ``drvm boot`` until the agent
answers, on a host that knows nothing of the repository; "again" the next one, which finds what that
one has read (the hint); "pull" the whole of ``drvm boot --finish``.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from bench.harness import Figure, as_rows, print_table
from drvm.core.clock import SystemClock
from drvm.core.process import SystemProcesses
from drvm.core.units import format_seconds
from drvm.lab import guest as lab
from drvm.lab.services import S3Server, seaweedfs
from tests.appliance import Appliance, make_appliance
from tests.guests import Guest, command_guests, unique_name
from tests.store_faults.proxy import (
    ALL,
    Memory,
    Proxy,
    Reaction,
    Request,
    Rule,
    Upstream,
)

DELAY_S = 0.02
_LIMITS = {"loopback": 2.0, "20 ms": 4.0}
_processes = SystemProcesses()
_clock = SystemClock()


class Stage:
    """A guest with a point, and a pool for what is booted from it."""

    def __init__(self, guest: Guest, point: str, pool: str, stores: dict[str, Appliance]) -> None:
        self._guest = guest
        self._point = point
        self._pool = pool
        self._stores = stores
        self.seconds: dict[str, list[float]] = {}

    def round(self) -> None:
        """Each case once."""
        self._measure("local", self._guest.start)
        self._guest.virsh("destroy")
        for store, appliance in self._stores.items():
            shutil.rmtree(appliance.directory / "cache", ignore_errors=True)
            for kind in ("boot", "again"):
                name = unique_name("boot")
                machine = Guest(name, self._guest.directory, {}, _processes)
                self._measure(f"{kind}, {store}", partial(self._boot, appliance, machine))
                self._measure(f"pull, {store}", partial(self._finish, appliance, name))
                machine.remove()

    def _boot(self, appliance: Appliance, machine: Guest) -> None:
        _command(appliance, "boot", self._point, "--name", machine.name, "--pool", self._pool)
        machine.wait_for_agent()

    def _finish(self, appliance: Appliance, name: str) -> None:
        _command(appliance, "boot", "--finish", name)

    def _measure(self, case: str, work: Callable[[], None]) -> None:
        before_s = _clock.monotonic_s()
        work()
        taken_s = _clock.monotonic_s() - before_s
        self.seconds.setdefault(case, []).append(taken_s)
        print(f"{case}: {taken_s:.1f} s", file=sys.stderr, flush=True)


def figures(seconds: dict[str, list[float]], mib: int) -> list[Figure]:
    """``seconds``: of each case, all its runs."""
    medians = {case: statistics.median(runs) for case, runs in seconds.items()}
    local = medians["local"]
    found = [Figure("local boot to the agent's answer", local, None, "s")]
    for store, limit in _LIMITS.items():
        for kind in ("boot", "again"):
            taken = medians.get(f"{kind}, {store}")
            if taken is not None:
                note = f"{format_seconds(taken)} : {format_seconds(local)}"
                words = f"{kind} over {store} : local boot"
                found.append(Figure(words, taken / local, limit, note=note))
        if (pulled := medians.get(f"pull, {store}")) is not None:
            found.append(Figure(f"pull over {store}", mib / pulled, None, "MiB/s"))
    return found


@contextlib.contextmanager
def stage(mib: int) -> Iterator[Stage]:
    with contextlib.ExitStack() as stack:
        make = stack.enter_context(command_guests(_processes))
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="drvm-bench-")))
        server = stack.enter_context(_s3(directory / "weed"))
        slow = stack.enter_context(_slowed(server))
        images = stack.enter_context(lab.workspace(unique_name("pool")))
        pool = stack.enter_context(_pool(images))
        guest = make("boot")
        guest.run(f"dd if=/dev/urandom of=/data/big bs=1M count={mib} 2>/dev/null; sync")
        stores = {
            "loopback": _appliance(directory / "plain", server),
            "20 ms": _appliance(directory / "slow", slow),
        }
        _command(stores["loopback"], "init")
        point = stores["loopback"].backup(guest.name)["id"]
        guest.shutdown()
        yield Stage(guest, point, pool, stores)


def _appliance(directory: Path, server: S3Server) -> Appliance:
    return make_appliance(directory, f"s3://{server.bucket}/boot", server)


def _command(appliance: Appliance, *arguments: str) -> None:
    argv = appliance.argv(*arguments)
    _processes.run(argv, timeout_s=600, env=dict(appliance.env))


@contextlib.contextmanager
def _s3(directory: Path) -> Iterator[S3Server]:
    directory.mkdir()
    with seaweedfs(directory, _processes, _clock) as server:
        yield server


@contextlib.contextmanager
def _slowed(server: S3Server) -> Iterator[S3Server]:
    def late(request: Request, upstream: Upstream, _memory: Memory) -> Reaction:
        _clock.sleep(DELAY_S)
        return Reaction(upstream(request))

    proxy = Proxy(server.endpoint)
    try:
        with proxy.under(Rule(late, ALL, 0, None)):
            yield dataclasses.replace(server, endpoint=proxy.endpoint)
    finally:
        proxy.close()


@contextlib.contextmanager
def _pool(directory: Path) -> Iterator[str]:
    virsh = ["virsh", "-q", "-c", lab.URI]
    name = directory.name
    argv = [*virsh, "pool-create-as", name, "dir", "--target", str(directory)]
    _processes.run(argv, timeout_s=60)
    try:
        yield name
    finally:
        _processes.run([*virsh, "pool-destroy", name], timeout_s=60)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.boot", description=__doc__)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--mib", type=int, default=40, help="of random data on the data disk")
    parser.add_argument("--json", type=Path, help="also write the table to this file")
    asked = parser.parse_args()
    with stage(asked.mib) as made:
        for _ in range(asked.repeat):
            made.round()
        found = figures(made.seconds, asked.mib)
    print_table(found)
    if asked.json is not None:
        asked.json.write_text(json.dumps(as_rows(found), indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
