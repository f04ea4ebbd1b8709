"""While one host backs a machine up, others leave it to it; nothing ever depends on that."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from drvm.core.errors import Locked, StoreRefused
from drvm.core.progress import NoProgress
from drvm.repository.layout import LEASES
from drvm.repository.leases import RENEW_S
from drvm.wiring.leases import leased
from tests.fakes.clock import FakeClock
from tests.unit.repository.conftest import VM, Vault, cheap_key_derivation, new_vault

__all__ = ["cheap_key_derivation"]

OTHER = "22222222-2222-4333-8444-555555555555"


class World:
    def __init__(self) -> None:
        self.vault = new_vault()
        self.clock = FakeClock()
        self.vault.store._clock = self.clock

    def wiring(self, writer: str) -> Any:
        own = Vault(self.vault.store, self.vault.reopen().repository)
        return SimpleNamespace(repository=lambda: own.repository, clock=self.clock, writer=writer)

    def held(self) -> list[str]:
        return [name for name in self.vault.store.objects if name.startswith(LEASES)]


@pytest.fixture
def world() -> World:
    return World()


def test_a_second_host_leaves_a_machine_to_the_first_until_that_is_done(world: World) -> None:
    with leased(world.wiring("kvm1"), [VM], NoProgress()):
        world.clock.sleep(1)
        refused = pytest.raises(Locked, match="kvm1 backs it up since 2026-11-23T04:00")
        with refused, leased(world.wiring("kvm2"), [OTHER, VM], NoProgress()):
            pytest.fail("begun")
        with leased(world.wiring("kvm2"), [OTHER], NoProgress()):
            pass
    assert world.held() == []
    with leased(world.wiring("kvm2"), [VM], NoProgress()):
        assert len(world.held()) == 1


def test_a_backup_that_takes_long_keeps_its_lease(world: World) -> None:
    with leased(world.wiring("kvm1"), [VM], NoProgress()) as progress:
        for _ in range(20):
            world.clock.sleep(RENEW_S)
            progress.advance(1)
            world.clock.sleep(1)
            with pytest.raises(Locked), leased(world.wiring("kvm2"), [VM], NoProgress()):
                pytest.fail("begun")
            assert len(world.held()) == 1


def test_a_host_that_died_is_waited_for_no_longer_than_its_lease(world: World) -> None:
    dead = leased(world.wiring("kvm1"), [VM], NoProgress())
    dead.__enter__()
    world.clock.sleep(16 * 60)
    with leased(world.wiring("kvm2"), [VM], NoProgress()):
        pass
    dead.__exit__(None, None, None)


def test_a_store_that_takes_no_leases_keeps_nobody_from_a_backup(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_name: str, _data: bytes) -> None:
        raise StoreRefused("no permission")

    monkeypatch.setattr(world.vault.store, "put_if_absent", refuse)
    with leased(world.wiring("kvm1"), [VM], NoProgress()) as progress:
        world.clock.sleep(2 * RENEW_S)
        progress.advance(1)
    assert world.held() == []
