"""Two generations of a point agree where they show the same, as far as that can be read."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from drvm.chunker.blocks import LEAF_BYTES
from drvm.core.errors import DamageFound
from drvm.repository.layout import pack_object
from drvm.repository.listings import present_packs
from drvm.repository.manifest import Manifest
from drvm.upkeep.agreement import agrees
from tests.unit.repository.conftest import Vault
from tests.unit.repository.test_round_trip import SMALL, noise

DISK = noise(SMALL, 1) + bytes(LEAF_BYTES) + noise(SMALL, 2)


def manifest(vault: Vault, like: Manifest | None, disk: bytes = DISK, **fields: Any) -> Manifest:
    """Stored anew, of the same point as ``like``."""
    made = vault.save([disk], banned=present_packs(vault.store), **fields).manifest
    return made if like is None else replace(made, id=like.id, created=like.created)


def agree(vault: Vault, good: Manifest, old: Manifest) -> bool:
    return agrees(vault.reopen().repository, good, old)


def lose(vault: Vault, found: Manifest) -> None:
    vault.store.delete(pack_object(found.disks[0].root.ref().pack))


def test_the_same_stored_twice_agrees(vault: Vault) -> None:
    old = manifest(vault, None, nvram=b"variables")
    assert agree(vault, manifest(vault, old, nvram=b"variables"), old)
    assert agree(vault, old, old)


def test_another_disk_does_not(vault: Vault) -> None:
    old = manifest(vault, None)
    assert not agree(vault, manifest(vault, old, noise(SMALL, 3) + DISK[SMALL:]), old)
    assert not agree(vault, manifest(vault, old, DISK[:LEAF_BYTES]), old)
    assert not agree(vault, manifest(vault, old, bytes(len(DISK))), old)


def test_another_machine_or_instant_does_not(vault: Vault) -> None:
    old = manifest(vault, None)
    for fields in ({"vm": "other"}, {"created": "2027-01-01T00:00:00.000000Z"}):
        assert not agree(vault, replace(old, **fields), old)


def test_other_parts_do_not(vault: Vault) -> None:
    old = manifest(vault, None, nvram=b"variables")
    assert not agree(vault, manifest(vault, old, nvram=b"others"), old)
    assert not agree(vault, manifest(vault, old), old)
    tpm = {"tpm2-00.permall": old.nvram}
    assert not agree(vault, replace(old, tpm=tpm), old)
    assert agree(vault, replace(old, tpm=tpm), replace(old, tpm=tpm))


def test_what_is_lost_of_the_old_one_is_no_difference(vault: Vault) -> None:
    old = manifest(vault, None)
    good = manifest(vault, old)
    lose(vault, old)
    assert agree(vault, good, old)


def test_a_good_one_that_cannot_be_read_is_damage(vault: Vault) -> None:
    old = manifest(vault, None)
    good = manifest(vault, old)
    lose(vault, good)
    with pytest.raises(DamageFound):
        agree(vault, good, old)
