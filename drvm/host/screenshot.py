"""A picture of a guest's screen as PNG, whatever form the hypervisor gives it in."""

from __future__ import annotations

import re
import struct
import zlib

from drvm.core.errors import HostError

_PNG = b"\x89PNG\r\n\x1a\n"
_HEADER_BYTES = 24
_MAX_PIXELS = 8192 * 8192
_PPM = re.compile(rb"P6\s+(\d{1,5})\s+(\d{1,5})\s+255\s")


def as_png(mime: str, data: bytes) -> bytes:
    """PNG is passed on, PPM (QEMU before 7.1) is converted. Raises ``HostError`` for else."""
    if data.startswith(_PNG):
        return _bounded(data)
    header = _PPM.match(data)
    if header is None:
        raise HostError(f"the guest's screen came as {mime[:40]}, which is not understood")
    width, height = int(header[1]), int(header[2])
    pixels = memoryview(data)[header.end() :]
    if width == 0 or height == 0 or len(pixels) != width * height * 3:
        raise HostError("the picture of the guest's screen is cut off")
    # each row begins with its filter: 0, none
    rows = b"".join(
        b"\0" + pixels[start : start + width * 3] for start in range(0, len(pixels), width * 3)
    )
    shape = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        _PNG + _chunk(b"IHDR", shape) + _chunk(b"IDAT", zlib.compress(rows)) + _chunk(b"IEND", b"")
    )


def _bounded(png: bytes) -> bytes:
    """Whoever looks at it unpacks it: a guest may make of a screen of one colour a small picture
    that takes gigabytes. W3C "PNG", 11.2.2: IHDR comes first."""
    if len(png) < _HEADER_BYTES or png[12:16] != b"IHDR":
        raise HostError("the picture of the guest's screen is cut off")
    width, height = struct.unpack(">II", png[16:_HEADER_BYTES])
    if width * height > _MAX_PIXELS:
        raise HostError(f"the guest's screen has {width} x {height} pixels, which is not kept")
    return png


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
