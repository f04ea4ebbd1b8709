"""Is a pack what its name stands for? Read whole, with or without the key.

Without a key: the footer's digests. With it: every frame is opened as a restore opens it, and the
blocks are named anew and compared with the pack's own table of ids. A restore needs no more than
the frames; what deduplication believes is the table.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from drvm.chunker.blocks import BLOCK_BYTES, BlockHasher, Ids, zero_ids
from drvm.chunker.frames import FRAME_BLOCKS
from drvm.core.errors import DamageFound, RepositoryError
from drvm.repository.crypto import Sealer
from drvm.repository.pack import FOOTER_BYTES, Footer, OpenPack, parse_footer

_I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Fault:
    """What is wrong with a pack, and what of it can't be read.

    ``frames``: numbers of those that don't open, ascending; ``None`` where nothing of the pack can
    be read. ``absent``: it is not there. ``ids`` and their ``ordinals``, which ascend: what its
    readable blocks really are, where its table says otherwise or can't be read.
    """

    reason: str
    frames: _I64 | None = None
    absent: bool = False
    ids: Ids | None = None
    ordinals: _I64 | None = None

    def loses(self, ordinals: _I64) -> npt.NDArray[np.bool_]:
        """Which of the blocks at these ordinals can't be read."""
        if self.frames is None:
            return np.ones(len(ordinals), dtype=np.bool_)
        return np.isin(ordinals // FRAME_BLOCKS, self.frames)


def check_sums(name: bytes, data: bytes) -> Footer:
    """The pack by its own checksums: needs no key. Raises ``DamageFound``."""
    footer = parse_footer(name, data)
    body = memoryview(data)[: footer.body_bytes]
    tables = memoryview(data)[footer.body_bytes : -FOOTER_BYTES]
    if (
        len(data) != footer.pack_bytes
        or blake3(body).digest() != footer.body_blake3
        or hashlib.sha256(tables).digest() != footer.tables_sha256
    ):
        raise DamageFound(f"pack {name.hex()} is damaged")
    return footer


def examine(
    name: bytes, data: bytes, sealer: Sealer | None = None, hasher: BlockHasher | None = None
) -> Fault | None:
    """``data`` is the whole object of this name. Without ``sealer`` nothing can be said of single
    frames: what is damaged counts as lost."""
    try:
        check_sums(name, data)
        reason = ""
    except RepositoryError:
        reason = "its bytes are not those that its name stands for"
    if sealer is None or hasher is None:
        return Fault(reason) if reason else None
    try:
        footer, pack = _open(name, data, sealer)
    except RepositoryError as error:
        return Fault(reason or error.message)
    bad, ids, ordinals = _frames(pack, data, hasher)
    if len(bad):
        reason = f"{len(bad)} of its {len(pack.frames.offset)} frames don't open"
    if footer.kind != "data":
        return Fault(reason, bad) if reason else None
    if _table_agrees(pack, footer, data, ids, ordinals, bad):
        return Fault(reason, bad) if reason else None
    return Fault(reason or "its table of ids is not that of its blocks", bad, False, ids, ordinals)


def _open(name: bytes, data: bytes, sealer: Sealer) -> tuple[Footer, OpenPack]:
    """By its end, as every reader does."""
    footer = parse_footer(name, data)
    end = len(data) - FOOTER_BYTES
    if footer.table_bytes > end:
        raise DamageFound(f"pack {name.hex()} is truncated")
    return footer, OpenPack(sealer, name, footer, data[end - footer.table_bytes : end])


def _frames(pack: OpenPack, data: bytes, hasher: BlockHasher) -> tuple[_I64, Ids, _I64]:
    """(frames that don't open, ids of all other blocks, their ordinals)."""
    view = memoryview(data)
    bad: list[int] = []
    ids: list[Ids] = [zero_ids(0)]
    ordinals: list[_I64] = [np.zeros(0, dtype=np.int64)]
    places = zip(pack.frames.offset.tolist(), pack.frames.stored_bytes.tolist(), strict=True)
    for number, (offset, length) in enumerate(places):
        try:
            plain = pack.open_frame(number, view[offset : offset + length])
        except DamageFound:
            bad.append(number)
            continue
        if pack.footer.kind == "data":
            ids.append(hasher.ids(plain))
            first = number * FRAME_BLOCKS
            ordinals.append(np.arange(first, first + len(plain) // BLOCK_BYTES))
    return np.array(bad, dtype=np.int64), np.concatenate(ids), np.concatenate(ordinals)


def _table_agrees(
    pack: OpenPack, footer: Footer, data: bytes, ids: Ids, ordinals: _I64, bad: _I64
) -> bool:
    """Whether the table opens and has these ids, but for those of frames that don't open."""
    end = len(data) - FOOTER_BYTES - footer.table_bytes
    try:
        told, places = pack.ids(data[max(0, end - footer.ids_bytes) : end])
    except DamageFound:
        return False
    known = ~np.isin(places // FRAME_BLOCKS, bad)
    return np.array_equal(places[known], ordinals) and np.array_equal(told[known], ids)
