"""What the kernel's functions cost: naming blocks, and looking keys up.

``python -m bench.kernel [--json FILE] [--repeat N]``. Nothing is needed but a CPU and 1.5 GiB of
memory. By turns, CPU seconds of this thread, medians; compare within one run only.

Naming, per GiB: ``random`` is nothing but random bytes, ``half zero`` has every other run of 1 to
64 blocks zeroed, ``known`` compares each block with the id of its place, ``2 blocks`` gives two in
each call; beside it the ``blake3`` package alone. Looking up, millions of keys per second: 1024
random keys in each call, half of them there, in so many millions of keys.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from drvm.chunker.kernel import BLOCK_BYTES, Buffer, Probe, Scan, reference_probe, reference_scan
from drvm.core.units import GIB, MIB

KEY = bytes(range(32))
DATA_BYTES = 64 * MIB
CALL_BYTES = 4 * MIB
TABLE_KEYS = tuple(millions << 20 for millions in (1, 16, 64))
CALLS, CALL_KEYS = 400, 1024
Work = Callable[[], object]
Table = list[dict[str, Any]]


def contents() -> dict[str, memoryview]:
    random = np.random.default_rng(1)
    dense = np.frombuffer(random.bytes(DATA_BYTES), dtype=np.uint8)
    sparse = dense.copy().reshape(-1, BLOCK_BYTES)
    at = 0
    for run in random.integers(1, 65, size=len(sparse)).tolist():
        sparse[at : at + run] = 0
        at += 2 * run
    return {"random": dense.data, "half zero": sparse.reshape(-1).data}


def kernels() -> dict[str, Scan]:
    """The widest first, the reference last."""
    found: dict[str, Scan] = {}
    try:
        from drvm.chunker import _kernel

        for lanes in (16, 8, 4):
            if lanes <= _kernel.LANES:
                found[f"native, {lanes} lanes"] = _with_lanes(_kernel.scan, lanes)
    except ImportError:
        print("the native kernel is not compiled: python setup.py -q build_ext --inplace")
    return found | {"python": reference_scan}


def _with_lanes(scan: Callable[..., int], lanes: int) -> Scan:
    def scan_with_lanes(
        data: Buffer, key: Buffer, known: Buffer | None, ids: Buffer, state: Buffer, /
    ) -> int:
        return scan(data, key, known, ids, state, lanes)

    return scan_with_lanes


def scanning(scan: Scan, data: memoryview, call_bytes: int, known: bytes | None = None) -> Work:
    blocks = call_bytes // BLOCK_BYTES
    ids, state = bytearray(16 * blocks), bytearray(blocks)

    def work() -> None:
        for at in range(0, len(data), call_bytes):
            there = known and memoryview(known)[at // 256 : (at + call_bytes) // 256]
            scan(data[at : at + call_bytes], KEY, there, ids, state)

    return work


def works() -> dict[tuple[str, str], Work]:
    """(what runs, on what) -> the work, on ``DATA_BYTES``."""
    found: dict[tuple[str, str], Work] = {}
    data = contents()
    known = bytearray(DATA_BYTES // 256)
    reference_scan(data["random"], KEY, None, known, bytearray(DATA_BYTES // BLOCK_BYTES))
    for name, scan in kernels().items():
        for kind, content in data.items():
            found[name, kind] = scanning(scan, content, CALL_BYTES)
        found[name, "known"] = scanning(scan, data["random"], CALL_BYTES, bytes(known))
        found[name, "2 blocks"] = scanning(scan, data["random"], 2 * BLOCK_BYTES)
    dense = data["random"]

    def hashing(step: int) -> Work:
        return lambda: [
            blake3(dense[at : at + step], key=KEY).digest(16) for at in range(0, len(dense), step)
        ]

    found["blake3, 4 KiB a call", "random"] = hashing(BLOCK_BYTES)
    found["blake3, 64 KiB a call", "random"] = hashing(16 * BLOCK_BYTES)
    found["blake3, 4 MiB a call", "random"] = hashing(CALL_BYTES)
    return found


def by_turns(todo: dict[tuple[str, str], Work], repeat: int) -> dict[tuple[str, str], float]:
    """The median of the CPU seconds of each."""
    seen: dict[tuple[str, str], list[float]] = {which: [] for which in todo}
    for _ in range(repeat):
        for which, work in todo.items():
            before = time.thread_time()
            work()
            seen[which].append(time.thread_time() - before)
    return {which: statistics.median(values) for which, values in seen.items()}


def naming(repeat: int) -> Table:
    return [
        {"kernel": kernel, "data": kind, "cpu_s_per_gib": round(cpu_s * GIB / DATA_BYTES, 3)}
        for (kernel, kind), cpu_s in by_turns(works(), repeat).items()
    ]


def probing(probe: Probe, keys: npt.NDArray[np.uint64], calls: list[memoryview]) -> Work:
    places = np.empty(CALL_KEYS, dtype=np.int64)

    def work() -> None:
        for wanted in calls:
            probe(keys.data, keys.nbytes, len(keys), None, wanted, places.data)

    return work


def looking_up(repeat: int) -> Table:
    random = np.random.default_rng(2)
    probes: dict[str, Probe] = {"python": reference_probe}
    with contextlib.suppress(ImportError):
        from drvm.chunker import _kernel

        probes = {"native": _kernel.probe} | probes
    rows: Table = []
    for count in TABLE_KEYS:
        keys = random.integers(0, 1 << 64, count, dtype=np.uint64)
        keys.sort()
        calls = []
        for _ in range(CALLS):
            there = keys[random.integers(0, count, CALL_KEYS // 2)]
            absent = random.integers(0, 1 << 64, CALL_KEYS // 2, dtype=np.uint64)
            calls.append(random.permutation(np.concatenate([there, absent])).data)
        todo = {(name, ""): probing(probe, keys, calls) for name, probe in probes.items()}
        for (name, _), cpu_s in by_turns(todo, repeat).items():
            rate = round(CALLS * CALL_KEYS / cpu_s / 1e6, 2)
            rows.append({"kernel": name, "keys": count, "million_per_cpu_s": rate})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="what the kernel's functions cost")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--repeat", type=int, default=7)
    arguments = parser.parse_args()
    tables = {"naming": naming(arguments.repeat), "looking_up": looking_up(arguments.repeat)}
    for name, rows in tables.items():
        print(f"{name}: {', '.join(rows[0])}")
        for row in rows:
            print("  " + "".join(f"{value!s:24}" for value in row.values()))
    if arguments.json:
        arguments.json.write_text(json.dumps(tables, indent=2) + "\n")


if __name__ == "__main__":
    main()
