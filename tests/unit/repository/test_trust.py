"""Packs of other hosts: one whose id table lies poisons nobody who does not ask for it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import msgspec
import pytest

from drvm.chunker.blocks import BLOCK_BYTES
from drvm.core.errors import DamageFound, ObjectMissing
from drvm.repository.crypto import Sealer
from drvm.repository.index.sparse import DEFAULT_LIMITS
from drvm.repository.layout import pack_object
from drvm.repository.pack import FOOTER_BYTES, PackBuilder
from drvm.repository.repository import Repository
from drvm.repository.trust import DedupTrust, HostTrust
from drvm.store.memory import MemoryStore
from tests.unit.repository.conftest import PASSPHRASE, Vault

OURS, THEIRS = b"o" * 32, b"t" * 32
MIB = 1 << 20
CONTENT = os.urandom(20 * MIB)
FRAME = 32 * BLOCK_BYTES


def opened(
    store: MemoryStore, rule: DedupTrust, key: bytes | None = OURS, cache: Path | None = None
) -> Vault:
    trust = HostTrust(rule, key)
    return Vault(store, Repository.open(store, PASSPHRASE, cache, DEFAULT_LIMITS, trust))


def new(key: bytes = THEIRS) -> Vault:
    """A repository that another host made."""
    store = MemoryStore()
    Repository.create(store, PASSPHRASE)
    return opened(store, "verified", key)


def forge(vault: Vault, claimed: bytes, content: bytes) -> bytes:
    """A pack with this content whose table claims the ids of another, sealed with the keys that
    every host has."""
    repository = vault.repository
    sealer = Sealer(repository.keyring.paper().keys, repository.id, THEIRS)
    builder = PackBuilder(sealer, "data")
    for at in range(0, len(content), FRAME):
        ids = repository.hasher.ids(claimed[at : at + FRAME])
        builder.add(0, content[at : at + FRAME], FRAME, ids.tobytes())
    pack = builder.finish()
    vault.store.put(pack_object(pack.name), pack.data)
    return pack.name


def new_bytes(vault: Vault, content: bytes) -> int:
    """What a backup of the content stores anew; and it restores."""
    point = vault.save([content])
    assert vault.load(point) == [content]
    return point.manifest.disks[0].new_bytes


@pytest.fixture
def poisoned() -> Vault:
    vault = new()
    forge(vault, CONTENT, bytes(reversed(CONTENT)))
    return vault


# -- who lies ---------------------------------------------------------------------------------
@pytest.mark.parametrize("rule", ["verified", "own"])
def test_a_table_that_lies_poisons_nothing(poisoned: Vault, rule: DedupTrust) -> None:
    assert new_bytes(opened(poisoned.store, rule), CONTENT) == len(CONTENT)


def test_who_believes_the_repository_is_poisoned_and_told_so_on_restore(poisoned: Vault) -> None:
    vault = opened(poisoned.store, "repository")
    point = vault.save([CONTENT])
    assert point.manifest.disks[0].new_bytes == 0
    with pytest.raises(DamageFound, match="not what its disk map stands for"):
        vault.load(point)


def test_a_pack_that_lies_somewhere_is_not_used_after_that_was_seen() -> None:
    vault = new()
    content = CONTENT[: 16 * MIB]
    name = forge(vault, content, content[: 12 * MIB] + bytes(4 * MIB))
    ours = opened(vault.store, "verified")
    assert new_bytes(ours, content) >= 4 * MIB
    assert ours.repository.trust.liars == {name}
    assert new_bytes(ours, content[:MIB]) <= MIB


def test_a_pack_with_a_damaged_frame_is_not_used() -> None:
    vault = new()
    vault.save([CONTENT])
    for info in list(vault.store.list("packs/")):
        data = bytearray(vault.store.get(info.name))
        data[1000] ^= 1
        vault.store.put(info.name, bytes(data))
    ours = opened(vault.store, "verified")
    assert new_bytes(ours, CONTENT) >= 8 * MIB


# -- who does not -----------------------------------------------------------------------------
def test_what_an_honest_host_stored_is_verified_once(tmp_path: Path) -> None:
    store = new().store
    opened(store, "verified", THEIRS).save([CONTENT])
    first = opened(store, "verified", OURS, tmp_path)
    assert new_bytes(first, CONTENT) == 0
    assert first.repository.trust.verified_bytes == len(CONTENT)
    again = opened(store, "verified", OURS, tmp_path)
    assert new_bytes(again, CONTENT) == 0
    assert again.repository.trust.verified_bytes == 0


def test_only_what_may_be_used_is_verified() -> None:
    store = new().store
    opened(store, "verified", THEIRS).save([CONTENT])
    ours = opened(store, "verified")
    assert new_bytes(ours, os.urandom(MIB) + CONTENT[10 * MIB : 11 * MIB]) <= MIB + MIB // 16
    assert ours.repository.trust.verified_bytes <= 16 * MIB


def test_own_packs_are_known_by_their_mark_when_the_cache_is_lost() -> None:
    store = new().store
    opened(store, "verified", OURS).save([CONTENT])
    for rule in ("verified", "own"):
        again = opened(store, rule, OURS)  # type: ignore[arg-type]
        assert new_bytes(again, CONTENT) == 0
        assert again.repository.trust.verified_bytes == 0


def test_with_the_rule_own_nothing_of_others_serves() -> None:
    store = new().store
    opened(store, "verified", THEIRS).save([CONTENT])
    assert new_bytes(opened(store, "own"), CONTENT) == len(CONTENT)


def test_a_host_without_a_key_knows_only_what_it_writes_itself() -> None:
    store = new().store
    vault = opened(store, "own", None)
    assert new_bytes(vault, CONTENT) == len(CONTENT)
    assert new_bytes(vault, CONTENT) == 0
    assert new_bytes(opened(store, "own", None), CONTENT) == len(CONTENT)


def test_a_mark_that_was_copied_proves_nothing() -> None:
    vault = new()
    ours = opened(vault.store, "verified", OURS)
    ours.save([CONTENT[:MIB]])
    packs = ours.repository.packs
    (own,) = (n for n in ours.repository._index.known() if packs.open(n).footer.kind == "data")
    assert ours.repository.packs.is_own(own)
    other = forge(vault, CONTENT[:MIB], bytes(MIB))
    assert not ours.repository.packs.is_own(other)
    mark = vault.store.get(pack_object(own))[-16:]
    data = vault.store.get(pack_object(other))[:-16] + mark
    name = hashlib.sha256(data[-FOOTER_BYTES:]).digest()
    vault.store.put(pack_object(name), data)
    assert not ours.repository.packs.is_own(name)


@pytest.mark.parametrize("damage", [lambda d: d[:-1], lambda d: d[:20] + b"\xff" + d[21:]])
def test_a_torn_record_is_found_out_anew(tmp_path: Path, damage) -> None:  # type: ignore[no-untyped-def]
    store = new().store
    opened(store, "verified", THEIRS).save([CONTENT])
    assert new_bytes(opened(store, "verified", OURS, tmp_path), CONTENT) == 0
    for path in tmp_path.glob("*/trusted/??/*"):
        path.write_bytes(damage(path.read_bytes()))
    again = opened(store, "verified", OURS, tmp_path)
    assert new_bytes(again, CONTENT) == 0
    assert again.repository.trust.verified_bytes == len(CONTENT)


# -- points -----------------------------------------------------------------------------------
def test_a_point_is_own_to_the_host_that_wrote_it_and_to_no_other() -> None:
    vault = new()
    ours = opened(vault.store, "verified", OURS).repository
    theirs = vault.save([CONTENT[:MIB]], own=True)
    assert vault.repository.is_own(theirs.manifest)
    assert not ours.is_own(theirs.manifest) and not ours.may_build_on(theirs.manifest)
    assert opened(vault.store, "repository").repository.may_build_on(theirs.manifest)


@pytest.mark.parametrize("field", ["vm", "host", "created", "definition", "disks"])
def test_a_point_that_was_altered_is_not_own(field: str) -> None:
    vault = new()
    manifest = vault.save([CONTENT[:MIB]], own=True).manifest
    other = {"vm": "x", "host": "x", "created": "2027-01-01T00:00:00.000000Z",
             "definition": None, "disks": ()}[field]  # fmt: skip
    assert vault.repository.is_own(manifest)
    assert not vault.repository.is_own(msgspec.structs.replace(manifest, **{field: other}))


def test_a_point_without_a_mark_is_nobodys() -> None:
    vault = new()
    assert not vault.repository.is_own(vault.save([CONTENT[:MIB]]).manifest)


def test_a_missing_pack_is_no_liar_to_crash_on() -> None:
    vault = new()
    assert not opened(vault.store, "verified").repository.trust.believes(b"\1" * 32, 0)
    with pytest.raises(ObjectMissing):
        vault.store.get(pack_object(b"\1" * 32))
