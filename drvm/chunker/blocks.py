"""Blocks: the unit of deduplication, 4096 bytes at an aligned offset of a disk.

File systems move data in 4 KiB units, so do we: see docs/FORMAT.md, "Blocks".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from drvm.chunker.kernel import BLOCK_BYTES as BLOCK_BYTES
from drvm.chunker.kernel import ID_BYTES as ID_BYTES
from drvm.chunker.kernel import KERNEL, Kernel
from drvm.chunker.kernel import Buffer as Buffer

LEAF_BLOCKS = 16384
LEAF_BYTES = LEAF_BLOCKS * BLOCK_BYTES

Ids = npt.NDArray[np.uint64]
"""Block ids: shape (n, 2); the 16 bytes of an id as two native words. (0, 0) is a zero block."""


def block_count(size_bytes: int) -> int:
    """How many blocks a disk of ``size_bytes`` has; the last one may be padded."""
    return -(-size_bytes // BLOCK_BYTES)


def leaf_count(size_bytes: int) -> int:
    return -(-size_bytes // LEAF_BYTES)


def zero_ids(count: int) -> Ids:
    return np.zeros((count, 2), dtype=np.uint64)


def ids_from_bytes(data: bytes) -> Ids:
    """The inverse of ``tobytes``; raises ``ValueError`` unless the length is a multiple of 16."""
    return np.frombuffer(data, dtype=np.uint64).reshape(-1, 2)


@dataclass(frozen=True, slots=True)
class Scan:
    """What was found in a row of blocks: their ids, and for each ``kernel.ZERO``, ``SAME`` or
    ``NEW`` in ``state``. ``new_blocks`` counts the last."""

    ids: Ids
    state: npt.NDArray[np.uint8]
    new_blocks: int


class BlockHasher:
    """Names blocks by keyed BLAKE3, so that nobody without the key can test for a content.

    Safe for several threads at once; with the native kernel they don't wait for each other.
    """

    def __init__(self, id_key: bytes, digest_key: bytes, kernel: Kernel = KERNEL) -> None:
        self._id_key = id_key
        self._digest_key = digest_key
        self._kernel = kernel

    def ids(self, data: Buffer) -> Ids:
        """The ids of the whole blocks in ``data``; zero blocks have the id (0, 0)."""
        return self.scan(data, None).ids

    def scan(self, data: Buffer, known: Ids | None) -> Scan:
        """The ids, and which blocks differ from those ``known``, block by block: (0, 0) there
        stands for a zero block. Raises ``ValueError`` unless ``data`` is whole blocks and
        ``known`` as many ids. A few blocks in a call cost up to twice as much each as many do.

        To gather blocks in one piece, ``np.take(rows, numbers, axis=0, mode="clip")`` is as
        fast as C can be, and also lets other threads run.
        """
        blocks = memoryview(data).nbytes // BLOCK_BYTES
        ids = np.empty((blocks, 2), dtype=np.uint64)
        state = np.empty(blocks, dtype=np.uint8)
        there = None if known is None else np.ascontiguousarray(known).data
        new_blocks = self._kernel.scan(data, self._id_key, there, ids.data, state.data)
        return Scan(ids, state, new_blocks)

    def leaf_digest(self, ids: Ids) -> bytes:
        """32 bytes that stand for the content of one leaf of the disk map."""
        return blake3(ids.tobytes(), key=self._digest_key).digest()
