"""Index objects: the hooks of a batch of packs, so that other hosts learn of them without reading
every pack's table. docs/FORMAT.md, "Index objects".

They are hints and nothing else: a hook that is wrong costs a look-up, one that is missing some
space, and an address is only ever taken from a pack's own table.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from drvm.repository.index.hooks import NAME_BYTES, PackHooks

MAX_HOOKS = 1 << 20
MAX_PACKS = 1 << 16
SMALL_PACK_BLOCKS = 4096
"""Of a pack with no more blocks than this all are hooks, or small changes would not be found."""

_HEADER = struct.Struct("<II")


def encode(packs: Sequence[PackHooks]) -> bytes:
    """At most ``MAX_PACKS``, with at most ``MAX_HOOKS`` in all."""
    counts = np.array([len(pack.keys) for pack in packs], dtype="<u4")
    return b"".join(
        (
            _HEADER.pack(len(packs), int(counts.sum())),
            *(pack.name for pack in packs),
            counts.tobytes(),
            *(pack.keys.tobytes() for pack in packs),
            *(pack.segments.astype(np.uint8).tobytes() for pack in packs),
        )
    )


def decode(data: bytes) -> list[PackHooks]:
    """The inverse. Raises ``ValueError`` for what no writer writes."""
    if len(data) < _HEADER.size:
        raise ValueError("it is truncated")
    count, hooks = _HEADER.unpack_from(data)
    if count > MAX_PACKS or hooks > MAX_HOOKS:
        raise ValueError(f"it claims {count} packs and {hooks} hooks")
    counts_start = _HEADER.size + NAME_BYTES * count
    keys_start = counts_start + 4 * count
    if len(data) != keys_start + 9 * hooks:
        raise ValueError("it has the wrong length")
    counts = np.frombuffer(data, dtype="<u4", count=count, offset=counts_start).astype(np.int64)
    if int(counts.sum()) != hooks:
        raise ValueError("its packs have another number of hooks than it says")
    keys = np.frombuffer(data, dtype=np.uint64, count=hooks, offset=keys_start)
    segments = np.frombuffer(data, dtype=np.uint8, offset=keys_start + 8 * hooks)
    ends = np.cumsum(counts).tolist()
    packs = []
    for number, end in enumerate(ends):
        at = _HEADER.size + NAME_BYTES * number
        here = slice(end - int(counts[number]), end)
        name = data[at : at + NAME_BYTES]
        packs.append(PackHooks(name, keys[here], segments[here].astype(np.int64)))
    if len({pack.name for pack in packs}) != count:
        raise ValueError("it names a pack twice")
    return packs


def batches(packs: Iterable[PackHooks]) -> Iterator[list[PackHooks]]:
    """As many as an object holds."""
    batch: list[PackHooks] = []
    hooks = 0
    for pack in packs:
        if batch and (hooks + len(pack.keys) > MAX_HOOKS or len(batch) == MAX_PACKS):
            yield batch
            batch, hooks = [], 0
        batch.append(pack)
        hooks += len(pack.keys)
    if batch:
        yield batch
