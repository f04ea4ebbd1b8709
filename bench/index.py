"""What the sparse index costs: bytes per unique TiB, look-ups per second, resident memory.

``python -m bench.index [--tib N] [--memory-mib N] [--dir DIR] [--json FILE]``. Needs no root. The
index is simulated: runs as so many TiB of different blocks leave them (12 GB of files at 64 TiB),
of which 25 GiB are of real packs, whose ids are cached, so that what is found can be compared.
Measured in a process of its own, by 1024 ids a call:

``in order``: a disk that is read again, all known. ``aged``: runs of 8 to 64 known blocks from
anywhere, with as many new ones between. ``new``: nothing known. The index is read through before,
so that it is in the page cache as far as it fits in there. ``cold`` and ``cold new``: in order and
new, with all files out of the page cache. Look-ups per second of CPU, medians; ``numpy`` is the
kernel that runs where none was compiled.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from drvm.chunker.blocks import Ids
from drvm.core.units import MIB
from drvm.repository.index.hooks import Keys, Merged, Values, sorted_names
from drvm.repository.index.levels import Levels
from drvm.repository.index.runs import RunFiles
from drvm.repository.index.sparse import SparseIndex
from drvm.repository.index.tables import IdTables

HOOKS_PER_TIB = 1 << 24
PACKS_PER_TIB = 13_000
REAL_PACKS, PACK_BLOCKS = 400, 16384
SHARES = (0.76, 0.18, 0.043, 0.01)
BATCH, CALLS, ROUNDS = 1024, 60, 5
WARM, COLD = ("in order", "aged", "new"), ("cold", "cold new")
MEMORY_MIB = 64
REPOSITORY, KEY = bytes(16), bytes(32)
STEP = 1 << 20


def names(count: int, seed: int) -> np.ndarray:
    return sorted_names(np.random.default_rng(seed).bytes(32 * count))


def real_ids(pack: int) -> Ids:
    random = np.random.default_rng(1000 + pack)
    return random.integers(1, 1 << 64, (PACK_BLOCKS, 2), dtype=np.uint64)


def real_hooks(packs: range, numbers: np.ndarray) -> tuple[Keys, Values]:
    """Sorted, with the numbers of their packs in a run."""
    keys, values = [], []
    for pack in packs:
        ids = real_ids(pack)[:, 0]
        at = np.flatnonzero((ids & np.uint64(15)) == 0)
        keys.append(ids[at])
        values.append((numbers[pack] << 8 | at >> 8).astype(np.uint32))
    all_keys, all_values = np.concatenate(keys), np.concatenate(values)
    order = np.argsort(all_keys)
    return all_keys[order], all_values[order]


def run_of(hooks: int, packs: int, real: range, seed: int) -> Merged:
    """``hooks`` evenly spread keys of packs that nobody has, and those of the real ones."""
    own = names(packs, seed)
    real_names = names(REAL_PACKS, 0)
    listed = np.unique(np.append(own, real_names[real.start : real.stop]))
    numbers = np.searchsorted(listed, real_names)
    keys, values = real_hooks(real, numbers) if len(real) else (None, None)

    def parts() -> Iterator[tuple[Keys, Values]]:
        random = np.random.default_rng(seed)
        for start in range(0, hooks, STEP):
            count = min(STEP, hooks - start)
            place = np.arange(start, start + count) + random.random(count) * 0.999
            made = (place * (2.0**60 / hooks)).astype(np.uint64) << np.uint64(4)
            given = random.integers(0, len(listed) << 8, count, dtype=np.uint32)
            if keys is not None and values is not None:
                low = np.uint64(int(start / hooks * 2**60) << 4)
                last = start + count >= hooks
                high = np.searchsorted(keys, int((start + count) / hooks * 2**60) << 4)
                here = slice(np.searchsorted(keys, low), len(keys) if last else high)
                at = np.searchsorted(made, keys[here])
                made, given = np.insert(made, at, keys[here]), np.insert(given, at, values[here])
            yield made, given

    return Merged(listed, False, hooks, parts())


def build(directory: Path, tib: float) -> None:
    files = RunFiles(directory / "index", REPOSITORY)
    hooks = int(tib * HOOKS_PER_TIB)
    each = REAL_PACKS // len(SHARES)
    for number, share in enumerate(SHARES):
        real = range(number * each, (number + 1) * each)
        packs = max(1, int(tib * PACKS_PER_TIB * share))
        files.write(run_of(int(hooks * share), packs, real, number + 1), number)
    listing = b"".join(run.names(0, len(run.dead)).tobytes() for run in files.load())
    np.save(directory / "listing.npy", sorted_names(listing))
    tables = IdTables(directory / "ids", KEY, lambda name: None, 1 << 50)
    ordinals = np.arange(PACK_BLOCKS)
    for pack in range(REAL_PACKS):
        tables.put(names(REAL_PACKS, 0)[pack].ljust(32, b"\0"), real_ids(pack), ordinals)


def batches(kind: str, seed: int) -> Iterator[Ids]:
    random = np.random.default_rng(seed)
    for call in range(CALLS):
        new = random.integers(1, 1 << 64, (BATCH, 2), dtype=np.uint64)
        if kind in ("in order", "cold"):
            pack, part = divmod(seed * CALLS + call, PACK_BLOCKS // BATCH)
            yield real_ids(pack * 7 % REAL_PACKS)[part * BATCH :][:BATCH].copy()
        elif kind == "aged":
            at = 0
            while at < BATCH:
                length = int(random.integers(8, 65))
                first = int(random.integers(0, PACK_BLOCKS - length))
                run = real_ids(int(random.integers(0, REAL_PACKS)))[first : first + length]
                new[at : at + length] = run[: BATCH - at]
                at += 2 * length
            yield new
        else:
            yield new


def read_through(path: Path) -> None:
    with path.open("rb", buffering=0) as stream:
        while stream.read(STEP):
            pass


def forget_page_cache(directory: Path) -> None:
    for path in directory.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def resident_mib() -> dict[str, float]:
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(fields[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM")}


def measure(directory: Path, memory_bytes: int) -> dict[str, Any]:
    before = resident_mib()["VmRSS"]
    tables = IdTables(directory / "ids", KEY, lambda name: None, 1 << 50)
    index = SparseIndex(Levels(RunFiles(directory / "index", REPOSITORY), memory_bytes), tables)
    listing = np.load(directory / "listing.npy", mmap_mode="r")
    start = time.process_time()
    assert index.sync(listing, frozenset()) == []
    told: dict[str, Any] = {"open_cpu_s": round(time.process_time() - start, 2)}
    del listing
    size = index.size()
    told |= {"hooks": size.hooks, "index_bytes": size.index_bytes}
    index.lookup(real_ids(0)[:BATCH])
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    for path in (directory / "index").iterdir():
        read_through(path)
    for kind in (*WARM, *COLD):
        rates, walls, found = [], [], []
        for round_ in range(ROUNDS):
            given = list(batches(kind, round_))
            if kind in COLD:
                forget_page_cache(directory)
                index._tables._segments.clear()
            cpu, wall = time.process_time(), time.perf_counter()
            results = [index.lookup(ids) for ids in given]
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            rates.append(CALLS * BATCH / cpu)
            walls.append(CALLS * BATCH / wall)
            found.append(np.mean([(each.pack >= 0).mean() for each in results]))
        told[f"{kind}_per_cpu_s"] = round(statistics.median(rates))
        told[f"{kind}_per_s"] = round(statistics.median(walls))
        told[f"{kind}_found"] = round(float(np.mean(found)), 4)
    told["resident_mib"] = round(resident_mib()["VmRSS"] - before, 1)
    told["resident_peak_mib"] = round(resident_mib()["VmHWM"] - before, 1)
    return told


def simulated(directory: Path, tib: float, memory_mib: int) -> dict[str, Any]:
    """All of it, by both kernels; ``directory`` keeps the simulated index."""
    if not (directory / "built").exists():
        directory.mkdir(parents=True, exist_ok=True)
        build(directory, tib)
        (directory / "built").touch()
    told: dict[str, Any] = {"tib": tib, "memory_mib": memory_mib}
    for kernel, environ in (("native", {}), ("numpy", {"DRVM_KERNEL": "python"})):
        argv = [sys.executable, "-m", "bench.index", "--dir", str(directory), "--measure"]
        argv += ["--memory-mib", str(memory_mib)]
        run = subprocess.run(
            argv, env={**os.environ, **environ}, check=True, capture_output=True, text=True
        )
        told[kernel] = json.loads(run.stdout)
    told["gb_per_tib"] = round(told["native"]["index_bytes"] / 1e9 / tib, 4)
    return told


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.index", description=__doc__)
    parser.add_argument("--tib", type=float, default=10, help="of different blocks")
    parser.add_argument(
        "--memory-mib", type=int, default=MEMORY_MIB, help="the setting index_memory"
    )
    parser.add_argument("--dir", type=Path, help="keep the simulated index here")
    parser.add_argument("--json", type=Path, help="also write the table to this file")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        print(json.dumps(measure(asked.dir, asked.memory_mib * MIB)))
        return 0
    directory = asked.dir or Path(tempfile.mkdtemp(prefix="drvm-bench-index-"))
    try:
        told = simulated(directory, asked.tib, asked.memory_mib)
    finally:
        if asked.dir is None:
            shutil.rmtree(directory)
    for kernel in ("native", "numpy"):
        print(f"\n{kernel}, {asked.tib:g} TiB, {told['gb_per_tib']} GB per TiB")
        for name, value in told[kernel].items():
            print(f"  {name:>22}  {value:>16,}")
    if asked.json is not None:
        asked.json.write_text(json.dumps(told, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
