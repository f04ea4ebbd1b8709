"""What naming blocks costs: the native kernel in each of its widths, and the ``blake3`` package.

``python -m bench.kernel [--json FILE] [--repeat N]``. Nothing is needed but a CPU. By turns, CPU
seconds per GiB of this thread, medians; compare within one run only. ``random`` is nothing but
random bytes, ``half zero`` has every other run of 1 to 64 blocks zeroed, ``known`` compares each
block with the id of its place, ``2 blocks`` gives two in each call.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from blake3 import blake3

from drvm.chunker.kernel import BLOCK_BYTES, Scan, reference_scan
from drvm.core.units import GIB, MIB

KEY = bytes(range(32))
DATA_BYTES = 64 * MIB
CALL_BYTES = 4 * MIB
Work = Callable[[], object]


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
                found[f"native, {lanes} lanes"] = lambda *buffers, lanes=lanes: _kernel.scan(
                    *buffers, lanes
                )
    except ImportError:
        print("the native kernel is not compiled: python setup.py -q build_ext --inplace")
    return found | {"python": reference_scan}


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


def measure(repeat: int) -> list[dict[str, object]]:
    todo = works()
    seen: dict[tuple[str, str], list[float]] = {which: [] for which in todo}
    for _ in range(repeat):
        for which, work in todo.items():
            before = time.thread_time()
            work()
            seen[which].append((time.thread_time() - before) * GIB / DATA_BYTES)
    return [
        {"kernel": kernel, "data": kind, "cpu_s_per_gib": round(statistics.median(values), 3)}
        for (kernel, kind), values in seen.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="what naming blocks costs")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--repeat", type=int, default=7)
    arguments = parser.parse_args()
    rows = measure(arguments.repeat)
    for row in rows:
        print(f"{row['kernel']:24} {row['data']:12} {row['cpu_s_per_gib']:.3f}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"kernel": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
