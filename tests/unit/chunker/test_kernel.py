"""The kernels: the same ids and states from all of them, and no harm from wrong buffers."""

from __future__ import annotations

import sys
import threading

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from drvm.chunker import kernel as kernels
from drvm.chunker.kernel import (
    BLOCK_BYTES,
    NEW,
    SAME,
    ZERO,
    Kernel,
    reference_probe,
    reference_scan,
)

KEY = bytes(range(32))
REFERENCE = Kernel("python (no compiler at install)", reference_scan, reference_probe)
ZEROES = bytes(BLOCK_BYTES)


def one_byte(at: int, value: int) -> bytes:
    return bytes(at) + bytes([value]) + bytes(BLOCK_BYTES - 1 - at)


def noise(seed: int) -> bytes:
    return np.random.default_rng(seed).bytes(BLOCK_BYTES)


blocks = st.one_of(
    st.just(ZEROES),
    st.builds(one_byte, st.integers(0, BLOCK_BYTES - 1), st.integers(1, 255)),
    st.builds(noise, st.integers(0, 1 << 32)),
)


def scanned(kernel: Kernel, data, known=None, key: bytes = KEY) -> tuple[bytes, list[int], int]:
    count = memoryview(data).nbytes // BLOCK_BYTES
    ids, state = bytearray(b"\xaa" * 16 * count), bytearray(b"\xaa" * count)
    new = kernel.scan(data, key, known, ids, state)
    return bytes(ids), list(state), new


@given(st.lists(blocks, max_size=70), st.binary(min_size=32, max_size=32), st.data())
def test_every_kernel_finds_what_the_definition_says(kernel, contents, key, draw):
    expected = [blake3(b, key=key).digest(16) if any(b) else bytes(16) for b in contents]
    known = [draw.draw(st.sampled_from([i, bytes(16), i[::-1]])) for i in expected]
    states = [
        ZERO if not any(block) else SAME if there == right else NEW
        for block, right, there in zip(contents, expected, known, strict=True)
    ]
    found = scanned(kernel, b"".join(contents), b"".join(known), key)
    assert found == (b"".join(expected), states, states.count(NEW))


@pytest.mark.parametrize("count", [*range(36), 1024])
def test_any_number_of_blocks_is_named(kernel, count):
    data = np.random.default_rng(count).bytes(count * BLOCK_BYTES)
    assert scanned(kernel, data) == scanned(REFERENCE, data)


@pytest.mark.parametrize("shift", [0, 1, 3, 8, 63])
def test_no_buffer_needs_an_alignment(kernel, shift):
    data = noise(1) + ZEROES + noise(2)
    expected, state, _ = scanned(kernel, data)
    room = {n: memoryview(bytearray(shift + n))[shift:] for n in (len(data), 32, 48, 3)}
    room[len(data)][:], room[32][:] = data, KEY
    known = memoryview(bytearray(shift) + expected)[shift:]
    assert kernel.scan(room[len(data)].toreadonly(), room[32], known, room[48], room[3]) == 0
    assert room[48] == expected
    assert list(room[3]) == [SAME, ZERO, SAME] != state


def test_without_known_ids_no_block_is_the_same(kernel):
    assert scanned(kernel, noise(1) + ZEROES)[1:] == ([NEW, ZERO], 1)


def test_a_block_that_was_zero_is_new(kernel):
    assert scanned(kernel, noise(1), bytes(16))[1:] == ([NEW], 1)


def test_a_block_that_became_zero_is_zero(kernel):
    assert scanned(kernel, ZEROES, b"x" * 16)[1:] == ([ZERO], 0)


def test_nothing_is_written_beside_the_outputs(kernel):
    ids, state = bytearray(b"\x55" * (16 * 17 + 32)), bytearray(b"\x55" * (17 + 2))
    data = np.random.default_rng(5).bytes(17 * BLOCK_BYTES)
    kernel.scan(data, KEY, None, memoryview(ids)[16:-16], memoryview(state)[1:-1])
    assert ids[:16] == ids[-16:] == b"\x55" * 16
    assert state[0] == state[-1] == 0x55


WRONG = {
    "half a block": {"data": bytes(BLOCK_BYTES + 1)},
    "less than a block": {"data": bytes(1)},
    "short key": {"key": bytes(31)},
    "long key": {"key": bytes(33)},
    "too few ids": {"ids": bytearray(16)},
    "too many ids": {"ids": bytearray(48)},
    "too few states": {"state": bytearray(1)},
    "too many states": {"state": bytearray(3)},
    "too few known": {"known": bytes(16)},
    "known without any": {"known": b""},
    "ids read-only": {"ids": bytes(32)},
    "state read-only": {"state": bytes(2)},
    "data is text": {"data": "x" * 2 * BLOCK_BYTES},
    "data is nothing": {"data": None},
    "ids are nothing": {"ids": None},
    "with gaps": {"data": memoryview(bytes(4 * BLOCK_BYTES))[::2]},
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_wrong_buffers_are_refused_and_nothing_is_written(kernel, wrong):
    ids, state = bytearray(b"\xaa" * 32), bytearray(b"\xaa" * 2)
    right = {"data": bytes(2 * BLOCK_BYTES), "key": KEY, "known": None, "ids": ids, "state": state}
    with pytest.raises((ValueError, TypeError, BufferError)):
        kernel.scan(*(right | wrong).values())
    assert set(ids) | set(state) == {0xAA}


def test_threads_may_scan_at_once(kernel):
    data = np.random.default_rng(7).bytes(64 * BLOCK_BYTES)
    expected, found = scanned(kernel, data), []
    threads = [
        threading.Thread(target=lambda: found.append(scanned(kernel, data))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4


def test_a_width_that_there_is_not_is_refused():
    native = pytest.importorskip("drvm.chunker._kernel", reason="the kernel is not compiled")
    for lanes in (-4, 0, 1, 5, 12, 32, 1 << 30):
        with pytest.raises(ValueError, match="lanes"):
            native.scan(b"", KEY, None, bytearray(), bytearray(), lanes)


def test_the_reference_can_be_asked_for():
    assert kernels.choose({"DRVM_KERNEL": "python"}).scan is reference_scan


def test_without_a_compiled_kernel_the_reference_runs(monkeypatch):
    monkeypatch.setitem(sys.modules, "drvm.chunker._kernel", None)
    monkeypatch.delattr("drvm.chunker._kernel", raising=False)
    assert kernels.choose({}) == REFERENCE


def test_the_native_kernel_is_the_first_choice():
    native = pytest.importorskip("drvm.chunker._kernel", reason="the kernel is not compiled")
    assert kernels.choose({}) == Kernel(f"native, {native.LANES} lanes", native.scan, native.probe)
