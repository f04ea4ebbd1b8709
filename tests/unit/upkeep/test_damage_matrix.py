"""Every kind of object, damaged in every way: it is found or does no harm, and what a check says is
hit is what a restore of everything, block by block, can't bring back.
"""

import functools
from collections.abc import Iterator

import pytest

from drvm.chunker.blocks import BLOCK_BYTES, LEAF_BYTES
from drvm.core.errors import RepositoryError
from drvm.repository.layout import CONDEMNED, PACKS, tombstone
from drvm.repository.pins import Pin
from drvm.repository.points import Point
from drvm.repository.repository import Repository
from drvm.store.memory import MemoryStore
from tests.checking import Kinds, brute_force, check, told
from tests.unit.repository.conftest import PASSPHRASE, VM, Vault, new_vault
from tests.unit.repository.test_round_trip import SMALL, noise

KINDS = ["drvm.json", "keys", "data", "meta", "points", "final", "index"]
KINDS += ["condemned", "pins", "drills", "checks"]
REGIONS = [0.0, 0.001, 0.01, 0.3, 0.6, 0.9, 0.99, 0.999]
"""Where a bit is flipped, as a share of the object: its head, its body, tables and footer."""

PIN = Pin("keep it", "2026-11-23T04:00:00.000000Z", "kvm1")


def changed(content: bytes, block: int, seed: int) -> bytes:
    at = block * BLOCK_BYTES
    return content[:at] + noise(BLOCK_BYTES, seed) + content[at + BLOCK_BYTES :]


@functools.cache
def filled() -> tuple[Vault, dict[str, tuple[Point, list[bytes]]]]:
    """Three points: a second generation of a machine, and a disk that shares some blocks."""
    vault = new_vault()
    saved = {}
    far = noise(SMALL, 1) + bytes(LEAF_BYTES) + noise(SMALL, 2)
    first = [far, b"text" * 5000]
    second = [changed(far, 3, 7), b"text" * 5000]
    third = [noise(3 * BLOCK_BYTES, 9) + noise(SMALL, 1)]
    parent = None
    for disks in (first, second, third):
        parent = vault.save(disks, parent if disks is second else None)
        saved[parent.id] = (parent, disks)
    vault.repository.pin(parent, PIN)
    needed = vault.repository.need(parent.manifest)
    for pack in (bytes(32), *sorted(needed)[:1]):
        vault.store.put(tombstone(pack), b"anything")
    vault.repository.drills.put(VM, "0123456789abcdef", b"{}")
    check(vault.repository)
    return vault, saved


def others(vault: Vault, name: str) -> list[str]:
    kinds = Kinds(vault.repository)
    return [other for other in kinds.names(kinds.of(name)) if other != name]


def damages(vault: Vault, name: str) -> Iterator[tuple[str, dict[str, bytes | None]]]:
    """(what it is, names with their new content, ``None`` for none)."""
    whole = vault.store.get(name)
    middle = len(whole) // 2
    yield "missing", {name: None}
    yield "emptied", {name: b""}
    yield "truncated", {name: whole[:middle]}
    yield "truncated by a byte", {name: whole[:-1]}
    yield "tail only", {name: whole[middle:]}
    yield "grown", {name: whole + noise(5000)}
    yield "grown in front", {name: noise(5000) + whole}
    yield "random", {name: noise(len(whole))}
    yield "zeroes", {name: bytes(len(whole))}
    for region in REGIONS:
        at = int(region * len(whole))
        flipped = whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :]
        yield f"flipped at {region}", {name: flipped}
    for other in others(vault, name)[:1]:
        yield "older content", {name: vault.store.get(other)}
        yield "changed over", {name: vault.store.get(other), other: whole}


def judged(vault: Vault, saved: dict[str, tuple[Point, list[bytes]]], name: str) -> None:
    kind = Kinds(vault.repository).of(name)
    for damage, contents in damages(vault, name):
        store = MemoryStore()
        store.objects = dict(vault.store.objects)
        for changed_name, content in contents.items():
            store.delete(changed_name)
            if content is not None:
                store.put(changed_name, content)
        case = f"{kind} {damage}"
        try:
            repository = Repository.open(store, PASSPHRASE)
        except RepositoryError:
            assert kind in ("drvm.json", "keys"), case
            continue
        result = check(repository)
        expected = brute_force(Repository.open(store, PASSPHRASE), saved)
        lost = told(result)
        if damage == "missing" and kind in ("points", "final"):
            # a manifest that is gone looks like a point that was removed
            gone = name.split("/")[-1].split(".")[0]
            assert (set(expected), set(lost)) == ({gone}, set()), case
            assert kind == "points" or result.finds.unfinished, case
            assert result.warned == (kind == "final"), case
            continue
        assert lost == expected, case
        bad = {f"packs/{pack.name.hex()}" for pack in result.bad_packs}
        assert bad <= set(contents), case
        condemned = {CONDEMNED + name.removeprefix(PACKS) for name in contents}
        if condemned.isdisjoint(vault.store.objects):  # of those only what somebody needs is read
            assert bad == (set(contents) if kind in ("data", "meta") else set()), case
        if kind in ("drvm.json", "points", "final"):
            assert result.damaged or damage == "truncated by a byte", case  # a line's end
        elif damage != "missing" and kind in ("index", "drills", "checks", "pins"):
            assert result.finds.harmless, case


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_found_and_its_cost_is_that_of_a_restore(kind):
    vault, saved = filled()
    judged(vault, saved, Kinds(vault.repository).names(kind)[0])


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_damage_to_any_object_is_found_and_its_cost_is_that_of_a_restore(kind):
    vault, saved = filled()
    for name in Kinds(vault.repository).names(kind)[1:]:
        judged(vault, saved, name)
