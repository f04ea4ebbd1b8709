from __future__ import annotations

import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drvm.core.errors import HostError
from drvm.host.screenshot import as_png


def test_a_ppm_becomes_a_png_with_the_same_pixels() -> None:
    pixels = bytes(range(2 * 3 * 3))
    png = as_png("image/x-portable-pixmap", b"P6\n2 3\n255\n" + pixels)
    assert struct.unpack(">II", png[16:24]) == (2, 3)
    body = png[png.index(b"IDAT") + 4 : png.index(b"IEND") - 8]
    rows = zlib.decompress(body)
    assert b"".join(rows[at + 1 : at + 7] for at in range(0, len(rows), 7)) == pixels


def png_of(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", width, height) + b"rest"


def test_a_png_is_passed_on_as_it_is() -> None:
    assert as_png("image/png", png_of(1280, 800)) == png_of(1280, 800)


@pytest.mark.parametrize("png", [png_of(50_000, 50_000), png_of(1, 1)[:20], png_of(1, 1)[:8]])
def test_a_png_that_unpacks_to_gigabytes_or_is_none_is_refused(png: bytes) -> None:
    with pytest.raises(HostError):
        as_png("image/png", png)


@given(st.binary(max_size=40), st.sampled_from([b"", b"P6 2 2 255\n", b"P6 0 0 255\n"]))
def test_anything_else_is_refused_or_a_whole_picture(data: bytes, head: bytes) -> None:
    try:
        assert as_png("x", head + data).startswith(b"\x89PNG")
    except HostError:
        assert len(data) != 12 or head != b"P6 2 2 255\n"
