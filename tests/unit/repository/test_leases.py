"""A lease tells others that a machine is being backed up, by the store's time, and harms nobody."""

from __future__ import annotations

import datetime as dt

import pytest

from drvm.core.errors import StoreUnreachable
from drvm.repository.layout import LEASES
from drvm.repository.leases import VALID, Lease
from tests.unit.repository.conftest import VM, Vault, cheap_key_derivation, vault

__all__ = ["cheap_key_derivation", "vault"]

FIRST, SECOND = Lease("kvm1", "then"), Lease("kvm2", "then")


def age(vault: Vault, name: str, by: dt.timedelta) -> None:
    data, modified = vault.store.objects[name]
    vault.store.objects[name] = (data, modified - by)


def test_whoever_was_first_goes_on_and_the_other_learns_who_that_is(vault: Vault) -> None:
    leases, others = vault.repository.leases, vault.reopen().repository.leases
    first = leases.take(VM, FIRST)
    age(vault, first, dt.timedelta(seconds=1))
    second = others.take(VM, SECOND)
    assert leases.before(first) is None
    assert others.before(second) == FIRST
    leases.end(first)
    assert others.before(second) is None


def test_of_two_in_one_moment_exactly_one_goes_on(vault: Vault) -> None:
    leases = vault.repository.leases
    names = [leases.take(VM, FIRST), leases.take(VM, SECOND)]
    for name in names:
        vault.store.objects[name] = (vault.store.objects[name][0], dt.datetime.now(dt.UTC))
    moment = vault.store.objects[names[0]][1]
    vault.store.objects[names[1]] = (vault.store.objects[names[1]][0], moment)
    assert [leases.before(name) is None for name in names].count(True) == 1


def test_a_lease_of_a_dead_writer_says_no_more_after_its_time(vault: Vault) -> None:
    leases = vault.repository.leases
    dead = leases.take(VM, FIRST)
    age(vault, dead, VALID - dt.timedelta(seconds=30))
    mine = leases.take(VM, SECOND)
    assert leases.before(mine) == FIRST
    age(vault, dead, dt.timedelta(minutes=1))
    assert leases.before(mine) is None


def test_what_a_host_left_itself_keeps_it_from_nothing_and_others_still_do(vault: Vault) -> None:
    leases = vault.repository.leases
    dead = leases.take(VM, FIRST)
    age(vault, dead, dt.timedelta(seconds=9))
    mine = leases.take(VM, FIRST)
    assert leases.before(mine, FIRST.host) is None
    other = leases.take(VM, SECOND)
    age(vault, other, dt.timedelta(seconds=5))
    assert leases.before(mine, FIRST.host) == SECOND


def test_what_is_no_lease_keeps_nobody_from_anything(vault: Vault) -> None:
    leases = vault.repository.leases
    other = leases.take("0" * 36, FIRST)
    vault.store.put(f"{LEASES}{VM}/0000000000000000", b"noise")
    vault.store.put(f"{LEASES}{VM}/0000000000000001", vault.store.objects[other][0])
    for n in range(2):
        age(vault, f"{LEASES}{VM}/000000000000000{n}", dt.timedelta(seconds=5))
    assert leases.before(leases.take(VM, SECOND)) is None


def test_a_store_that_is_away_is_no_error_at_the_end(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = vault.repository.leases.take(VM, FIRST)

    def away(_name: str) -> None:
        raise StoreUnreachable("no answer")

    monkeypatch.setattr(vault.store, "delete", away)
    vault.repository.leases.end(name)
