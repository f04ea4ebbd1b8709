"""What the size of a disk costs in memory: a thin one of 1 TiB, with little in it, everywhere."""

from __future__ import annotations

import random
from pathlib import Path

from bench import product
from bench.harness import Bench, Figure, Run, measure
from drvm.core.units import GIB, KIB, MIB
from tests.appliance import Appliance

DISK_BYTES = 1024 * GIB
PIECE_BYTES = 64 * KIB
PIECES = 1024


def thin_disk(bench: Bench) -> list[Figure]:
    """Whole commands; what is not measured for its time runs once."""
    image = bench.scratch / "thin.raw"
    _make(image)
    command = product.appliance(bench.scratch / "appliance")
    target = str(bench.scratch / "restored")
    runs: dict[str, Run] = {
        "backup": lambda: _run(command, "backup", "--image", str(image), "--name", "thin"),
        "again": lambda: _run(command, "backup", "--image", str(image), "--name", "thin"),
        "restore": lambda: _run(command, "restore", "thin", "--output", target),
    }
    return [figure(what, measure(run).peak_mib) for what, run in runs.items()]


def figure(what: str, peak_mib: float) -> Figure:
    note = f"{PIECES * PIECE_BYTES // MIB} MiB of data"
    return Figure(f"peak memory, 1 TiB disk: {what}", peak_mib, 250, "MiB", note)


def _run(command: Appliance, *arguments: str) -> None:
    command.drvm(*arguments)


def _make(image: Path) -> None:
    seeded = random.Random(4)
    with image.open("wb") as stream:
        stream.truncate(DISK_BYTES)
        for number in range(PIECES):
            stream.seek(number * (DISK_BYTES // PIECES))
            stream.write(seeded.randbytes(PIECE_BYTES))
