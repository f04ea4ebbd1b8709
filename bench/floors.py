"""What drvm is measured against where no other program is: the least work, and fixed chunks."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import zstandard

from drvm.core.extents import ExtentKind
from drvm.core.units import KIB, MIB
from drvm.host.rawfile import raw_extents

LEVEL = 1
BLOCK_BYTES = 4 * KIB
FRAME_BYTES = 128 * KIB
_READ_BYTES = 4 * MIB


def pieces(image: Path, piece_bytes: int) -> Iterator[bytes]:
    """The allocated parts of a raw image in aligned pieces, those of zeroes left out. The last may
    be shorter."""
    zeroes = bytes(piece_bytes)
    step = max(_READ_BYTES, piece_bytes)
    size_bytes = image.stat().st_size
    with image.open("rb", buffering=0) as stream:
        done = 0
        for extent in raw_extents(image, size_bytes):
            if extent.kind is ExtentKind.ZERO:
                continue
            start = max(done, extent.offset // piece_bytes * piece_bytes)
            done = min(-(-extent.end // piece_bytes) * piece_bytes, size_bytes)
            for at in range(start, done, step):
                data = os.pread(stream.fileno(), min(step, done - at), at)
                for first in range(0, len(data), piece_bytes):
                    piece = data[first : first + piece_bytes]
                    if piece != zeroes:
                        yield piece


def read_and_compress(image: Path) -> dict[str, float]:
    """The floor of a full backup: every frame read, compressed by zstd -1, and discarded."""
    compressor = zstandard.ZstdCompressor(level=LEVEL)
    plain = stored = 0
    for piece in pieces(image, FRAME_BYTES):
        plain += len(piece)
        stored += len(compressor.compress(piece))
    return {"plain_bytes": plain, "stored_bytes": stored}


def fixed_chunks(images: Sequence[Path], chunk_bytes: int) -> list[int]:
    """What each image adds, in this order, to a store of such chunks with zstd -1: each chunk
    once, nothing counted for ids and maps."""
    compressor = zstandard.ZstdCompressor(level=LEVEL)
    seen: set[bytes] = set()
    added = []
    for image in images:
        before = 0
        for piece in pieces(image, chunk_bytes):
            name = hashlib.blake2b(piece, digest_size=16).digest()
            if name not in seen:
                seen.add(name)
                before += min(len(compressor.compress(piece)), len(piece))
        added.append(before)
    return added


def new_blocks(images: Sequence[Path]) -> list[int]:
    """What each image adds, in this order, to the blocks that were nowhere before, side by side in
    frames with zstd -1: no store of blocks can take less."""
    seen: set[bytes] = set()
    return [compressed(_unseen(image, seen))[1] for image in images]


def changed_blocks(before: Path, after: Path) -> tuple[int, int]:
    """(bytes, bytes after zstd -1) of exactly the blocks that differ and hold anything, side by
    side in frames: what an incremental can't do without."""
    return compressed(_differing(before, after))


def compressed(blocks: Iterator[bytes]) -> tuple[int, int]:
    """Bytes before and after zstd -1 in frames, one of them in memory at a time."""
    compressor = zstandard.ZstdCompressor(level=LEVEL)
    plain = stored = 0
    frame = bytearray()
    for block in blocks:
        frame += block
        if len(frame) >= FRAME_BYTES:
            plain, stored = plain + len(frame), stored + len(compressor.compress(frame))
            frame.clear()
    return plain + len(frame), stored + (len(compressor.compress(frame)) if frame else 0)


def _unseen(image: Path, seen: set[bytes]) -> Iterator[bytes]:
    for block in pieces(image, BLOCK_BYTES):
        name = hashlib.blake2b(block, digest_size=12).digest()
        if name not in seen:
            seen.add(name)
            yield block


def _differing(before: Path, after: Path) -> Iterator[bytes]:
    zero = bytes(BLOCK_BYTES)
    with before.open("rb") as old_stream, after.open("rb") as new_stream:
        while new := new_stream.read(_READ_BYTES):
            old = old_stream.read(_READ_BYTES)
            if old == new:
                continue
            for at in range(0, len(new), BLOCK_BYTES):
                block = new[at : at + BLOCK_BYTES]
                if block not in (old[at : at + BLOCK_BYTES], zero):
                    yield block
