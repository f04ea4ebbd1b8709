"""Frames: up to 32 blocks (128 KiB), the unit of compression and of encryption.

Also used for the blobs of metadata packs, which are frames of any length.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import zstandard

from drvm.chunker.blocks import BLOCK_BYTES, Buffer

FRAME_BLOCKS = 32
FRAME_BYTES = FRAME_BLOCKS * BLOCK_BYTES

RAW = 0
"""Codec of a frame that is stored as it is. Every other codec is the zstd level it was
compressed with, 1 to 22, or 1 for a faster one: readers need only know that it is zstd."""

LEVELS = {"fast": -5, "default": 1, "high": 9}
"""What the config's words mean. Of a Debian server's files, 1 leaves 29 % at 2.3 cpu-s/GiB, -5
leaves 41 % at 1.6, and 9 leaves 26 % at 15."""
METADATA_LEVEL = 9

_WORTH_IT = 0.97
_COLUMNS_BYTES = 2560  # below that, a code for each takes more than it saves
_MAX_WINDOW_BYTES = 32 * 1024 * 1024  # no frame is larger, so no writer needs a larger one
_contexts = threading.local()


def encode(plain: Buffer, level: int) -> tuple[int, bytes]:
    """Compress; returns (codec, payload). Stored raw where zstd saves less than 3 %."""
    payload = _compressor(level).compress(plain)
    if len(payload) > len(plain) * _WORTH_IT:
        return RAW, bytes(plain)
    return max(level, 1), payload


def encode_columns(columns: Sequence[bytes], level: int) -> tuple[int, bytes]:
    """The same, for bytes of different nature one behind the other: a block of the zstd frame
    ends behind each, so that each has a code of its own. A tenth less for leaves."""
    plain = b"".join(columns)
    if len(columns) == 1 or len(plain) < _COLUMNS_BYTES:
        return encode(plain, level)
    stream = _compressor(level).compressobj()
    parts = []
    for column in columns:
        parts.append(stream.compress(column))
        parts.append(stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK))
    parts.append(stream.flush())
    payload = b"".join(parts)
    return (RAW, plain) if len(payload) > len(plain) * _WORTH_IT else (max(level, 1), payload)


def decode(codec: int, payload: bytes, plain_bytes: int) -> bytes:
    """The inverse. Raises ``ValueError`` unless exactly ``plain_bytes`` come out.

    The output is bounded by ``plain_bytes`` whatever the payload claims.
    """
    plain = payload if codec == RAW else decompress(payload, plain_bytes)
    if len(plain) != plain_bytes:
        raise ValueError(f"frame holds {len(plain)} bytes instead of {plain_bytes}")
    return plain


def decode_into(codec: int, payload: bytes, plain: memoryview) -> None:
    """``decode`` into memory that is there, as long as what comes out: without the detour through
    memory of its own, a tenth less work. Raises ``ValueError``; what is there then is worth
    nothing."""
    if codec == RAW or not _is_whole(payload, len(plain)):
        plain[:] = decode(codec, payload, len(plain))
        return
    try:
        with _decompressor().stream_reader(payload) as stream:
            length = stream.readinto(plain)
    except zstandard.ZstdError as error:
        raise ValueError(f"frame does not decompress: {error}") from None
    if length != len(plain):
        raise ValueError(f"frame holds {length} bytes instead of {len(plain)}")


def holds(codec: int, payload: bytes, plain: Buffer) -> bool:
    """Whether these bytes come out again. Raises ``ValueError`` where none do."""
    # startswith compares whole buffers in C; == between bytes and views goes byte by byte
    return decode(codec, payload, len(plain)).startswith(plain)


def decompress(payload: bytes, max_bytes: int) -> bytes:
    """One zstd frame and nothing else. Raises ``ValueError`` for more than ``max_bytes``.

    What the frame itself claims to hold is looked at first: zstandard allocates and fills that
    much, and heeds ``max_output_size`` only where the frame claims nothing.
    """
    try:
        if zstandard.frame_content_size(payload) > max_bytes:
            raise ValueError(f"frame claims more than {max_bytes} bytes")
        return _decompressor().decompress(
            payload, max_output_size=max_bytes, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise ValueError(f"frame does not decompress: {error}") from None


def _is_whole(payload: bytes, plain_bytes: int) -> bool:
    """Whether this is a zstd frame of one block that says it holds so much, and nothing behind
    (RFC 8878, 3.1.1), which who reads it as a stream would not look at. Most frames are."""
    try:
        if zstandard.frame_content_size(payload) != plain_bytes:
            return False
        start = zstandard.frame_header_size(payload) + 3
    except zstandard.ZstdError:
        return False
    block = int.from_bytes(payload[start - 3 : start], "little")
    return block & 1 == 1 and start + (block >> 3) == len(payload)


def _compressor(level: int) -> zstandard.ZstdCompressor:
    """Contexts are costly to make and belong to one thread."""
    cache: dict[int, zstandard.ZstdCompressor] | None = getattr(_contexts, "compressors", None)
    if cache is None:
        cache = _contexts.compressors = {}
    if level not in cache:
        cache[level] = zstandard.ZstdCompressor(
            level=level, write_content_size=True, write_checksum=False
        )
    return cache[level]


def _decompressor() -> zstandard.ZstdDecompressor:
    decompressor: zstandard.ZstdDecompressor | None = getattr(_contexts, "decompressor", None)
    if decompressor is None:
        decompressor = _contexts.decompressor = zstandard.ZstdDecompressor(
            max_window_size=_MAX_WINDOW_BYTES
        )
    return decompressor
