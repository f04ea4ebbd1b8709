"""Frames come back as they went in; nothing a payload claims makes them larger."""

import contextlib
import itertools
import os
import random
import tracemalloc

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from drvm.chunker.frames import LEVELS, RAW, decode, decode_into, encode, encode_columns


@given(st.binary(max_size=5000), st.sampled_from([1, 3, 9]))
def test_a_frame_comes_back_as_it_went_in(plain, level):
    codec, payload = encode(plain, level)
    assert decode(codec, payload, len(plain)) == plain


@given(st.binary(max_size=5000), st.lists(st.integers(0, 5000)), st.sampled_from([1, 9]))
def test_a_frame_of_columns_comes_back_wherever_they_are_cut(plain, cuts, level):
    edges = [0, *sorted(min(cut, len(plain)) for cut in cuts), len(plain)]
    columns = [plain[start:end] for start, end in itertools.pairwise(edges)]
    codec, payload = encode_columns(columns, level)
    assert decode(codec, payload, len(plain)) == plain


def test_columns_of_different_nature_take_less_apart():
    low = bytes(random.Random(1).choices(range(4), k=20_000))
    high = bytes(random.Random(2).choices(range(100, 200), k=20_000))
    apart = encode_columns([low, high], 9)[1]
    assert len(apart) < len(encode(low + high, 9)[1])


def test_what_does_not_compress_is_stored_raw():
    noise = os.urandom(8192)
    assert encode(noise, 1) == (RAW, noise)


def test_the_codec_is_the_level_that_was_used():
    assert encode(bytes(8192), 9)[0] == 9


def test_each_word_of_the_config_compresses_harder_and_says_so_in_the_codec():
    words = random.Random(1).choices([b"block", b"frame", b"pack", b"point", b"leaf"], k=20_000)
    encoded = [encode(b" ".join(words), LEVELS[word]) for word in ("fast", "default", "high")]
    assert [codec for codec, _ in encoded] == [1, 1, 9]
    assert len(encoded[0][1]) > len(encoded[1][1]) > len(encoded[2][1])


def test_a_payload_that_grows_beyond_what_is_expected_is_refused():
    bomb = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(10_000_000))
    with pytest.raises(ValueError, match="frame"):
        decode(1, bomb, 4096)


@pytest.mark.parametrize("claimed", [4097, 1 << 20, 200_000_000])
def test_a_payload_that_claims_more_than_is_expected_is_refused_before_it_is_unpacked(claimed):
    bomb = zstandard.ZstdCompressor(write_content_size=True).compress(bytes(claimed))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="claims more"):
            decode(1, bomb, 4096)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_payload_that_wants_a_huge_window_is_refused():
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=27)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    payload = compressor.compress(bytes(4096)) + compressor.flush()
    with pytest.raises(ValueError, match="frame"):
        decode(1, payload, 4096)


def test_bytes_after_the_frame_are_refused():
    codec, payload = encode(bytes(8192), 1)
    with pytest.raises(ValueError, match="frame"):
        decode(codec, payload + b"x", 8192)


@given(st.binary(max_size=200), st.integers(0, 22))
def test_arbitrary_payloads_are_refused_or_have_the_expected_length(payload, codec):
    with contextlib.suppress(ValueError):
        assert len(decode(codec, payload, 100)) == 100


def either(codec: int, payload: bytes, plain_bytes: int) -> tuple[bytes | None, bytes | None]:
    """What comes out of ``decode``, and out of ``decode_into``; ``None`` where it is refused."""
    whole, room = None, bytearray(b"?" * plain_bytes)
    with contextlib.suppress(ValueError):
        whole = decode(codec, payload, plain_bytes)
    try:
        decode_into(codec, payload, memoryview(room))
    except ValueError:
        return whole, None
    return whole, bytes(room)


@given(
    st.binary(max_size=300),
    st.integers(1, 400),
    st.booleans(),
    st.booleans(),
    st.sampled_from([b"", b"x", encode(bytes(5000), 1)[1], b"\x50\x2a\x4d\x18" + bytes(4)]),
    st.none() | st.tuples(st.integers(0, 30), st.integers(1, 255)),
    st.sampled_from([-1, 0, 0, 0, 1]),
)
def test_memory_that_is_there_gets_what_comes_out_or_it_is_refused_alike(
    seed, times, size, checksum, behind, change, more
):
    plain = seed * times
    compressor = zstandard.ZstdCompressor(write_content_size=size, write_checksum=checksum)
    payload = bytearray(compressor.compress(plain) + behind)
    if change is not None:
        payload[change[0] % len(payload)] ^= change[1]
    for codec, bytes_ in ((1, bytes(payload)), (RAW, plain)):
        whole, in_place = either(codec, bytes_, max(0, len(plain) + more))
        assert whole == in_place


@pytest.mark.parametrize("level", [1, 9, 19])
def test_frames_of_every_nature_come_back_into_memory_that_is_there(level):
    source = random.Random(3)
    words = b" ".join(source.choices([b"block", b"frame", b"pack", b"point"], k=30_000))
    for plain in (words[:131072], bytes(131072), source.randbytes(131072), words[:4096] * 32):
        codec, payload = encode(plain, level)
        assert either(codec, payload, len(plain)) == (plain, plain)
