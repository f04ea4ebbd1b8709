"""What hosts tell each other of packs: hints that nobody has to believe, and that save reading."""

from __future__ import annotations

import random
import secrets

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drvm.chunker.blocks import BLOCK_BYTES
from drvm.core.errors import StoreUnreachable
from drvm.core.progress import NoProgress
from drvm.repository.crypto import Sealer
from drvm.repository.index import objects
from drvm.repository.index.hooks import PackHooks
from drvm.repository.layout import INDEX, PACKS, index_name, index_object, pack_name
from drvm.repository.repository import Repository
from tests.unit.repository.conftest import PASSPHRASE, Vault, new_vault
from tests.unit.repository.faults import FaultyStore
from tests.unit.repository.test_round_trip import SMALL, noise

names = st.binary(min_size=32, max_size=32)
hooks = st.lists(st.tuples(st.integers(0, (1 << 64) - 1), st.integers(0, 255)), max_size=20)


def told(name: bytes, content: list[tuple[int, int]]) -> PackHooks:
    keys = np.array([key for key, _ in content], dtype=np.uint64)
    return PackHooks(name, keys, np.array([segment for _, segment in content], dtype=np.int64))


@given(st.dictionaries(names, hooks, max_size=6))
def test_what_was_encoded_is_decoded(packs):
    decoded = objects.decode(objects.encode([told(*item) for item in packs.items()]))
    assert {
        pack.name: list(zip(pack.keys.tolist(), pack.segments.tolist(), strict=True))
        for pack in decoded
    } == packs


@given(st.dictionaries(names, hooks, min_size=1, max_size=3), st.data())
def test_what_no_writer_writes_is_refused_or_still_well_formed(packs, data):
    whole = bytearray(objects.encode([told(*item) for item in packs.items()]))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    for hostile in (bytes(whole), cut):
        try:
            decoded = objects.decode(hostile)
        except ValueError:
            continue
        assert all(len(p.name) == 32 and len(p.keys) == len(p.segments) for p in decoded)
        assert len({p.name for p in decoded}) == len(decoded)


@pytest.mark.parametrize(
    "hostile",
    [
        b"",
        b"\xff" * 8,
        (1 << 31).to_bytes(4, "little") + bytes(4),
        (2).to_bytes(4, "little") + bytes(4) + bytes(64) + bytes(8),  # one name twice
        (1).to_bytes(4, "little") + bytes(4) + bytes(32) + b"\xff" * 4,
        objects.encode([told(bytes(32), [(1, 1)])]) + b"x",
    ],
)
def test_hostile_objects_are_refused(hostile):
    with pytest.raises(ValueError):
        objects.decode(hostile)


def test_packs_are_divided_over_objects_that_a_reader_takes(monkeypatch):
    monkeypatch.setattr(objects, "MAX_HOOKS", 50)
    packs = [told(bytes([n]) * 32, [(n, 0)] * 20) for n in range(7)]
    batches = list(objects.batches(packs))
    assert [pack.name for batch in batches for pack in batch] == [pack.name for pack in packs]
    assert [len(objects.decode(objects.encode(batch))) for batch in batches] == [2, 2, 2, 1]


# -- in a repository --------------------------------------------------------------------------
@pytest.fixture
def vault() -> Vault:
    return new_vault(FaultyStore())


def asked_for(vault: Vault, verb: str, prefix: str) -> list[str]:
    return [call for call in vault.store.calls if call.startswith(f"{verb} {prefix}")]


def index_objects(vault: Vault) -> list[str]:
    return [name for name in vault.store.objects if name.startswith(INDEX)]


def test_another_host_learns_of_packs_without_reading_them(vault):
    content = noise(300 * BLOCK_BYTES)
    vault.save([content])
    other = vault.reopen()
    other.store.calls.clear()
    other.repository.refresh()
    assert asked_for(other, "tail", PACKS) == []
    assert asked_for(other, "get", INDEX)
    point = other.save([content])
    assert point.manifest.disks[0].new_bytes == 0
    assert other.load(point) == [content]


def test_objects_are_read_once_and_not_where_nothing_is_unknown(vault, tmp_path):
    vault.save([noise(SMALL)])
    cached = Vault(vault.store, Repository.open(vault.store, PASSPHRASE, tmp_path))
    cached.repository.refresh()
    vault.store.calls.clear()
    cached.repository.refresh()
    again = Vault(vault.store, Repository.open(vault.store, PASSPHRASE, tmp_path))
    again.save([noise(SMALL, 1)])
    vault.store.calls.clear()
    again.repository.refresh()
    assert asked_for(vault, "get", INDEX) == []
    assert asked_for(vault, "tail", PACKS) == []
    vault.save([noise(SMALL, 2)])
    vault.store.calls.clear()
    again.repository.refresh()
    assert len(asked_for(vault, "get", INDEX)) == 1


def test_the_objects_come_after_all_packs_and_before_the_point(vault):
    vault.save([noise(SMALL)])
    writes = [c.split()[1].split("/")[0] for c in vault.store.calls if c[:3] in ("put", "cre")]
    order = [name for at, name in enumerate(writes) if writes[at - 1 : at] != [name]]
    assert order[-4:] == ["packs", "index", "points", "final"]


