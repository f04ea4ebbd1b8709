"""The fleet is looked at once a minute at most, and no host keeps anybody from the others."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from drvm.config.load import parse_config
from drvm.core.clock import SystemClock
from drvm.core.errors import HostUnreachable, StoreUnreachable
from drvm.daemon import tasks_fleet
from drvm.daemon.tasks_fleet import EVERY_S, FleetWatch
from drvm.wiring.whereabouts import Whereabouts, read
from tests.fakes.chain_host import FakeDomain, FakeHost
from tests.fakes.clock import FakeClock
from tests.unit.repository.conftest import VM, Vault, cheap_key_derivation, vault
from tests.unit.repository.test_round_trip import SMALL, noise

__all__ = ["cheap_key_derivation", "vault"]

LIMIT_S = 30.0
POLICIES = parse_config(
    b"policies: [{name: nightly, vms: ['web*']}, {name: far, vms: [x], hosts: [y]}]", "c.yaml", {}
).policies


class Counted(FakeHost):
    looks = 0
    goes_on: threading.Event | None = None
    lost = False

    def domains(self) -> list[Any]:
        self.looks += 1
        if self.goes_on is not None:
            self.goes_on.wait(LIMIT_S)
        if self.lost:
            raise HostUnreachable("no route")
        return super().domains()

    def close(self) -> None:
        pass


class World:
    state_dir = Path("/proc/nowhere")

    def __init__(self, vault: Vault, clock: Any, *hosts: Counted) -> None:
        self.vault, self.hosts, self.away = vault, hosts, False
        self.clock = clock
        self.watch = FleetWatch(self.opened, clock, tells=True)

    @contextlib.contextmanager
    def opened(self) -> Iterator[Any]:
        yield SimpleNamespace(
            hosts=lambda: list(self.hosts),
            settings=SimpleNamespace(policies=POLICIES, state_dir=self.state_dir),
            repository=self.repository,
            whereabouts=lambda: Whereabouts(read(self.state_dir)),
            clock=SystemClock(),
        )

    def repository(self) -> Any:
        if self.away:
            raise StoreUnreachable("no store")
        return self.vault.repository

    def found(self) -> dict[str, tuple[str | None, int]]:
        return {vm.name: (vm.state, vm.points) for vm in self.watch.view().fleet.vms}


@pytest.fixture
def host() -> Counted:
    return Counted(FakeDomain("web1", VM, {}))


def test_the_fleet_is_looked_at_once_a_minute_and_new_points_and_vms_join(
    vault: Vault, host: Counted
) -> None:
    world = World(vault, FakeClock(), host)
    assert world.found() == {"web1": ("running", 0)}
    vault.save([noise(SMALL, 1)])
    host.there.append(FakeDomain("web2", "another", {}))
    assert world.found() == {"web1": ("running", 0)} and host.looks == 1
    world.clock.sleep(EVERY_S)
    assert world.found() == {"web1": ("running", 1), "web2": ("running", 0)}
    world.watch.close()


def test_a_host_that_hangs_holds_nobody_up_and_its_vms_are_not_gone(
    vault: Vault, host: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks_fleet, "PATIENCE_S", 0.2)
    vault.save([noise(SMALL, 1)])
    host.goes_on = threading.Event()
    other = Counted(FakeDomain("web2", "another", {}))
    world = World(vault, SystemClock(), host, other)
    for _ in range(2):
        assert world.found() == {"web1": ("unreachable", 1), "web2": ("running", 0)}
        world.watch.forget()
    assert (host.looks, other.looks) == (1, 2)
    host.goes_on.set()
    watch = world.watch
    assert watch._watches[0]._idle.wait(LIMIT_S)
    assert world.found()["web1"] == ("running", 1)
    watch.close()


def test_what_can_not_be_reached_is_told_and_asked_again(
    vault: Vault, host: Counted, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(vault, FakeClock(), host)
    world.away = True
    with pytest.raises(StoreUnreachable):
        world.found()
    world.away, host.lost = False, True
    for _ in range(2):
        assert world.found() == {}
        world.watch.forget()
    host.lost = False
    host.there.append(FakeDomain("db1", "another", {}))
    assert world.found() == {"web1": ("running", 0), "db1": ("running", 0)}
    told = [record.getMessage() for record in caplog.records]
    assert told == ["no route", "no policy protects db1"]
    world.watch.close()


def test_a_twin_is_held_while_the_host_is_away_where_the_machine_was_seen(
    vault: Vault, host: Counted, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    far = Counted(FakeDomain("web1", VM, {}))
    far.uri = "qemu+ssh://kvm1/system"
    host.there[0].running = False
    world = World(vault, FakeClock(), host, far)
    world.state_dir = tmp_path
    (vm,) = world.watch.view().fleet.vms
    assert (vm.host, vm.held) == (far.uri, "")
    far.lost = True
    world.watch.close()
    again = World(vault, FakeClock(), host, far)  # a daemon that begins while it is away
    again.state_dir = tmp_path
    for _ in range(2):
        (vm,) = again.watch.view().fleet.vms
        assert vm.host is None and f"was last seen on {far.uri}" in vm.held
        again.watch.forget()
    assert [r.getMessage() for r in caplog.records if "web1" in r.getMessage()] == [
        f"web1 is not backed up: {vm.held}"
    ]
    far.lost = False
    assert again.watch.view().fleet.vms[0].host == far.uri
    again.watch.close()


def test_what_is_closed_while_it_opens_leaves_nothing_open(vault: Vault, host: Counted) -> None:
    opening, goes_on, is_open = threading.Event(), threading.Event(), [0]

    @contextlib.contextmanager
    def slowly(world: World) -> Iterator[Any]:
        opening.set()
        assert goes_on.wait(LIMIT_S)
        is_open[0] += 1
        with world.opened() as wiring:
            yield wiring
        is_open[0] -= 1

    world = World(vault, FakeClock(), host)
    watch = FleetWatch(lambda: slowly(world), world.clock)
    looking = threading.Thread(target=watch.view)
    looking.start()
    assert opening.wait(LIMIT_S)
    watch.close()
    goes_on.set()
    looking.join(LIMIT_S)
    assert is_open == [0] and watch._watches == []
