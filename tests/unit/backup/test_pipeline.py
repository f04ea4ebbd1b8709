"""However a disk's bytes are cut into loads, batches and packs, the point is the disk; and
whatever fails on the way, the backup ends with that error, without a thread or a point left."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drvm.backup import transfer as transfer_module
from drvm.backup.transfer import transfer
from drvm.chunker import frames
from drvm.chunker.blocks import BlockHasher
from drvm.core.errors import DamageFound, HostError, StoreRefused
from drvm.core.extents import Extent, ExtentKind
from drvm.core.progress import NoProgress
from drvm.repository import pack
from drvm.repository.crypto import ObjectCipher
from drvm.repository.diskmap import DiskMap
from drvm.repository.layout import PACKS
from drvm.repository.reader import read_disk
from tests.unit.backup.test_transfer import Reader, Source
from tests.unit.repository.conftest import VM, Vault, cheap_key_derivation, new_vault
from tests.unit.repository.faults import FaultyStore, within

__all__ = ["cheap_key_derivation"]

ONE = 4096
SIZE = 600 * ONE


def small(patch: pytest.MonkeyPatch, load: int, workers: int, room: int) -> None:
    """A disk of some blocks then takes many loads and packs."""
    patch.setattr(transfer_module, "LOAD_BYTES", load * ONE)
    patch.setattr(transfer_module, "_WORKERS", workers)
    patch.setattr(pack, "PACK_MAX_BYTES", pack._TABLES_RESERVE_BYTES + room)


def back_up(vault: Vault, source: Source, parent: DiskMap | None = None) -> DiskMap:
    vault.repository.refresh()
    with (
        vault.repository.session(level=1) as session,
        vault.repository.fingerprints(VM, "vda") as fingerprints,
    ):
        disk = session.disk(source.size_bytes, parent, fingerprints)
        transfer(source, disk, NoProgress())
        (root,) = session.finish().roots
    return DiskMap(vault.repository.packs.blob, root, source.size_bytes)


def content_of(vault: Vault, disk_map: DiskMap) -> bytes:
    content = bytearray(disk_map.size_bytes)
    for offset, data in read_disk(disk_map, vault.repository.packs, vault.repository.hasher):
        content[offset : offset + len(data)] = data
    return bytes(content)


def block(kind: int) -> bytes:
    """0 is zeroes; half of the others are noise, half compress well."""
    if kind == 0:
        return bytes(ONE)
    if kind % 2:
        return random.Random(kind).randbytes(ONE)
    return (b"%06d" % kind) * 682 + bytes(4)


@st.composite
def versions(draw: st.DrawFn) -> list[tuple[bytes, list[Extent]]]:
    """Contents of one disk, each with an honest description against the one before."""
    made: list[tuple[bytes, list[Extent]]] = []
    old = b""
    for _ in range(draw(st.integers(1, 3))):
        new, extents = bytearray(), []
        runs = st.tuples(st.sampled_from(ExtentKind), st.integers(1, 60), st.integers(0, 5))
        for kind, count, seed in draw(st.lists(runs, max_size=6)):
            chosen = random.Random(seed)
            data = b"".join(block(chosen.randrange(12)) for _ in range(count))
            if kind is ExtentKind.ZERO:
                data = bytes(len(data))
            if kind is ExtentKind.UNCHANGED:
                data = old[len(new) : len(new) + len(data)]
            if data:
                extents.append(Extent(len(new), len(data), kind))
                new += data
        if draw(st.booleans()) and new:
            cut = draw(st.integers(1, min(ONE, extents[-1].length)))
            last = extents.pop()
            if last.length > cut:
                extents.append(Extent(last.offset, last.length - cut, last.kind))
            del new[len(new) - cut :]
        old = bytes(new)
        made.append((old, extents))
    return made


@settings(deadline=None, max_examples=40)
@given(
    versions(),
    st.integers(1, 70),
    st.integers(1, 5),
    st.integers(5_000, 400_000),
)
def test_however_it_is_cut_the_point_is_the_disk(history, load, workers, room):
    with pytest.MonkeyPatch.context() as patch:
        small(patch, load, workers, room)
        vault, parent = new_vault(), None
        for content, extents in history:
            parent = back_up(vault, Source(content, extents), parent)
            assert content_of(vault, parent) == content


def test_a_block_is_stored_once_however_often_and_wherever_it_comes(monkeypatch):
    small(monkeypatch, 16, 4, 200_000)
    kinds = [1, 3, 1, 5] * 20 + list(range(1, 200, 2)) * 2 + [3] * 50
    content = b"".join(block(kind) for kind in kinds)
    vault = new_vault()
    vault.repository.refresh()
    with vault.repository.session(level=1) as session:
        disk = session.disk(len(content), None)
        transfer(Source(content, [Extent(0, len(content), ExtentKind.DATA)]), disk, NoProgress())
        session.finish()
    assert disk.tally.new_bytes == len(set(kinds)) * ONE


# -- faults -----------------------------------------------------------------------------------
def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def whole(content: bytes) -> Source:
    return Source(content, [Extent(0, len(content), ExtentKind.DATA)])


def nth_call(number: int, error: BaseException, real: Callable) -> Callable:
    """``real`` that fails from the given call on."""
    calls = [0]
    lock = threading.Lock()

    def called(*arguments, **named):
        with lock:
            calls[0] += 1
            failing = calls[0] >= number
        if failing:
            raise error
        return real(*arguments, **named)

    return called


def threads() -> list[str]:
    names = ("upload", "store")
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(names)]


@pytest.fixture
def vault(monkeypatch) -> Iterator[Vault]:
    small(monkeypatch, 16, 4, 400_000)
    vault = new_vault(FaultyStore())
    yield vault
    assert threads() == []
    assert vault.repository.points().points == ()


@pytest.mark.parametrize("number", [1, 2, 7, 15])
@pytest.mark.parametrize(
    ("place", "name", "error"),
    [
        (Reader, "read_into", HostError("the disk can't be read")),
        (BlockHasher, "scan", MemoryError()),
        (frames, "encode", MemoryError()),
        (frames, "decode", ValueError("frame does not decompress")),
        (ObjectCipher, "seal_into", MemoryError()),
        (ObjectCipher, "open", DamageFound("an object is damaged")),
    ],
)
def test_what_fails_on_the_way_ends_the_backup(vault, monkeypatch, place, name, error, number):
    def run() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(place, name, nth_call(number, error, getattr(place, name)))
            with pytest.raises(type(error)):
                back_up(vault, whole(noise(SIZE)))

    within(30, run)


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 6, 7])
def test_a_store_that_refuses_any_of_the_packs_ends_the_backup(vault, number):
    puts: list[str] = []

    def refuse(verb: str, name: str) -> None:
        if verb == "put":
            puts.append(name)
            if len(puts) == number:
                raise StoreRefused("the bucket is full")

    vault.store.before = refuse

    def run() -> None:
        with pytest.raises(StoreRefused, match="the bucket is full"):
            back_up(vault, whole(noise(SIZE)))

    within(30, run)
    assert len(puts) >= number


def test_what_was_uploaded_before_an_interrupt_is_not_stored_again(vault):
    content, seen = noise(SIZE), [0]

    class Interrupting(NoProgress):
        def advance(self, done_bytes: int) -> None:
            seen[0] += done_bytes
            if seen[0] > SIZE // 2:
                raise KeyboardInterrupt

    vault.repository.refresh()
    with pytest.raises(KeyboardInterrupt), vault.repository.session(level=1) as session:
        transfer(whole(content), session.disk(SIZE, None), Interrupting())
    assert threads() == []
    uploaded = {name for name in vault.store.objects if name.startswith(PACKS)}
    assert uploaded

    again = vault.reopen()
    again.repository.refresh()
    stored = sum(len(again.repository.packs.ids(bytes.fromhex(n[6:]))[0]) for n in uploaded)
    with again.repository.session(level=1) as session:
        disk = session.disk(SIZE, None)
        transfer(whole(content), disk, NoProgress())
        session.finish()
    assert 0 < disk.tally.new_bytes == SIZE - stored * ONE