def test_a_session_without_new_packs_tells_nothing(vault):
    point = vault.save([noise(SMALL)])
    before = index_objects(vault)
    vault.repository.commit(point.manifest)
    assert index_objects(vault) == before


@pytest.mark.parametrize("content", [b"", b"noise" * 20, None])
def test_objects_that_cannot_be_read_are_as_good_as_absent(vault, content):
    disk = noise(SMALL)
    vault.save([disk])
    for name in index_objects(vault):
        if content is None:  # another's, under this name
            vault.store.put(name, vault.store.get(next(iter(vault.store.objects))))
        else:
            vault.store.put(name, content)
    again = vault.reopen().save([disk])
    assert again.manifest.disks[0].new_bytes == 0
    assert vault.load(again) == [disk]


def test_a_store_that_fails_while_objects_are_read_fails_the_refresh(vault):
    vault.save([noise(SMALL)])
    other = vault.reopen()

    def fails(verb: str, name: str) -> None:
        if verb == "get" and name.startswith(INDEX):
            raise StoreUnreachable("no answer")

    vault.store.before = fails
    with pytest.raises(StoreUnreachable):
        other.repository.refresh()


def put_object(vault: Vault, packs: list[PackHooks]) -> None:
    sealer: Sealer = vault.repository._sealer
    name = index_object(secrets.token_bytes(32))
    vault.store.put(name, sealer.seal_object(b"index", name, objects.encode(packs)))


@settings(deadline=None, max_examples=5)
@given(st.integers(0, 1 << 30), st.booleans())
def test_lies_of_a_key_holder_cost_space_and_never_a_wrong_block(seed, only_lies):
    """Hooks of real blocks that lead to other segments and packs, and packs that are not there."""
    luck = random.Random(seed)
    vault = new_vault()
    disks = [noise(600 * BLOCK_BYTES, n) for n in range(2)]
    for disk in disks:
        vault.save([disk])
    packs = [name for name in map(pack_name, vault.store.objects) if name is not None]
    truth = vault.repository._sealer, vault.repository.hasher.ids(disks[0])[:, 0]
    if only_lies:
        for name in index_objects(vault):
            vault.store.delete(name)
    lies = [
        told(name, [(int(key), luck.randrange(256)) for key in luck.sample(truth[1].tolist(), 90)])
        for name in [*packs, luck.randbytes(32)]
    ]
    put_object(vault, lies)
    other = vault.reopen()
    point = other.save([disks[0], disks[1][::-1] + disks[1]])
    assert other.reopen().load(point) == [disks[0], disks[1][::-1] + disks[1]]


def test_a_rebuild_reads_the_packs_and_believes_no_object(vault, tmp_path):
    disk = noise(SMALL)
    vault.save([disk])
    packs = [name for name in map(pack_name, vault.store.objects) if name is not None]
    for name in index_objects(vault):
        vault.store.delete(name)
    put_object(vault, [told(name, []) for name in packs])  # which hides all their blocks
    fooled = Vault(vault.store, Repository.open(vault.store, PASSPHRASE, tmp_path))
    assert fooled.save([disk]).manifest.disks[0].new_bytes == SMALL
    plan = fooled.repository.catalog.plan_rebuild()
    assert plan.packs == len(packs) + 2
    rebuilt = fooled.repository.catalog.rebuild(NoProgress())
    assert rebuilt.damaged == frozenset()
    assert rebuilt.size.packs >= plan.packs
    assert fooled.repository.catalog.plan_rebuild().cached >= 2
    point = fooled.save([noise(SMALL, 1), disk])
    assert point.manifest.disks[1].new_bytes == 0
    again = Vault(vault.store, Repository.open(vault.store, PASSPHRASE, tmp_path))
    assert again.repository.catalog.size().index_bytes > 0
    assert again.save([disk]).manifest.disks[0].new_bytes == 0


def test_a_lost_or_foreign_cache_is_made_anew(vault, tmp_path):
    disk = noise(SMALL)
    cached = Vault(vault.store, Repository.open(vault.store, PASSPHRASE, tmp_path))
    cached.save([disk])
    for path in (tmp_path / cached.repository.id / "index").iterdir():
        path.write_bytes(b"not mine")
    again = Vault(vault.store, Repository.open(vault.store, PASSPHRASE, tmp_path))
    assert again.save([disk]).manifest.disks[0].new_bytes == 0


def test_a_collected_pack_is_not_found_by_what_other_hosts_told_of_it(vault):
    disk = noise(SMALL)
    vault.save([disk])
    for name in list(vault.store.objects):
        if name.startswith((PACKS, "points/", "final/")):
            vault.store.delete(name)
    other = vault.reopen()
    point = other.save([disk])
    assert point.manifest.disks[0].new_bytes == SMALL
    assert other.load(point) == [disk]
    assert all(index_name(name) for name in index_objects(vault))
