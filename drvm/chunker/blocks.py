"""Blocks: the unit of deduplication, 4096 bytes at an aligned offset of a disk.

File systems move data in 4 KiB units, so do we: see docs/FORMAT.md, "Blocks".
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from blake3 import blake3

BLOCK_BYTES = 4096
ID_BYTES = 16
LEAF_BLOCKS = 16384
LEAF_BYTES = LEAF_BLOCKS * BLOCK_BYTES

Ids = npt.NDArray[np.uint64]
"""Block ids: shape (n, 2); the 16 bytes of an id as two native words. (0, 0) is a zero block."""

Buffer = bytes | bytearray | memoryview


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


class BlockHasher:
    """Names blocks by keyed BLAKE3, so that nobody without the key can test for a content."""

    def __init__(self, id_key: bytes, digest_key: bytes) -> None:
        self._id_key = id_key
        self._digest_key = digest_key

    def ids(self, data: Buffer) -> Ids:
        """The ids of the whole blocks in ``data``; zero blocks have the id (0, 0)."""
        view = memoryview(data).cast("B")
        ids = zero_ids(len(view) // BLOCK_BYTES)
        key, rows = self._id_key, ids.view(np.uint8)
        for number in np.flatnonzero(nonzero_blocks(view)).tolist():
            start = number * BLOCK_BYTES
            digest = blake3(view[start : start + BLOCK_BYTES], key=key).digest(length=ID_BYTES)
            rows[number] = np.frombuffer(digest, dtype=np.uint8)
        return ids

    def leaf_digest(self, ids: Ids) -> bytes:
        """32 bytes that stand for the content of one leaf of the disk map."""
        return blake3(ids.tobytes(), key=self._digest_key).digest()
