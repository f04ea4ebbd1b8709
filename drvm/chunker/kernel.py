"""The kernel: what is done to every block of every disk, many blocks in one call.

Two implementations of one function. The native one, ``_kernel.c``, is compiled by the package's
own build and hashes up to 16 blocks side by side. The other one calls the ``blake3`` package for
each block: it is the reference that tests hold the native one to, and runs where no compiler was.
docs/adr/022-native-kernel.md has the reasons and the figures.
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


@dataclass(frozen=True, slots=True)
class Kernel:
    """``name`` says which one it is, to people."""

    name: str
    scan: Scan


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


def choose(environment: Mapping[str, str]) -> Kernel:
    """The native kernel where it was compiled, unless ``DRVM_KERNEL`` is ``python``."""
    if environment.get("DRVM_KERNEL") == "python":
        return Kernel("python (by DRVM_KERNEL)", reference_scan)
    try:
        from drvm.chunker import _kernel
    except ImportError:
        return Kernel("python (no compiler at install)", reference_scan)
    return Kernel(f"native, {_kernel.LANES} lanes", _kernel.scan)


KERNEL = choose(os.environ)
