"""Frames come back as they went in; nothing a payload claims makes them larger."""

import contextlib
import os

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from drvm.chunker.frames import RAW, decode, encode


@given(st.binary(max_size=5000), st.sampled_from([1, 3, 9]))
def test_a_frame_comes_back_as_it_went_in(plain, level):
    codec, payload = encode(plain, level)
    assert decode(codec, payload, len(plain)) == plain


def test_what_does_not_compress_is_stored_raw():
    noise = os.urandom(8192)
    assert encode(noise, 1) == (RAW, noise)


def test_the_codec_is_the_level_that_was_used():
    assert encode(bytes(8192), 9)[0] == 9


def test_a_payload_that_grows_beyond_what_is_expected_is_refused():
    bomb = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(10_000_000))
    with pytest.raises(ValueError, match="frame"):
        decode(1, bomb, 4096)


@given(st.binary(max_size=200), st.integers(0, 22))
def test_arbitrary_payloads_are_refused_or_have_the_expected_length(payload, codec):
    with contextlib.suppress(ValueError):
        assert len(decode(codec, payload, 100)) == 100
