"""Some blocks of a leaf are read, and proven as if all were."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drvm.chunker.blocks import BLOCK_BYTES, LEAF_BYTES
from drvm.core.errors import DamageFound
from drvm.repository import pack
from drvm.repository.layout import pack_object
from drvm.repository.leaf_reader import LeafReader
from drvm.repository.points import Point
from tests.unit.repository.conftest import Vault, new_vault
from tests.unit.repository.test_round_trip import noise

COUNT = 200


@pytest.fixture(autouse=True)
def small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a frame or two, so that a leaf needs many."""
    monkeypatch.setattr(pack, "PACK_MAX_BYTES", pack._TABLES_RESERVE_BYTES + 150_000)


CONTENT = (noise(100 * BLOCK_BYTES) + bytes(20 * BLOCK_BYTES) + noise(80 * BLOCK_BYTES, 1))[:-9]


@pytest.fixture
def vault() -> Vault:
    vault = new_vault()
    vault.save([CONTENT, bytes(LEAF_BYTES) + CONTENT])
    return vault


def only(vault: Vault) -> Point:
    (point,) = vault.repository.points().points
    return point


def reader(vault: Vault, disk: int = 0) -> LeafReader:
    return vault.repository.leaf_reader(only(vault).manifest.disks[disk])


def expected(places: list[int]) -> bytes:
    whole = CONTENT + bytes(9)
    return b"".join(whole[n * BLOCK_BYTES : (n + 1) * BLOCK_BYTES] for n in places)


def read(leaf_reader: LeafReader, places: list[int], index: int = 0) -> bytes:
    return leaf_reader.read(index, np.array(places, dtype=np.int64)).tobytes()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.sets(st.integers(0, COUNT - 1)), min_size=1, max_size=4))
def test_any_blocks_of_a_leaf_come_back_in_their_order(vault, choices):
    leaf_reader = reader(vault)
    for choice in choices:
        places = sorted(choice)
        assert read(leaf_reader, places) == expected(places)


def test_leaves_of_zeroes_and_leaves_behind_them_come_back(vault):
    assert read(reader(vault, 1), [0, 7]) == bytes(2 * BLOCK_BYTES)
    assert read(reader(vault, 1), [5, 150], index=1) == expected([5, 150])


def test_where_id_tables_can_not_be_had_the_blocks_prove_themselves(vault, monkeypatch):
    monkeypatch.setattr(vault.repository.tables, "at", lambda name, ordinals: None)
    assert read(reader(vault), [3, 150]) == expected([3, 150])


def test_what_another_table_says_is_no_proof(vault, monkeypatch):
    at = vault.repository.tables.at
    monkeypatch.setattr(vault.repository.tables, "at", lambda n, o: at(n, o)[::-1].copy())
    with pytest.raises(DamageFound, match="not what its disk map stands for"):
        read(reader(vault), [3])


def test_a_pack_that_is_missing_is_named(vault):
    leaf = reader(vault).map.leaf(0)
    name = leaf.packs[int(leaf.pack[3])]
    vault.store.delete(pack_object(name))
    with pytest.raises(DamageFound, match=name.hex()):
        read(reader(vault.reopen()), [3])
    assert read(reader(vault), [150]) == expected([150])


def test_addresses_beyond_the_end_of_a_frame_are_damage(vault, monkeypatch):
    leaf_reader = reader(vault)
    leaf = leaf_reader.map.leaf(0)
    places = np.flatnonzero(leaf.ordinal == 0)[:1]
    fetched = vault.repository.packs.frames

    def cut(name, numbers):
        for plain in fetched(name, numbers):
            yield plain[:BLOCK_BYTES]

    monkeypatch.setattr(vault.repository.packs, "frames", cut)
    assert read(leaf_reader, places.tolist()) == expected(places.tolist())
    with pytest.raises(DamageFound, match="beyond the end of a frame"):
        read(reader(vault), (places + 1).tolist())


def test_a_leaf_that_names_other_blocks_is_damage(vault, monkeypatch):
    leaf_reader = reader(vault)
    leaf = leaf_reader.map.leaf(0)
    swapped = leaf.ordinal.copy()
    first, second = np.flatnonzero(leaf.pack == leaf.pack[0])[:2]
    swapped[[first, second]] = swapped[[second, first]]
    lying = dataclasses.replace(leaf, ordinal=swapped)
    monkeypatch.setattr(leaf_reader.map, "leaf", lambda index: lying)
    for places in ([int(first)], [150]):
        with pytest.raises(DamageFound, match="not what its disk map stands for"):
            read(leaf_reader, places)
