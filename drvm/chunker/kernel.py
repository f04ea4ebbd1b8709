"""The kernel: what is done to every block of every disk, many blocks in one call.

Two implementations of two functions. The native ones, ``_kernel.c``, are compiled by the package's
own build: blocks are hashed up to 16 side by side, keys are looked up so too. The others, by the
``blake3`` package and numpy, are the reference that tests hold the native ones to, and run where
no compiler was. docs/adr/022-native-kernel.md has the reasons and the figures.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from blake3 import blake3

BLOCK_BYTES = 4096
ID_BYTES = 16
KEY_BYTES = 32

ZERO, SAME, NEW = 0, 1, 2
"""What a scan says of a block: all its bytes are zero; it has the id that is known; neither."""

Buffer = bytes | bytearray | memoryview


class Scan(Protocol):
    def __call__(
        self, data: Buffer, key: Buffer, known: Buffer | None, ids: Buffer, state: Buffer, /
    ) -> int:
        """Name the blocks in ``data`` and compare them with what is known of their places.

        ``data``: whole blocks, at any address. ``key``: 32 bytes. For each block 16 bytes are
        written to ``ids``, zeroes for a zero block, else the start of its keyed BLAKE3; and one
        byte to ``state``, ``ZERO``, ``SAME`` or ``NEW``. ``known``: 16 bytes a block; without it
        no block is ``SAME``. All are contiguous. Returns how many blocks are ``NEW``.

        Raises ``ValueError`` for lengths that don't fit each other, and what Python raises for
        buffers of the wrong kind; then nothing was written.
        """
        ...


class Probe(Protocol):
    def __call__(
        self,
        table: Buffer,
        row_bytes: int,
        row_keys: int,
        rows: Buffer | None,
        wanted: Buffer,
        places: Buffer,
        /,
    ) -> int:
        """Look keys up in sorted tables. All words are native and may lie at any address.

        ``table``: rows of ``row_bytes``, each of which begins with ``row_keys`` ascending u64;
        what follows there is not looked at. ``wanted``: u64 keys; ``rows``: for each an i64, the
        row in which it is looked for, or ``None``: all in the first. ``places``: for each an i64,
        the first place of that key in its row, or -1. Returns how many were found.

        Keys of a row that don't ascend may be missed, and no more than that; a row that is not
        full is padded with the largest key. Quick where keys are spread evenly, as hashes are.

        Raises ``ValueError`` for lengths that don't fit each other and rows that are not there,
        and what Python raises for buffers of the wrong kind; ``places`` is then worth nothing.
        """
        ...


@dataclass(frozen=True, slots=True)
class Kernel:
    """``name`` says which one it is, to people."""

    name: str
    scan: Scan
    probe: Probe


def nonzero_blocks(data: Buffer) -> npt.NDArray[np.bool_]:
    """Which of the whole blocks in ``data`` hold anything but zeroes. ``len`` = blocks.

    Looks at the first word of each block and reads on only in blocks where that is zero:
    comparing memory views byte by byte costs ten times as much.
    """
    words = np.frombuffer(data, dtype=np.uint64).reshape(-1, BLOCK_BYTES // 8)
    nonzero: npt.NDArray[np.bool_] = words[:, 0] != 0
    doubtful = np.flatnonzero(~nonzero)
    if len(doubtful):
        nonzero[doubtful] = words[doubtful].any(axis=1)
    return nonzero


def reference_scan(
    data: Buffer, key: Buffer, known: Buffer | None, ids: Buffer, state: Buffer, /
) -> int:
    """``Scan`` by the ``blake3`` package, one call a block."""
    blocks, rest = divmod(memoryview(data).nbytes, BLOCK_BYTES)
    lengths = {"ids": (ids, ID_BYTES), "state": (state, 1), "known": (known, ID_BYTES)}
    if rest or memoryview(key).nbytes != KEY_BYTES:
        raise ValueError("whole blocks and a key of 32 bytes are needed")
    for name, (buffer, each) in lengths.items():
        if buffer is not None and memoryview(buffer).nbytes != blocks * each:
            raise ValueError(f"{blocks} blocks need {each} bytes of {name} each")
    for buffer in (ids, state):
        if memoryview(buffer).readonly:
            raise TypeError("ids and state are written to")
    content = np.frombuffer(data, dtype=np.uint8).reshape(blocks, BLOCK_BYTES)
    rows = np.frombuffer(ids, dtype=np.uint8).reshape(blocks, ID_BYTES)
    states = np.frombuffer(state, dtype=np.uint8)
    nonzero, secret = nonzero_blocks(data), bytes(key)
    rows[~nonzero] = 0
    for number in np.flatnonzero(nonzero).tolist():
        digest = blake3(content[number].data, key=secret).digest(length=ID_BYTES)
        rows[number] = np.frombuffer(digest, dtype=np.uint8)
    states[:] = np.where(nonzero, NEW, ZERO)
    if known is not None:
        there = np.frombuffer(known, dtype=np.uint8).reshape(blocks, ID_BYTES)
        states[nonzero & (rows == there).all(axis=1)] = SAME
    return int(np.count_nonzero(states == NEW))


def reference_probe(
    table: Buffer,
    row_bytes: int,
    row_keys: int,
    rows: Buffer | None,
    wanted: Buffer,
    places: Buffer,
    /,
) -> int:
    """``Probe`` by numpy, one call a row."""
    length, count = memoryview(table).nbytes, memoryview(wanted).nbytes // 8
    if row_bytes < 0 or not 0 <= row_keys <= row_bytes // 8 or length % max(row_bytes, 1):
        raise ValueError(f"the table is not rows of {row_bytes} bytes with {row_keys} keys")
    for buffer in (wanted, rows, places):
        if buffer is not None and memoryview(buffer).nbytes != count * 8:
            raise ValueError(f"{count} keys need as many rows and places")
    if memoryview(places).readonly:
        raise TypeError("places are written to")
    number = length // row_bytes if row_keys else 0
    keys = np.ndarray((number, row_keys), np.uint64, table, 0, (row_bytes, 8))
    look_for, found = np.frombuffer(wanted, np.uint64), np.frombuffer(places, np.int64)
    found[:] = -1
    if rows is None:
        which = np.zeros(count if number else 0, dtype=np.int64)
    else:
        which = np.frombuffer(rows, np.int64)
        if len(which) and not 0 <= which.min() <= which.max() < number:
            raise ValueError("a row is not in the table")
    for row in np.unique(which).tolist():
        here = np.flatnonzero(which == row)
        at = np.minimum(np.searchsorted(keys[row], look_for[here]), row_keys - 1)
        hit = keys[row, at] == look_for[here]
        found[here[hit]] = at[hit]
    return int(np.count_nonzero(found >= 0))


def choose(environment: Mapping[str, str]) -> Kernel:
    """The native kernel where it was compiled, unless ``DRVM_KERNEL`` is ``python``."""
    if environment.get("DRVM_KERNEL") == "python":
        return Kernel("python (by DRVM_KERNEL)", reference_scan, reference_probe)
    try:
        from drvm.chunker import _kernel
    except ImportError:
        return Kernel("python (no compiler at install)", reference_scan, reference_probe)
    return Kernel(f"native, {_kernel.LANES} lanes", _kernel.scan, _kernel.probe)


KERNEL = choose(os.environ)
