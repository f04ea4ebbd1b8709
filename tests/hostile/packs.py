"""Packs that lie about themselves: footers, frame tables and frames, under their proper names."""

from __future__ import annotations

import functools
import io
import struct
from collections.abc import Callable, Sequence
from typing import Any

import zstandard

from tests.hostile.case import Case, harmless, lost
from tests.hostile.forge import BLOCK, LEAF, Forge, frame_table, leaf, node

Frame = tuple[int, bytes, int]
PLAIN = b"x" * BLOCK
BLOB = b"<domain/>"
MIB = 1 << 20


@functools.cache
def bomb(size: int, *, claims: bool = True) -> bytes:
    """A zstd frame of so many zeroes."""
    stream = io.BytesIO()
    made = zstandard.ZstdCompressor(level=3, write_content_size=claims)
    with made.stream_writer(stream, size=size if claims else -1, closefd=False) as writer:
        for _ in range(size // MIB):
            writer.write(bytes(MIB))
    return stream.getvalue()


def claiming(size: int) -> bytes:
    """A zstd frame whose header claims so many bytes, and that holds 4096."""
    honest = zstandard.ZstdCompressor(write_checksum=False).compress(PLAIN)
    start = zstandard.frame_header_size(honest)
    return honest[:4] + b"\xe0" + struct.pack("<Q", size) + honest[start:]


def wide_window() -> bytes:
    """A zstd frame that needs a window of 2 GiB."""
    honest = zstandard.ZstdCompressor(write_content_size=False, write_checksum=False)
    frame = honest.compress(PLAIN)
    return frame[:5] + bytes([21 << 3]) + frame[6:]  # 2^(10 + 21) bytes: RFC 8878, 3.1.1.1.2


SKIPPABLE = b"\x50\x2a\x4d\x18" + struct.pack("<I", 4) + b"evil"
BOMBS: dict[str, Callable[[], bytes]] = {
    "a bomb of 1 GiB": lambda: bomb(1024 * MIB),
    "a bomb of 1 GiB that claims nothing": lambda: bomb(1024 * MIB, claims=False),
    "a frame that claims 2^62 bytes": lambda: claiming(1 << 62),
    "a frame that claims one byte more": lambda: claiming(BLOCK + 1),
    "a frame that claims one byte less": lambda: claiming(BLOCK - 1),
    "a window of 2 GiB": wide_window,
    "two frames": lambda: zstandard.compress(PLAIN) + zstandard.compress(PLAIN),
    "a frame and a byte": lambda: zstandard.compress(PLAIN) + b"\0",
    "a skippable frame in front": lambda: SKIPPABLE + zstandard.compress(PLAIN),
    "a skippable frame behind": lambda: zstandard.compress(PLAIN) + SKIPPABLE,
    "half a frame": lambda: zstandard.compress(PLAIN)[:10],
    "no frame": lambda: b"",
    "noise": lambda: b"\xff" * 1000,
}


def block(*frames: Frame, **lies: Any) -> Callable[[Forge], str]:
    """A disk of one block that lies in a data pack like this."""

    def plant(forge: Forge) -> str:
        lies.setdefault("ids", bytes(16))
        data = forge.frames("data", frames, **lies)
        root = node(1, 1, {0: (1, 0)}, needs={data: 1})
        return forge.mapped([leaf([(0, 0, 0, 0)]), root], LEAF)

    return plant


def blob(*frames: Frame, **lies: Any) -> Callable[[Forge], str]:
    """An NVRAM that is blob 0 of a metadata pack like this."""

    def plant(forge: Forge) -> str:
        pack = forge.frames("meta", frames, **lies)
        return forge.point(nvram={"pack": pack.hex(), "number": 0})

    return plant


def packed(
    make: Callable[[], bytes], place: Callable[[Frame], Callable[[Forge], str]], plain: int = BLOCK
) -> Callable[[Forge], str]:
    """With a frame that is made when it is wanted."""
    return lambda forge: place((1, make(), plain))(forge)


def tabled(make: Callable[[], bytes]) -> Callable[[Forge], str]:
    return lambda forge: block((0, PLAIN, BLOCK), table=make())(forge)


def table(
    stored: Sequence[int], plain: Sequence[int], codec: Sequence[int]
) -> Callable[[Forge], str]:
    return block((0, PLAIN, BLOCK), table=zstandard.compress(frame_table(stored, plain, codec)))


def replaced(forge: Forge) -> str:
    """A pack whose content is that of another."""
    mine, other = forge.meta([BLOB]), forge.meta([b"other"])
    forge.put(f"packs/{mine.hex()}", forge.store.objects[f"packs/{other.hex()}"][0])
    return forge.point(nvram={"pack": mine.hex(), "number": 0})


def cut(keep: int) -> Callable[[Forge], str]:
    def plant(forge: Forge) -> str:
        mine = forge.meta([BLOB])
        name = f"packs/{mine.hex()}"
        forge.put(name, forge.store.objects[name][0][-keep:])
        return forge.point(nvram={"pack": mine.hex(), "number": 0})

    return plant


def many_frames(forge: Forge) -> str:
    """65536 blobs of no bytes, the last of which is wanted."""
    stored = [16] * 65536
    body = forge.frames(
        "meta",
        [(0, b"", 0)],
        table=zstandard.compress(frame_table(stored, [0] * 65536, [0] * 65536)),
        body=64 * MIB,
    )
    return forge.point(nvram={"pack": body.hex(), "number": 65535})


def stray(**lies: Any) -> Callable[[Forge], bytes]:
    """A data pack that no point needs: only deduplication looks at it."""
    return lambda forge: forge.frames("data", [(0, PLAIN, BLOCK)], **lies)


CASES: dict[str, Case] = {
    **{f"{name} of blocks": lost(packed(make, block)) for name, make in BOMBS.items()},
    **{f"{name} of a blob": lost(packed(make, blob)) for name, make in BOMBS.items()},
    **{f"{name} as a frame table": lost(tabled(make)) for name, make in BOMBS.items()},
    "a bomb of 32 MiB that is honest": harmless(packed(lambda: bomb(32 * MIB), blob, 32 * MIB)),
    "a blob of 33 MiB": lost(packed(lambda: bomb(33 * MIB), blob, 33 * MIB)),
    "a frame shorter than it says": lost(blob((0, b"x", 2))),
    "a frame longer than it says": lost(blob((0, b"xx", 1))),
    "a frame of the next codec": lost(blob((23, b"x", 1))),
    "a frame of all codecs": lost(blob((0xFFFFFFFF, b"x", 1))),
    "a table that is not sealed": lost(blob((0, BLOB, 9), sealed_table=bytes(100))),
    "a table of no bytes": lost(blob((0, BLOB, 9), sealed_table=b"")),
    "a table of no frames": lost(block((0, PLAIN, BLOCK), table=zstandard.compress(bytes(4)))),
    "a table of half a number": lost(block((0, PLAIN, BLOCK), table=zstandard.compress(b"xx"))),
    "a table that claims all frames": lost(
        block((0, PLAIN, BLOCK), table=zstandard.compress(b"\xff" * 16))
    ),
    "a table of 65537 frames": lost(table([0] * 65537, [0] * 65537, [0] * 65537)),
    "a frame behind the body": lost(table([BLOCK + 17], [BLOCK], [0])),
    "frames that overflow the body": lost(table([0xFFFFFFFF] * 4, [BLOCK] * 4, [0] * 4)),
    "a frame shorter than a tag": lost(table([3], [BLOCK], [0])),
    "a frame of no stored bytes": lost(table([0], [BLOCK], [0])),
    "a frame of half a block": lost(table([BLOCK + 16], [BLOCK // 2], [0])),
    "a frame of 33 blocks": lost(table([BLOCK + 16], [33 * BLOCK], [0])),
    "a frame of 4 GiB": lost(table([BLOCK + 16], [0xFFFFF000], [1])),
    "more blocks than a pack has": lost(table([0] * 2049, [131072] * 2049, [0] * 2049)),
    "a footer of no kind": lost(block((0, PLAIN, BLOCK), kind=0)),
    "a footer of another kind": lost(block((0, PLAIN, BLOCK), kind=2)),
    "a footer of a kind of the future": lost(block((0, PLAIN, BLOCK), kind=255)),
    "a footer of another version": lost(block((0, PLAIN, BLOCK), version=1)),
    "a footer with a body of 2^63 bytes": lost(block((0, PLAIN, BLOCK), body=1 << 63)),
    "a footer with a body of 64 MiB": lost(blob((0, BLOB, 9), body=64 * MIB)),
    "a footer with a table of 4 GiB": lost(blob((0, BLOB, 9), tables=0xFFFFFFFF)),
    "a footer with a table of 64 MiB": lost(blob((0, BLOB, 9), tables=64 * MIB)),
    "a footer with a table of no bytes": lost(blob((0, BLOB, 9), tables=0)),
    "a footer with ids of 4 GiB": lost(blob((0, BLOB, 9), ids_bytes=0xFFFFFFFF)),
    "sums of nothing": harmless(blob((0, BLOB, 9), sums=1)),
    "a pack of 143 bytes": lost(cut(143)),
    "a pack of its footer alone": lost(cut(144)),
    "a pack that is another": lost(replaced),
    "a pack of 65536 frames": lost(many_frames),
    "a stray pack with fewer ids": harmless(stray(ids=b"")),
    "a stray pack with half an id": harmless(stray(ids=bytes(24))),
    "a stray pack with more ids": harmless(stray(ids=bytes(16 * 70_000))),
    "a stray pack with ids of zeroes": harmless(stray(ids=bytes(16))),
    "a stray pack with a bomb": harmless(
        lambda forge: stray(ids=bytes(16), table=bomb(1024 * MIB))(forge)
    ),
}
