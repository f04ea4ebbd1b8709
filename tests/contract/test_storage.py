"""What restores rely on of any storage pool: of libvirt's own, and of the tests' double."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from drvm.core.errors import HostError
from drvm.core.process import Processes
from drvm.core.units import MIB
from drvm.host.libvirt_host import LibvirtHost
from drvm.host.storage import Hole, Piece, Storage
from drvm.lab import guest as lab
from tests.fakes.memory_storage import MemoryStorage
from tests.guests import unique_name

DATA = random.Random(1).randbytes(3 * MIB + 17)


@pytest.fixture(params=["memory", pytest.param("libvirt", marks=pytest.mark.guest)])
def place(request: pytest.FixtureRequest, processes: Processes) -> Iterator[tuple[Storage, str]]:
    if request.param == "memory":
        yield MemoryStorage(), "default"
        return
    uri = request.getfixturevalue("libvirt_uri")
    name = unique_name("storage")
    with lab.workspace(name) as directory:
        virsh = ["virsh", "-q", "-c", uri]
        argv = [*virsh, "pool-create-as", name, "dir", "--target", str(directory)]
        processes.run(argv, timeout_s=60)
        host = LibvirtHost(uri)
        try:
            yield host.storage, name
        finally:
            host.close()
            processes.run([*virsh, "pool-destroy", name], timeout_s=60)


def content(storage: Storage, pool: str, name: str, length: int) -> bytes:
    pieces = storage.download(pool, name, length)
    return b"".join(bytes(p.length) if isinstance(p, Hole) else bytes(p) for p in pieces)


def test_a_volume_reads_back_as_it_was_written(place: tuple[Storage, str]) -> None:
    storage, pool = place
    pieces: list[Piece] = [Hole(MIB), DATA, Hole(5 * MIB + 1), memoryview(DATA)[:4097], Hole(3)]
    whole = b"".join(bytes(p.length) if isinstance(p, Hole) else bytes(p) for p in pieces)
    made = storage.create(pool, "one.raw", len(whole))
    assert (made.name, made.is_file, made.size_bytes) == ("one.raw", True, len(whole))
    storage.upload(pool, "one.raw", len(whole), pieces)
    equal = content(storage, pool, "one.raw", len(whole)) == whole
    assert equal  # pytest would compare megabytes byte by byte to show where not
    equal = content(storage, pool, "one.raw", 2 * MIB) == whole[: 2 * MIB]
    assert equal
    found = storage.volume(pool, "one.raw")
    assert found is not None and found.path == made.path and found.size_bytes == len(whole)


def test_a_part_is_written_over_and_the_rest_stays(place: tuple[Storage, str]) -> None:
    storage, pool = place
    storage.create(pool, "part", 4096)
    storage.upload(pool, "part", 4096, [b"a" * 4096])
    storage.upload(pool, "part", 512, [b"b" * 512])
    assert content(storage, pool, "part", 4096) == b"b" * 512 + b"a" * 3584


def test_a_volume_is_gone_on_with_from_the_middle(place: tuple[Storage, str]) -> None:
    """As an upload that was broken off leaves it: perhaps shorter than it was made, and of what
    was sent last some is not there. So whoever goes on reads back first."""
    storage, pool = place
    storage.create(pool, "half", 6 * MIB)
    begun: list[Piece] = [DATA[:MIB], Hole(MIB), DATA[:MIB]]

    def broken() -> Iterator[Piece]:
        yield from begun
        raise KeyError("the source")

    with pytest.raises(KeyError):
        storage.upload(pool, "half", 6 * MIB, broken())
    storage.upload(pool, "half", 3 * MIB, begun)
    rest: list[Piece] = [DATA[MIB : 2 * MIB], Hole(MIB), DATA[: MIB + 5], Hole(MIB - 5)]
    storage.upload(pool, "half", 4 * MIB, rest, offset=2 * MIB)
    whole = DATA[:MIB] + bytes(MIB) + DATA[MIB : 2 * MIB] + bytes(MIB) + DATA[: MIB + 5]
    equal = content(storage, pool, "half", 6 * MIB) == whole + bytes(MIB - 5)
    assert equal  # pytest would compare megabytes byte by byte to show where not
    pieces = storage.download(pool, "half", 2 * MIB, offset=MIB + 7)
    read = b"".join(bytes(p.length) if isinstance(p, Hole) else bytes(p) for p in pieces)
    equal = read == whole[MIB + 7 : 3 * MIB + 7]
    assert equal


def test_a_name_that_is_taken_is_refused(place: tuple[Storage, str]) -> None:
    storage, pool = place
    storage.create(pool, "taken", 512)
    storage.upload(pool, "taken", 512, [b"x" * 512])
    with pytest.raises(HostError, match="exists already"):
        storage.create(pool, "taken", 512)
    assert content(storage, pool, "taken", 512) == b"x" * 512


def test_volumes_are_listed_and_removed_once_or_twice(place: tuple[Storage, str]) -> None:
    storage, pool = place
    for name in ("a", "b"):
        storage.create(pool, name, 512)
    assert storage.names(pool) == {"a", "b"}
    storage.remove(pool, "a")
    storage.remove(pool, "a")
    assert storage.names(pool) == {"b"}
    assert storage.volume(pool, "a") is None


def test_what_the_pieces_raise_comes_through_and_the_host_goes_on(
    place: tuple[Storage, str],
) -> None:
    storage, pool = place

    def pieces() -> Iterator[Piece]:
        yield DATA[:MIB]
        raise KeyError("the source")

    storage.create(pool, "torn", 2 * MIB)
    with pytest.raises(KeyError, match="the source"):
        storage.upload(pool, "torn", 2 * MIB, pieces())
    storage.remove(pool, "torn")
    assert storage.names(pool) == frozenset()


def test_a_download_may_be_left_early(place: tuple[Storage, str]) -> None:
    storage, pool = place
    storage.create(pool, "long", 4 * MIB)
    storage.upload(pool, "long", len(DATA), [DATA])
    pieces = storage.download(pool, "long", 4 * MIB)
    next(pieces)
    pieces.close()
    assert storage.names(pool) == {"long"}


def test_what_is_not_there_is_an_error(place: tuple[Storage, str]) -> None:
    storage, pool = place
    with pytest.raises(HostError):
        storage.upload(pool, "none", 1, [b"x"])
    with pytest.raises(HostError):
        list(storage.download(pool, "none", 1))
