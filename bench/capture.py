"""What a capture costs the guest and the host.

``python -m bench.capture [--json FILE] [PART ...]``, as root. The parts: ``incremental`` (does an
incremental cost what changed, or what the disk holds?), ``frozen`` (how long are the file systems
frozen?), ``overlay`` (how much space does the overlay of a busy guest take?). The guest is the
lab's; times compare within one run only.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import re
import resource
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drvm.core.clock import SystemClock
from drvm.core.process import SystemProcesses
from drvm.core.progress import NoProgress, Trace, no_trace
from drvm.core.units import GIB, MIB
from drvm.repository.manifest import Manifest
from drvm.wiring.assembly import Wiring
from drvm.wiring.jobs import BackupOptions, take_point
from tests import chain
from tests.appliance import make_appliance
from tests.guests import Guest, MakeGuest, command_guests

CLUSTER_BYTES = 65536
PLACES, PLACE_BYTES = 500, 208 * 1024
"""About 100 MiB in all."""

_processes = SystemProcesses()
_clock = SystemClock()
Table = list[dict[str, Any]]


@dataclass(frozen=True)
class Bench:
    make: MakeGuest
    directory: Path

    @contextlib.contextmanager
    def wiring(self, name: str) -> Iterator[Wiring]:
        directory = self.directory / name
        made = make_appliance(directory, f"file://{directory}/repository", None)
        with made.wiring() as wiring:
            wiring.create_repository()
            yield wiring


def point(wiring: Wiring, guest: Guest, trace: Trace = no_trace) -> Manifest:
    taken = take_point(wiring, guest.name, BackupOptions(), NoProgress(), trace)
    assert taken.cleanup is None
    return taken.point.manifest


def incremental(bench: Bench) -> Table:
    """Points of a thin qcow2 after ``PLACES`` scattered writes, and the same on a disk that is
    ten times as large."""
    table = []
    for size_bytes in (20 * GIB, 200 * GIB):
        guest = _guest_with_disk(bench, f"thin{size_bytes // GIB}", size_bytes)
        with bench.wiring(guest.name) as wiring:
            point(wiring, guest)
            table += [_incremental(wiring, guest, size_bytes, number) for number in range(3)]
        guest.remove()
    small, large = (
        statistics.median(row["seconds"] for row in table if row["disk_gib"] == gib)
        for gib in (20, 200)
    )
    table.append({"disk_gib": "200 : 20", "seconds": round(large / small, 2)})
    return table


def _incremental(wiring: Wiring, guest: Guest, size_bytes: int, seed: int) -> dict[str, Any]:
    changed = _write_in_places(guest, size_bytes, random.Random(seed))
    cpu_s, start_s = _cpu_s(), _clock.monotonic_s()
    manifest = point(wiring, guest)
    disk = next(d for d in manifest.disks if d.target == "vdb")
    assert disk.method == "checkpoint", disk.method
    return {
        "disk_gib": size_bytes // GIB,
        "seconds": round(_clock.monotonic_s() - start_s, 2),
        "cpu_s": round(_cpu_s() - cpu_s, 2),
        "changed_mib": round(changed * CLUSTER_BYTES / MIB, 1),
        "read_mib": round(disk.read_bytes / MIB, 1),
        "read_ratio": round(disk.read_bytes / (changed * CLUSTER_BYTES), 3),
        "stored_mib": round(manifest.stored_bytes / MIB, 1),
    }


def _write_in_places(guest: Guest, size_bytes: int, places: random.Random) -> int:
    """Returns how many clusters were touched."""
    touched: set[int] = set()
    lines = []
    for _ in range(PLACES):
        at = places.randrange(size_bytes // 4096 - PLACE_BYTES // 4096) * 4096
        touched |= set(range(at // CLUSTER_BYTES, (at + PLACE_BYTES - 1) // CLUSTER_BYTES + 1))
        lines.append(f"{at // 4096}")
    guest.run(
        f"for at in {' '.join(lines)}; do"
        f" dd if=/dev/urandom of=/dev/vdb bs=4096 count={PLACE_BYTES // 4096} seek=$at"
        " conv=notrunc 2>/dev/null; done;"
        " sync; echo 3 >/proc/sys/vm/drop_caches",
        timeout_s=600,
    )
    return len(touched)


def frozen(bench: Bench) -> Table:
    """The freeze of 50 points of a guest that writes all the time."""
    guest = bench.make("frozen")
    chain.start(guest)
    with bench.wiring("frozen") as wiring:
        times = sorted(point(wiring, guest).frozen_seconds for _ in range(50))
    chain.stop(guest)
    # of 50 values the 99th percentile is the largest
    return [{"points": 50, "median_s": times[25], "p99_s": times[-1], "least_s": times[0]}]


def overlay(bench: Bench) -> Table:
    """What the overlay takes after 8 MiB of scattered writes of 4 KiB each."""
    guest = bench.make("overlay")
    found: dict[str, Any] = {}
    size = next(int(s) for s in guest.run("cat /sys/block/vdb/size").split()) * 512

    def trace(step: str) -> None:
        if step == "reading":
            places = random.Random(0).sample(range(size // 4096), 8 * MIB // 4096)
            _dd_blocks(guest, places)
            for path in guest.directory.glob("data.raw.drvm-*"):
                taken = path.stat().st_blocks * 512
                found.update(written_mib=8.0, overlay_mib=round(taken / MIB, 2))
                found["ratio"] = round(taken / (8 * MIB), 2)

    with bench.wiring("overlay") as wiring:
        point(wiring, guest, trace)
    return [found]


def _dd_blocks(guest: Guest, places: list[int]) -> None:
    guest.run("umount /data; dd if=/dev/urandom of=/run/block bs=4096 count=1 2>/dev/null")
    for start in range(0, len(places), 512):
        these = " ".join(str(place) for place in places[start : start + 512])
        guest.run(
            f"for at in {these}; do"
            " dd if=/run/block of=/dev/vdb bs=4096 seek=$at conv=notrunc,fsync oflag=direct"
            " 2>/dev/null; done",
            timeout_s=600,
        )


def _guest_with_disk(bench: Bench, name: str, size_bytes: int) -> Guest:
    """The second disk a thin, empty qcow2 of that size, without a file system."""

    def edit(xml: str) -> str:
        (raw,) = re.findall(r"[\"'](/[^\"']*/data\.raw)[\"']", xml)
        qcow2 = raw.removesuffix("raw") + "qcow2"
        argv = ["qemu-img", "create", "-q", "-f", "qcow2", qcow2, str(size_bytes)]
        _processes.run(argv, timeout_s=60)
        return xml.replace(raw, qcow2).replace("type='raw'", "type='qcow2'")

    return bench.make(name, edit=edit)


def _cpu_s() -> float:
    """Of this process and its children; QEMU's own is not in it."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in (
            resource.getrusage(resource.RUSAGE_SELF),
            resource.getrusage(resource.RUSAGE_CHILDREN),
        )
    )


PARTS: dict[str, Callable[[Bench], Table]] = {
    "incremental": incremental,
    "frozen": frozen,
    "overlay": overlay,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.capture", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--json", type=Path, help="also write the tables to this file")
    asked = parser.parse_args()
    if unknown := set(asked.parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    told = {}
    with contextlib.ExitStack() as stack:
        make = stack.enter_context(command_guests(_processes))
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="drvm-bench-")))
        for name in asked.parts or PARTS:
            told[name] = PARTS[name](Bench(make, directory))
            _print(name, told[name])
    if asked.json is not None:
        asked.json.write_text(json.dumps(told, indent=2) + "\n")
    return 0


def _print(title: str, table: Table) -> None:
    columns = list(dict.fromkeys(name for row in table for name in row))
    print(f"\n{title}: {' '.join((PARTS[title].__doc__ or '').split())}")
    print("  ".join(f"{name:>12}" for name in columns))
    for row in table:
        print("  ".join(f"{row.get(name, '')!s:>12}" for name in columns), flush=True)


if __name__ == "__main__":
    sys.exit(main())
